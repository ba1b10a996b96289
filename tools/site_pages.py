"""Hooks of the site (mkdocs.yml): pages that are not files of docs/, and their links.

The README is the first page, and each wing has a page of its modules. Links to source
files lead to those; other files of the repository are no part of the site, and their
links become plain words.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "chemeleon_jax"
# Pages of the site that lie elsewhere in the repository.
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}
PAGES["CHANGELOG.md"] = "changelog.md"
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s:]+)\)")


def on_files(files, config):
    """Adds the pages above, and one of each wing."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text().replace("](docs/images/", "](images/")
        files.append(File.generated(config, page, content=text))
    for name, modules in wings().items():
        parts = [f"# {name}\n", *(f"::: {module}\n" for module in modules)]
        files.append(File.generated(config, f"api/{name}.md", content="\n".join(parts)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links of a page, from where they lead in the repository to where on the site."""
    uri = page.file.src_uri
    elsewhere = {v: k for k, v in PAGES.items()}
    here = posixpath.dirname(elsewhere.get(uri, f"docs/{uri}"))

    def on_site(link: re.Match) -> str:
        text, (path, _, anchor) = link[1], link[2].partition("#")
        if not path:
            return link[0]
        target = posixpath.normpath(posixpath.join(here, path))
        if target.startswith("docs/"):
            found = target.removeprefix("docs/")
        elif target in PAGES:
            found = PAGES[target]
        elif target.startswith("chemeleon_jax/") and target.endswith(".py"):
            anchor = target.removesuffix(".py").replace("/", ".")
            found = f"api/{wing_of(Path(target))}.md"
        else:
            return text
        found = posixpath.relpath(found, posixpath.dirname(uri) or ".")
        return f"[{text}]({found}#{anchor})" if anchor else f"[{text}]({found})"

    return LINK.sub(on_site, markdown) if not uri.startswith("api/") else markdown


def wings() -> dict[str, list[str]]:
    """The names of all modules, by wing; those on top are `programs`."""
    found: dict[str, list[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        path = file.relative_to(ROOT)
        if "configs" not in path.parts and not path.stem.startswith("__"):
            module = ".".join(path.with_suffix("").parts)
            found.setdefault(wing_of(path), []).append(module)
    return found


def wing_of(path: Path) -> str:
    """The wing of a source file, a path from the repository's root."""
    return path.parts[1] if len(path.parts) > 2 else "programs"

"""The pages: their width, their links, and what they tell a reader to type."""

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib

import paths
import pytest

from chemeleon_jax import cli
from chemeleon_jax.rl.config import rl_config

ROOT = paths.ROOT
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
HISTORY = {*(ROOT / "docs" / "notebook").glob("*.md"), ROOT / "CHANGELOG.md"}
USER_PAGES = [page for page in PAGES if page not in HISTORY]
SECTIONS = "rl|data|sampling|optimizer|alarms|reward|tracking"
COMPONENTS = "creativity|energy|predictor|custom"
FLAG = r"--[a-z_]+"


def name(page):
    return str(page.relative_to(ROOT))


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page):
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def commands(page):
    """The lines of `python -m` and `python FILE` in code blocks, as lists of words."""
    text = page.read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    blocks += re.findall(r"^ {4,}\S.*$", without_code(text), re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [re.search(r"\bpython .*", line.partition(";")[0]) for line in lines]
    texts = [match[0] for match in found if match]
    # Of one that stands in the quotes of another, the end is cut off.
    texts = [t.rstrip('"') if t.count('"') % 2 else t for t in texts]
    return [shlex.split(text, comments=True) for text in texts]


COMMANDS = [words for page in USER_PAGES for words in commands(page)]


def calls(program):
    module = ["-m", f"chemeleon_jax.{program}"]
    return [words[3:] for words in COMMANDS if words[1:3] == module]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_line_is_longer_than_100(page):
    lines = page.read_text().splitlines()
    assert [i for i, line in enumerate(lines, 1) if len(line) > 100] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_resolve(page):
    links = re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text()))
    for link in links:
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", USER_PAGES, ids=name)
def test_files_and_modules_exist(page):
    text = page.read_text()
    folders = "chemeleon_jax|configs|convert_checkpoints|tests|tools|benchmarks"
    for file in re.findall(rf"\b((?:{folders})/[\w/]+\.(?:py|txt))\b", text):
        assert (ROOT / file).exists(), file
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert importlib.util.find_spec(module), module


def test_the_site_leads_to_every_page():
    """The notebook's pages are reached from its first one."""
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    assert pages - set(re.findall(r": ([\w-]+\.md)$", nav, re.MULTILINE)) == set()
    inits = (ROOT / "chemeleon_jax").glob("*/__init__.py")
    wings = {init.parent.name for init in inits} - {"configs"}
    assert wings - set(re.findall(r"api/(\w+)\.md", nav)) == set()


def test_pages_that_the_code_names_exist():
    for folder in ("chemeleon_jax", "configs", "convert_checkpoints", "benchmarks"):
        for file in (ROOT / folder).rglob("*.py"):
            for page in re.findall(r"\bdocs/[\w/-]+\.md", file.read_text()):
                assert (ROOT / page).exists(), (file, page)


@pytest.mark.parametrize("page", USER_PAGES, ids=name)
def test_imports_in_examples_work(page):
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and "chemeleon" in node.module:
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), (node.module, alias.name)


@pytest.mark.parametrize("page", USER_PAGES, ids=name)
def test_fields_exist(page):
    """`rl.clip_ratio`, `--config.seed` and `energy.decay` are fields of a run."""
    text, config = page.read_text(), rl_config("mini")
    fields = re.findall(rf"`(?:config\.)?((?:{SECTIONS})\.[a-z_.]*[a-z_])\b", text)
    for component, field in re.findall(rf"`({COMPONENTS})\.((?!py`)[a-z_]+)[`=]", text):
        fields.append(f"reward.components.{component}.{field}")
    for field in fields:
        value = config
        for part in field.split("."):
            assert part in value, field
            value = value.get_ref(part).get() if "get_ref" in dir(value) else value


@pytest.mark.parametrize("program", ["train", "pretrain"])
def test_train_and_pretrain_read_their_command_lines(program, monkeypatch):
    """Configs, presets, fields and the types of values are right."""
    monkeypatch.chdir(ROOT)
    for words in calls(program):
        cli.parse([program, *[word for word in words if word[0] == "-"]], program)


PROGRAMS = ["sample", "evaluate", "report", "publish", "screen"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_flags_exist(program):
    command = [sys.executable, "-m", f"chemeleon_jax.{program}", "--help"]
    help_text = subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout
    used = {flag for words in calls(program) for flag in re.findall(FLAG, str(words))}
    assert used <= set(re.findall(FLAG, help_text))


def test_the_architecture_page_has_the_wings_and_layers():
    text = (ROOT / "docs" / "architecture.md").read_text()
    inits = (ROOT / "chemeleon_jax").glob("*/__init__.py")
    wings = {init.parent.name for init in inits} - {"configs"}
    assert [wing for wing in wings if f"| `{wing}/` |" not in text] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contract = project["tool"]["importlinter"]["contracts"][0]
    layers = "\n".join(layer.replace(" | ", "  ") for layer in contract["layers"])
    assert f"```\n{layers}\n```" in text


def test_the_readme_says_how_to_train_and_test():
    text = (ROOT / "README.md").read_text()
    assert "python -m chemeleon_jax.train --config=" in text
    assert "\npython -m pytest -q\n" in text

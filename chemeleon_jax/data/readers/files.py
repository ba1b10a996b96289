"""Which files hold crystals, and who reads them."""

import logging
import os
import re
import stat
import zipfile  # noqa: TID251 -- members are read, none written
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from chemeleon_jax.data.readers import content, records
from chemeleon_jax.data.readers.cif import read_cif
from chemeleon_jax.data.readers.item import Item, unreadable
from chemeleon_jax.data.readers.xyz import read_xyz
from chemeleon_jax.errors import UserError, one_line
from chemeleon_jax.runs import files

READERS: dict[str, Callable[[str, str], list[Item]]] = {
    ".cif": read_cif,
    ".extxyz": read_xyz,
    ".xyz": read_xyz,
    ".json": records.read_json,
    ".jsonl": records.read_json_lines,
    ".ndjson": records.read_json_lines,
    ".csv": records.read_table,
}
ONE_EACH = (".cif", ".extxyz", ".xyz")  # files that are nothing but crystals

logger = logging.getLogger(__name__)


def read_crystals(path: str | Path) -> list[Item]:
    """Crystals in the order of their file, or of the names of files: 1, 2, 10.

    Args:
      path: a directory that `chemeleon_jax.sample` wrote; a file: CIF, extended XYZ,
        JSON, JSON lines or CSV, each also packed by gzip, bzip2 or xz; or a folder or a
        ZIP archive of such files, folders in it included.

    Raises:
      UserError: there is no such file, or it is none of these. A single crystal that
        cannot be read is an `Item` with a problem.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        own = path / "crystals.jsonl"
        items = read_file(own, own.name) if own.is_file() else _read_folder(path)
    elif not path.exists() and not path.is_symlink():
        raise UserError(f"{path}: no such file or directory")
    elif content.kind_of(path) == ".zip":
        items = _read_archive(path)
    else:
        items = read_file(path, one_line(path.name))
    if not items:
        raise UserError(f"{path}: no crystal in it")
    return items


def read_file(path: Path, name: str) -> list[Item]:
    """The crystals of one file.

    Raises:
      UserError: it is no file of crystals, or its records cannot be told apart.
    """
    kind = content.kind_of(path)
    if kind not in READERS:
        raise UserError(
            f"{path}: crystals are read from {', '.join(READERS)} (also .gz, .bz2, "
            ".xz), from a folder or a .zip of such files, or from what "
            "chemeleon_jax.sample wrote"
        )
    try:
        text = content.to_text(content.read_content(path), str(path))
        return READERS[kind](text, name)
    except UserError as error:
        # Of a file inside a folder, only its short name was known to its reader.
        message = str(error)
        if not message.startswith(str(path)):
            message = f"{path}{message.removeprefix(name)}"
        raise UserError(message) from error


# ------------------------------------------------------------- folders and archives


def _read_folder(folder: Path) -> list[Item]:
    paths = list(_files_in(folder))
    if not paths:
        raise UserError(
            f"{folder}: holds no file of crystals ({', '.join(READERS)}, also packed)"
        )
    names = [one_line(path.relative_to(folder).as_posix()) for path in paths]
    readers = [partial(read_file, p, n) for p, n in zip(paths, names, strict=True)]
    return _read_many(names, readers, folder)


def _files_in(folder: Path, visited: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Files of crystals, links followed; no hidden ones, nor results of `evaluate`."""
    real = folder.resolve()
    if real in visited:
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda e: natural(e.name))
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from error
    if any(e.name == "crystals.jsonl" for e in entries):
        yield folder / "crystals.jsonl"  # the same crystals as in its cif/
        return
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        if entry.is_dir():
            if not _is_evaluation(path):
                yield from _files_in(path, visited | {real})
        elif content.kind_of(path) in READERS:
            yield path


def _is_evaluation(folder: Path) -> bool:
    results = ("summary.json", "structures.jsonl")
    finished = all((folder / name).is_file() for name in results)
    return finished or (folder / "partial" / "evaluation.json").is_file()


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts 2 before 10, and a before B."""
    parts = re.split(r"(\d+)", name.casefold())
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p]


def _read_many(
    names: list[str], readers: list[Callable[[], list[Item]]], source: Path
) -> list[Item]:
    """The items of all files, in their order.

    What a file holds that is nothing but crystals is one unreadable item, where the
    file cannot be read; others, which need not hold crystals, are left out with a word.
    """
    items, left_out = [], []
    for name, read in zip(names, readers, strict=True):
        try:
            items += read() or [unreadable("empty", name)]
        except UserError as error:
            reason = str(error).removeprefix(f"{source}/").removeprefix(f"{name}: ")
            if content.kind_of(name) in ONE_EACH:
                items.append(unreadable(reason, name))
            else:
                left_out.append(f"{name}: {reason}")
    if left_out and not items:
        raise UserError(f"{source}: {left_out[0]}")
    if left_out:
        logger.warning(
            "%s: %d of %d files left out; the first: %s",
            *(source, len(left_out), len(names), left_out[0]),
        )
    return items


def _read_archive(path: Path) -> list[Item]:
    """The crystals of a ZIP archive, by the names in it.

    Raises:
      UserError: it is damaged, encrypted, too large, or holds no crystals.
    """
    try:
        with open(path, "rb") as file:
            if problem := files.impostor(file.read(200)):
                raise UserError(f"{path}: {problem}")
        with zipfile.ZipFile(path) as archive:
            names = [e.filename for e in archive.infolist() if _is_member(e)]
            if len(set(names)) < len(names):
                raise UserError(f"{path}: two files in it have one name")
            names.sort(key=natural)
            if not names:
                raise UserError(f"{path}: holds no file of crystals")
            shown = [one_line(name) for name in names]
            readers = [partial(_read_member, archive, name) for name in names]
            return _read_many(shown, readers, path)
    except UserError:
        raise
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: no sound ZIP file ({one_line(error)})") from error


def _is_member(entry: zipfile.ZipInfo) -> bool:
    parts = PurePosixPath(entry.filename).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    link = stat.S_ISLNK(entry.external_attr >> 16)
    known = content.kind_of(entry.filename) in READERS
    return known and not (hidden or link or entry.is_dir())


def _read_member(archive: zipfile.ZipFile, name: str) -> list[Item]:
    shown = one_line(name)
    try:
        with archive.open(name) as file:
            data = file.read(files.MAX_UNPACKED + 1)
    except Exception as error:  # zlib's, and of encryption a RuntimeError
        raise UserError(f"{shown}: cannot be unpacked ({one_line(error)})") from error
    if len(data) > files.MAX_UNPACKED:
        raise UserError(f"{shown}: unpacks to more than {files.MAX_UNPACKED >> 30} GiB")
    text = content.to_text(content.unpack(data, shown), shown)
    return READERS[content.kind_of(name)](text, shown)

"""Files: written whole or not at all, unpacked within bounds, damage found."""

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from chemeleon_jax.errors import UserError

MAX_UNPACKED = 4 << 30  # bytes

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where this package keeps what takes long to make: ~/.cache/chemeleon_jax."""
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        cache = cache or Path.home() / ".cache"
    except RuntimeError:  # nobody's home
        cache = tempfile.gettempdir()
    return Path(cache, "chemeleon_jax")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = tempfile.mkdtemp(dir=path.parent, prefix=".writing-")
    try:
        yield Path(scratch, path.name)
        os.replace(Path(scratch, path.name), path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def refuse_foreign(folder: Path, mark: Path) -> None:
    """Checks that a folder, which is to be emptied, is ours.

    Args:
      folder: that an earlier try may have left.
      mark: the file that it then has put into it.

    Raises:
      UserError: it holds files, and no mark.
    """
    if folder.is_dir() and any(folder.iterdir()) and not mark.is_file():
        raise UserError(
            f"{folder}: holds files that no earlier try has left, and that this one "
            "would remove; give another --out, or move them"
        )


def user_path(path: str | os.PathLike) -> Path:
    """A path as people write it, with ~ for their home.

    Raises:
      UserError: there is no such user, or the path is empty.
    """
    if not os.fspath(path):
        raise UserError("an empty path: name a file or folder, . for this one")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {error}") from error


def impostor(content: bytes) -> str:
    """What lies in the place of a file that was never fetched; empty if it is there."""
    start = content[:200].lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself: run `git lfs pull`"
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not the file itself: download the raw file"
    return ""


def from_cache(path: Path, read: Callable[[Path], Any]) -> Any:
    """What an earlier run has cached, or None: a damaged file is made anew."""
    try:
        return read(path) if path.is_file() else None
    except (UserError, OSError) as error:
        logger.warning("%s: damaged (%s), computed anew", path, error)
        return None


def to_cache(path: Path, write: Callable[[Path], None]) -> None:
    """Caches a file; where nothing can be written, nothing is cached."""
    try:
        with replacing(path) as temporary:
            write(temporary)
    except OSError as error:
        logger.warning("%s: cannot be kept for the next run (%s)", path, error)


def write_json(file: Path, value) -> None:
    """Writes JSON; what it does not know becomes a string."""
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(value, indent=2, default=str) + "\n")


def read_json(file: Path) -> dict:
    """Reads JSON.

    Raises:
      UserError: the file holds something else.
    """
    try:
        return json.loads(file.read_text())
    except ValueError as e:
        raise UserError(f"{file}: not JSON ({e}); delete it or restore it") from e


def read_npz(source: Any, kind: str, needed: Iterable[str] = ()) -> dict[str, Any]:
    """The arrays of an npz file by name, each compared with its checksum.

    Args:
      source: a path, or the bytes of a file.
      kind: what the file should be, for the message: "a data set".
      needed: names of arrays that it must hold.

    Raises:
      UserError: the file is missing or damaged, or lacks an array.
    """
    name = "an embedded file" if isinstance(source, bytes) else source
    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        # NumPy itself reads no further than an array's header says, and so compares
        # no checksum where a damaged header makes the array smaller.
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            arrays = {
                member.removesuffix(".npy"): np.load(
                    io.BytesIO(archive.read(member)), allow_pickle=False
                )
                for member in archive.namelist()
            }
        if len(arrays) != int.from_bytes(content[-12:-10], "little"):
            raise ValueError("the list of its arrays is damaged")
    except Exception as error:  # damage makes zip, zlib and NumPy raise many kinds
        raise UserError(f"{name} cannot be read as {kind}: {error}") from error
    if missing := sorted(set(needed) - arrays.keys()):
        raise UserError(f"{name} is not {kind}: it lacks {', '.join(missing)}")
    return arrays


def read_packaged(file: Any, sha256: str) -> bytes:
    """A file that the package brings along.

    Raises:
      UserError: it is not the one with that SHA-256.
    """
    content = file.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise UserError(
            f"{file} was altered: its SHA-256 is {found}, not {sha256}; install "
            "chemeleon_jax again"
        )
    return content


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Waits until a file, or a directory's list of names, is on the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

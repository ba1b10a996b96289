"""Files that appear at once or not at all, and their checksums."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from chemeleon_jax.errors import UserError


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

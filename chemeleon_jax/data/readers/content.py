"""The bytes of a file: unpacked, and as text.

What a file is shows in its first bytes, whatever its name says.
"""

import bz2
import codecs
import gzip
import io
import lzma
import zipfile  # noqa: TID251 -- members are read, none written
import zlib
from pathlib import Path

from chemeleon_jax.errors import UserError, one_line
from chemeleon_jax.runs import files
from chemeleon_jax.runs.files import impostor

PACKED = (".gz", ".bz2", ".xz")


def _only_member(file: io.BytesIO):
    """The file in a ZIP archive that holds one, as pandas packs a table."""
    archive = zipfile.ZipFile(file)
    names = [n for n in archive.namelist() if not n.startswith("__MACOSX")]
    if len(names) != 1:
        raise ValueError(f"an archive of {len(names)} files, not of one")
    return archive.open(names[0])


OPENERS = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"PK\x03\x04": _only_member,
}
DAMAGED = (OSError, EOFError, ValueError, RuntimeError, zlib.error)
DAMAGED += (lzma.LZMAError, zipfile.BadZipFile)
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins with the mark of UTF-16: before it
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def kind_of(name: str | Path) -> str:
    """The suffix that says what a file is: ".cif" of "mp-22862.v2.CIF.gz"."""
    name = Path(name).name.lower()
    for suffix in PACKED:
        name = name.removesuffix(suffix)
    return Path(name).suffix


def stem_of(name: str | Path) -> str:
    """The name without what `kind_of` gives: "mp-22862.v2"."""
    name = Path(name).name
    for suffix in (*PACKED, kind_of(name)):
        if suffix and name.lower().endswith(suffix):
            name = name[: -len(suffix)]
    return name


def read_content(path: str | Path) -> bytes:
    """The bytes of a file, unpacked.

    Raises:
      UserError: it cannot be read, is damaged, or only stands for the file.
    """
    path = Path(path)
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path}: a link to {path.readlink()}, which is not there")
    if not path.is_file():  # a pipe would be waited for
        raise UserError(f"{path}: no such file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    return unpack(content, str(path))


def unpack(content: bytes, name: str) -> bytes:
    """What gzip, bzip2 or xz packed, or ZIP alone; other bytes as they are.

    Raises:
      UserError: `name` is damaged, holds more than any file of crystals does, or is
        what stands for a file in a repository or on a web page.
    """
    for mark, opener in OPENERS.items():
        if content.startswith(mark):
            try:
                with opener(io.BytesIO(content)) as file:
                    content = file.read(files.MAX_UNPACKED + 1)
            except DAMAGED as error:
                reason = one_line(error)
                raise UserError(f"{name}: packed, and damaged ({reason})") from error
            if len(content) > files.MAX_UNPACKED:
                size = files.MAX_UNPACKED >> 30
                raise UserError(f"{name}: unpacks to more than {size} GiB")
            break
    if problem := impostor(content):
        raise UserError(f"{name}: {problem}")
    return content


def to_text(content: bytes, name: str) -> str:
    r"""The text of a file of any system: UTF-8, or what its byte order mark says.

    Other bytes, of an author's name in Latin-1 say, become replacement characters;
    lines end at \n.

    Raises:
      UserError: it is no text.
    """
    marks = (e for mark, e in BYTE_ORDER_MARKS.items() if content.startswith(mark))
    text = content.decode(next(marks, None) or _guess(content), errors="replace")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        raise UserError(f"{name}: not text, but binary data")
    return text


def _guess(content: bytes) -> str:
    """UTF-16 without a mark has a zero beside each letter; else UTF-8."""
    start = content[:200]
    if len(start) > 1 and not any(start[1::2]):
        return "utf-16-le"
    if len(start) > 1 and not any(start[0::2]):
        return "utf-16-be"
    return "utf-8"

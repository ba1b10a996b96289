"""Extended XYZ: each frame stands for itself.

ASE reads one frame. Where frames begin is found here, so that what is wrong with one
does not reach the others.
"""

import io
import logging
import re
import warnings
from collections.abc import Iterator

import ase.io
import numpy as np
from pymatgen.io.ase import AseAtomsAdaptor

from chemeleon_jax.data.readers.item import Item, checked, parse, unreadable
from chemeleon_jax.errors import UserError

COUNT = re.compile(r"\s*\d{1,9}\s*")  # the whole line
COMMENT = re.compile(r"\bLattice\s*=|\bProperties\s*=")
CELL_VECTOR = re.compile(r"\s*VEC\d")  # ADF's lines below the atoms
FORTRAN = re.compile(r"(?<![\w.])([+-]?\d*\.?\d+|[+-]?\d+\.)[dD]([+-]?\d+)\b")
CHARGE = re.compile(r"([A-Za-z]{1,2})\d*[+-]?\d*")  # "Fe3+", "O2-", "Na1"
LATTICE = re.compile(r"\bLattice\s*=\s*([\"'{\[]).*?[\"'}\]]")
PBC = re.compile(r"\bpbc\s*=\s*[\"'{\[]?[TFtf0-9a-z ]*?[Ff]")  # false along an axis
ISOTOPES = {"D": "H", "T": "H"}
MAX_COLUMNS = 1000  # of a line of atoms
NAMES = ("material_id", "name", "id")  # of a frame, in its comment

logger = logging.getLogger(__name__)


def read_xyz(text: str, name: str) -> list[Item]:
    """The crystals of an extended XYZ file's text: `name:1`, `name:2`, one per frame.

    Raises:
      UserError: it does not begin with an atom count: it is another format.
    """
    lines = text.split("\n")
    first = next((line for line in lines if line.strip()), "")
    if first and not COUNT.fullmatch(first):
        raise UserError(
            f"{name}: no extended XYZ: its first line is no number of atoms"
        )
    frames = list(split_frames(lines))
    if aperiodic := sum(
        not isinstance(f, str) and bool(PBC.search(f[1])) for f in frames
    ):
        logger.warning(
            "%s: %d of %d frames say pbc=F; as crystals, they are read as periodic",
            *(name, aperiodic, len(frames)),
        )
    if len(frames) == 1:
        return [_read(frames[0], name)]
    return [_read(frame, f"{name}:{i}") for i, frame in enumerate(frames, 1)]


def split_frames(lines: list[str]) -> Iterator[list[str] | str]:
    """The lines of each frame, or what is wrong with its shape.

    A frame begins with a line that is a number alone, and ends before the next one.
    Where a frame's own count is damaged, its comment line tells of it.
    """
    i = 0
    while True:
        while i < len(lines) and not lines[i].strip():
            i += 1
        if i >= len(lines):
            return
        start, count = i, int(lines[i])
        i += 2  # past the comment
        while i < len(lines) and not COUNT.fullmatch(lines[i]):
            i += 1
        comment = (lines[start + 1 : start + 2] or [""])[0]
        atoms, extra = _atoms(lines[start + 2 : i], count)
        if len(atoms) == count + sum(map(_is_cell_vector, atoms)):
            yield [lines[start], comment, *atoms]
        else:
            yield f"line {start + 1} says {count} atoms, {len(atoms)} follow"
        for line in extra:
            yield f"no number of atoms above the line {line[:60]!r}"


def _atoms(block: list[str], count: int) -> tuple[list[str], list[str]]:
    """Lines of atoms of a frame, and comment lines of others that follow it."""
    comments = [i for i, line in enumerate(block) if COMMENT.search(line)]
    end = comments[0] if comments else len(block)
    atoms = block[:end]
    if comments and len(atoms) > count:  # one more: the damaged count of the next
        atoms = atoms[:-1]
    while atoms and not atoms[-1].strip():
        atoms.pop()
    return atoms, [block[i] for i in comments]


def _is_cell_vector(line: str) -> bool:
    return bool(CELL_VECTOR.match(line))


def _read(frame: list[str] | str, name: str) -> Item:
    if isinstance(frame, str):
        return unreadable(frame, name)
    return parse(lambda: _crystal(frame), name)


def _crystal(frame: list[str]) -> Item:
    """The crystal of a frame, with the name that its comment gives.

    Raises:
      ValueError: in words, why there is none.
      Exception: of any kind; ASE's.
    """
    count, comment, *atoms = frame
    if int(count) == 0:
        raise ValueError("no atoms")
    column = _species_column(comment)
    atoms = [_plain_symbol(FORTRAN.sub(r"\1e\2", line), column) for line in atoms]
    comment = LATTICE.sub(lambda m: FORTRAN.sub(r"\1e\2", m[0]), comment)
    text = "\n".join([count.strip(), comment, *atoms, ""])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = ase.io.read(io.StringIO(text), index=0, format="extxyz")
        except KeyError as error:
            raise ValueError(f"{error} is no element") from error
    if np.isfinite(found.cell).all() and abs(np.linalg.det(found.cell)) < 1e-6:
        raise ValueError("no cell, or one without volume: Lattice is missing or flat")
    found.pbc = True  # often forgotten by those who write it
    named = next((str(found.info[n]) for n in NAMES if n in found.info), "")
    return checked(AseAtomsAdaptor.get_structure(found))._replace(name=named)


def _species_column(comment: str) -> int | None:
    """Where the symbols stand in a line of atoms."""
    found = re.search(r"\bProperties\s*=\s*\"?([^\s\"]+)", comment)
    column = 0
    fields = found[1].split(":") if found else ["species", "S", "1"]
    if any(size.isdecimal() and int(size[:9]) > MAX_COLUMNS for size in fields[2::3]):
        raise ValueError(f"Properties asks for more than {MAX_COLUMNS} columns")
    for name, size in zip(fields[::3], fields[2::3], strict=False):
        if name == "species":
            return column
        column += int(size[:9]) if size.isdecimal() else 1
    return None


def _plain_symbol(line: str, column: int | None) -> str:
    """The line with "D" as "H" and "Fe3+" as "Fe"."""
    words = line.split()
    if column is not None and column < len(words):
        if found := CHARGE.fullmatch(words[column]):
            words[column] = ISOTOPES.get(found[1].upper(), found[1])
    return " ".join(words)

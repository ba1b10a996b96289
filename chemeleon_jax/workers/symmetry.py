"""Symmetry of crystals by spglib, in worker processes."""

import contextlib
import math
import os
import sys
from typing import NamedTuple

import numpy as np
import spglib
from pymatgen.io.cif import CifWriter
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from chemeleon_jax.workers.matching import Cell, cell_of, to_structure

SYMMETRY_TOLERANCE = 0.1  # Å, spglib's symprec
MAX_ORDER = 48  # of a point group: m-3m


class Sites(NamedTuple):
    """The atoms of a crystal, and what its symmetry does to them."""

    frac_coords: np.ndarray  # [n, 3] that have the symmetry exactly
    rotations: np.ndarray  # [K, 3, 3] int, each operation's inverse, of columns
    images: np.ndarray  # [K, n] int, the atom that each operation takes an atom to


class Symmetrised(NamedTuple):
    """A crystal moved to the positions of its space group."""

    symbol: str  # international
    number: int
    primitive: Cell
    conventional: Cell


def space_group(cell: Cell, tolerance: float = SYMMETRY_TOLERANCE) -> str:
    """International symbol, such as Fm-3m."""
    with without_c_messages():
        return to_structure(cell).get_space_group_info(tolerance)[0]


def space_group_number(cell: Cell) -> int:
    """From 1 to 230."""
    with without_c_messages():
        return to_structure(cell).get_space_group_info(SYMMETRY_TOLERANCE)[1]


def symmetry_degree(cell: Cell, tolerance: float = SYMMETRY_TOLERANCE) -> float:
    """How much symmetry a crystal has: ln(order of its point group) / ln 48.

    From 0, of P1, to 1, of the cubic groups with m-3m. A tolerance in Å.
    """
    return math.log(_order(cell, tolerance)) / math.log(MAX_ORDER)


def whole_group_number(cell: Cell) -> int:
    """`space_group_number` of a cell that all of the group's rotations leave as it is.

    Raises:
      ValueError: it is a supercell, and some of them take it to another one.
    """
    found = {r.tobytes() for r, _ in operations(cell, SYMMETRY_TOLERANCE)}
    if len(found) < _order(cell, SYMMETRY_TOLERANCE):
        raise ValueError("a supercell that has not all of the crystal's symmetry")
    return space_group_number(cell)


def _order(cell: Cell, tolerance: float) -> int:
    """Rotations in the point group of a crystal."""
    with without_c_messages():
        found = SpacegroupAnalyzer(to_structure(cell), tolerance).get_symmetry_dataset()
    # Of the conventional cell: the given one may be a supercell that not all of them
    # leave as it is.
    operations = spglib.get_symmetry_from_database(found.hall_number)
    assert operations is not None, "of a Hall number that spglib itself gave"
    return len({rotation.tobytes() for rotation in operations["rotations"]})


def operations(cell: Cell, tolerance: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rotations and translations of fractional columns that leave a crystal as it is.

    Within a tolerance in Å; the identity alone where spglib finds none.
    """
    with without_c_messages():
        found = spglib.get_symmetry(
            (cell.matrix, cell.frac_coords, cell.atom_types), tolerance
        )
    if found is None:
        return [(np.eye(3, dtype=int), np.zeros(3))]
    return list(zip(found["rotations"], found["translations"], strict=True))


def symmetric_sites(cell: Cell) -> Sites:
    """A crystal's sites under the operations that spglib finds within 0.1 Å.

    Raises:
      ValueError: the operations do not take atoms to atoms.
    """
    coords, found, images = cell.frac_coords, operations(cell, SYMMETRY_TOLERANCE), []
    other = cell.atom_types[:, None] != cell.atom_types
    for rotation, translation in found:
        apart = _to_nearest(coords @ rotation.T + translation - coords[:, None])
        apart = apart.swapaxes(0, 1) @ cell.matrix  # [from, to, 3], Å
        images.append(np.where(other, np.inf, np.linalg.norm(apart, axis=-1)).argmin(1))
    if any(len(np.unique(image)) < len(coords) for image in images):
        raise ValueError("an operation of the space group takes two atoms to one place")
    inverses = [np.rint(np.linalg.inv(rotation)) for rotation, _ in found]
    moves = [
        _to_nearest((coords[image] - translation) @ inverse.T - coords)
        for image, inverse, (_, translation) in zip(
            images, inverses, found, strict=True
        )
    ]
    return Sites(
        coords + np.mean(moves, 0),
        np.array(inverses, np.int8),
        np.array(images, np.int8),
    )


def _to_nearest(coords: np.ndarray) -> np.ndarray:
    """Differences of fractional coordinates, to the nearest image."""
    return coords - np.round(coords)


def symmetrise(task: tuple[Cell, float]) -> Symmetrised:
    """A crystal under the symmetry that it has within a tolerance in Å.

    Raises:
      Exception: spglib finds none.
    """
    cell, tolerance = task
    with without_c_messages():
        found = SpacegroupAnalyzer(to_structure(cell), symprec=tolerance)
        return Symmetrised(
            found.get_space_group_symbol(),
            found.get_space_group_number(),
            cell_of(found.get_primitive_standard_structure()),
            cell_of(found.get_conventional_standard_structure()),
        )


def symmetric_cif(task: tuple[Cell, float]) -> str:
    """CIF of a crystal, with the symmetry that it has within a tolerance in Å.

    Raises:
      Exception: spglib finds none.
    """
    cell, tolerance = task
    with without_c_messages():
        return str(CifWriter(to_structure(cell), symprec=tolerance))


@contextlib.contextmanager
def without_c_messages():
    """Keeps what a library in C prints of a crystal off the terminal of all."""
    sys.stderr.flush()
    with open(os.devnull, "w") as nowhere:
        terminal = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)

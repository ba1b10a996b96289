"""Which crystals are the same under pymatgen's StructureMatcher."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from chemeleon_jax.workers.amd import average_minimum_distance
from chemeleon_jax.workers.elongation import check_elongation
from chemeleon_jax.workers.prefilter import LENGTH_TOL, may_fit


@cache
def _matcher(length_tol: float) -> StructureMatcher:
    return StructureMatcher(ltol=length_tol)  # and the defaults: stol 0.3, angle_tol 5


class Cell(NamedTuple):
    """One crystal without padding, as it travels to a worker."""

    matrix: np.ndarray  # [3, 3] lattice vectors as rows, Å
    atom_types: np.ndarray  # [n]    atomic numbers
    frac_coords: np.ndarray  # [n, 3]


def to_structure(cell: Cell) -> Structure:
    """The crystal as a pymatgen Structure."""
    return Structure(Lattice(cell.matrix), cell.atom_types.tolist(), cell.frac_coords)


def cell_of(structure: Structure) -> Cell:
    """The arrays of a structure, for a worker."""
    types = np.array(structure.atomic_numbers)
    return Cell(structure.lattice.matrix, types, structure.frac_coords)


def reduce_cell(cell: Cell) -> Cell:
    """Primitive cell of the Niggli cell: what StructureMatcher compares.

    Done once per crystal here, it is done for each pair in `StructureMatcher.fit`.

    Raises:
      ValueError: a cell too elongated to be reduced.
    """
    structure = to_structure(cell)
    check_elongation(structure.lattice)
    return cell_of(structure.get_reduced_structure().get_primitive_structure())


def fits(one: Cell, other: Cell, length_tol: float = LENGTH_TOL) -> bool:
    """`StructureMatcher().fit` of two reduced cells of the same reduced formula.

    `length_tol` may be less than the default, whose prefilter is used, but not more.
    """
    return may_fit(one, other) and _matcher(length_tol).fit(
        to_structure(one), to_structure(other), skip_structure_reduction=True
    )


def is_same(cells: tuple[Cell, Cell]) -> bool:
    """Whether two crystals are one under `StructureMatcher`, reduced or not."""
    return fits(*map(reduce_cell, cells))


Fit = Callable[[Cell, Cell], bool]  # of two reduced cells of one formula


def fits_any(crystals: tuple[Cell, list[Cell], bool], fit: Fit = fits) -> bool:
    """Whether a reduced crystal matches one of others with the same reduced formula.

    The flag says whether the crystal is the first argument of `StructureMatcher.fit`,
    which is not quite symmetric.
    """
    cell, others, first = crystals
    return any(fit(cell, c) if first else fit(c, cell) for c in others)


def first_of_groups(cells: list[Cell], fit: Fit = fits) -> list[bool]:
    """Which reduced crystals of one formula start a group, in order.

    As `StructureMatcher.group_structures`: a crystal joins the first group whose first
    member it matches.
    """
    firsts: list[Cell] = []
    flags = []
    for cell in cells:
        flags.append(not any(fit(first, cell) for first in firsts))
        if flags[-1]:
            firsts.append(cell)
    return flags


def amd_of_cell(cell: Cell) -> np.ndarray:
    """AMD vector of a crystal, [100], Å."""
    return average_minimum_distance(cell.matrix, cell.frac_coords)

"""Second derivatives between a cell and its supercell, by those of few of its atoms.

Atoms that a symmetry takes into each other have the same derivatives, turned.
"""

from typing import NamedTuple

import numpy as np
from pymatgen.core import Lattice, Structure

from chemeleon_jax.potentials.hessian import second_derivatives
from chemeleon_jax.potentials.stiffness import STRAINS
from chemeleon_jax.potentials.types import Potential
from chemeleon_jax.workers.matching import cell_of
from chemeleon_jax.workers.symmetry import operations

SAME = 0.002  # Å within which a symmetry must hold


class ForceConstants(NamedTuple):
    """Of n atoms of a cell, N of its supercell. Strains in the basis `STRAINS`."""

    atom_atom: np.ndarray  # [3 n, 3 N] eV/Å^2
    atom_strain: np.ndarray  # [3 n, 6] eV/Å
    strain_strain: np.ndarray  # [6, 6] eV, of the cell


class Symmetry(NamedTuple):
    """An operation that takes a supercell into itself."""

    rotation: np.ndarray  # [3, 3], of Cartesian columns
    image: np.ndarray  # [n] atom of the cell that each becomes an equal of
    to: np.ndarray  # [n, N]: with atom i of the cell, where those of the supercell go


def repeat(structure: Structure, size: tuple[int, int, int]) -> Structure:
    """A supercell: the atoms of the cell first, then those of each further cell."""
    cells = np.array(list(np.ndindex(*size)))
    frac = (cells[:, None] + structure.frac_coords[None]) / np.array(size)
    lattice = structure.lattice.matrix * np.array(size)[:, None]
    species = list(structure.species) * len(cells)
    return Structure(Lattice(lattice), species, frac.reshape(-1, 3))


def force_constants(
    structure: Structure, size: tuple[int, int, int], potential: Potential
) -> ForceConstants:
    """Second derivatives of a crystal's energy, its atoms ordered as in `repeat`.

    Only one of the atoms that symmetry makes equal, within `SAME`, is differentiated;
    the strain is so in the cell itself, where it costs little.

    Args:
      structure: a cell of n atoms.
      size: of the supercell, of N atoms.
      potential: a network in JAX.

    Raises:
      ValueError: the potential has no second derivatives there.
    """
    n = len(structure)
    sources = find_sources(n, find_symmetries(structure, size))
    chosen = sorted({i for i, _ in sources})
    rows = [3 * i + axis for i in chosen for axis in range(3)]
    some = second_derivatives(repeat(structure, size), potential, rows).hessian
    found = dict(zip(chosen, some.reshape(len(chosen), 3, -1), strict=True))
    strain = second_derivatives(structure, potential, range(3 * n, 3 * n + 6)).hessian
    atom_atom = np.zeros((n, 3, n * np.prod(size), 3))
    atom_strain = np.zeros((n, 3, 6))
    for j, (i, symmetry) in enumerate(sources):
        turn, springs = symmetry.rotation, found[i][:, :-6].reshape(3, -1, 3)
        turned = np.einsum("xa,akb,yb->xky", turn, springs, turn)
        atom_atom[j][:, symmetry.to[i]] = turned
        atom_strain[j] = turn @ found[i][:, -6:] @ _turn_strains(turn)
    return ForceConstants(
        atom_atom.reshape(3 * n, -1), atom_strain.reshape(3 * n, 6), strain[:, -6:]
    )


def find_sources(n: int, symmetries: list[Symmetry]) -> list[tuple[int, Symmetry]]:
    """For each of n atoms one that a symmetry takes to it, as few in all as can be."""
    sources: dict[int, tuple[int, Symmetry]] = {}
    for i in range(n):
        if i not in sources:
            for symmetry in symmetries:
                sources.setdefault(int(symmetry.image[i]), (i, symmetry))
    return [sources[j] for j in range(n)]


def find_symmetries(structure: Structure, size: tuple[int, int, int]) -> list[Symmetry]:
    """The operations of a crystal that take its supercell into itself.

    The identity alone where spglib finds no others.
    """
    n, repeats = len(structure), np.array(size)
    frac, vectors = structure.frac_coords, structure.lattice.matrix.T
    cells = np.array(list(np.ndindex(*size)))
    found = []
    for rotation, shift in operations(cell_of(structure), SAME):
        on_supercell = rotation * repeats / repeats[:, None]
        if not np.allclose(on_supercell, np.round(on_supercell)):
            continue
        moved = frac @ rotation.T + shift
        apart = moved[:, None] - frac
        off = np.linalg.norm((apart - np.round(apart)) @ vectors.T, axis=-1)
        image = off.argmin(1)
        jump = np.round(moved - frac[image]).astype(int)  # cells that each atom crosses
        # Of every atom, seen from where each atom of the cell has gone.
        cell = (cells @ rotation.T)[None, :, None] + jump - jump[:, None, None]
        at = np.ravel_multi_index(tuple(np.moveaxis(cell % repeats, -1, 0)), size)
        to = (at * n + image).reshape(n, -1)
        turn = vectors @ rotation @ np.linalg.inv(vectors)
        found.append(Symmetry(turn, image, to))
    return found


def _turn_strains(rotation: np.ndarray) -> np.ndarray:
    """[6, 6] that takes rows in the basis `STRAINS` to those of a turned crystal."""
    return np.einsum("kij,ai,bj,lab->kl", STRAINS, rotation, rotation, STRAINS)

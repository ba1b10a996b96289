"""Frequencies of a crystal's vibrations, at the wave vectors that fit a supercell.

The force constants between an atom of the cell and all of the supercell give the
dynamical matrix at every such wave vector, exactly. NumPy.
"""

from collections.abc import Iterator

import numpy as np
from pymatgen.core import Element, Structure

EDGE = 8.0  # Å that the edges of a supercell reach, where the atoms allow it
MAX_ATOMS = 80  # of a supercell
# THz of a mode whose square in 2 pi / s is 1 eV/Å^2 per atomic mass unit.
THZ = 15.633302


def supercell_size(structure: Structure) -> tuple[int, int, int]:
    """How often a cell is repeated along each of its vectors.

    Evenly often, so that modes with opposite phases in neighbouring cells fit: the
    smallest such supercell whose edges reach `EDGE`. Where that has more than
    `MAX_ATOMS` atoms, the longest edges give way.
    """
    edges = np.array(structure.lattice.abc)
    size = np.maximum(2 * np.ceil(EDGE / (2 * edges) - 0.01), 2).astype(int)
    while np.prod(size) * len(structure) > MAX_ATOMS and size.max() > 1:
        longest = int(np.where(size > 1, size * edges, 0.0).argmax())
        size[longest] = max(size[longest] - 2, 1)
    return tuple(size.tolist())


def with_sum_rule(constants: np.ndarray) -> tuple[np.ndarray, float]:
    """Force constants under which a translation of the whole crystal costs nothing.

    Args:
      constants: [3 n, 3 N] eV/Å^2, between the atoms of a cell, which are the first n,
        and those of its supercell.

    Returns:
      The same with the atoms' own corrected, and the largest correction, eV/Å^2.
    """
    n = len(constants) // 3
    excess = constants.reshape(n, 3, -1, 3).sum(2)  # [n, 3, 3]
    corrected = constants.copy().reshape(n, 3, -1, 3)
    corrected[range(n), :, range(n)] -= excess
    return corrected.reshape(constants.shape), float(np.abs(excess).max())


def frequencies(
    constants: np.ndarray, atom_types, size: tuple[int, int, int]
) -> np.ndarray:
    """Frequencies at the wave vectors that fit a supercell.

    Args:
      constants: [3 n, 3 N] eV/Å^2, that obey the sum rule; atoms as in `repeat`.
      atom_types: [n] atomic numbers.
      size: of the supercell.

    Returns:
      [Q, 3 n] THz, ascending; below zero, imaginary. The first wave vector is Gamma;
      the three translations there, which cost nothing, are NaN, and come last.
    """
    found = []
    for q, matrix in _dynamical_matrices(constants, _masses(atom_types), size):
        squares = np.linalg.eigvalsh(matrix)
        if not q.any():  # three zeros among them, but for rounding
            squares[np.argsort(np.abs(squares))[:3]] = np.nan
            squares = np.sort(squares)
        found.append(np.sign(squares) * np.sqrt(np.abs(squares)) * THZ)
    return np.array(found)


def softest_mode(
    constants: np.ndarray, atom_types, size: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """How atoms move in the mode with the lowest frequency; see `frequencies`.

    Translations count, as zero: of a crystal that is stable they are the softest.

    Returns:
      Its wave vector q [3], in reduced coordinates, and complex displacements u [n, 3]:
      those in the cell R are the real parts of u exp(2 pi i q R). Their phase is the
      one in which most of them is real.
    """
    mass = _masses(atom_types)
    modes = []
    for q, matrix in _dynamical_matrices(constants, mass, size):
        squares, vectors = np.linalg.eigh(matrix)
        modes.append((squares[0], q, vectors[:, 0]))
    _, q, vector = min(modes, key=lambda mode: mode[0])
    moves = vector / np.sqrt(mass)
    moves = moves * np.exp(-0.5j * np.angle((moves**2).sum()))
    return q, moves.reshape(-1, 3)


def _masses(atom_types) -> np.ndarray:
    """[3 n] atomic mass units."""
    return np.repeat([float(Element.from_Z(int(z)).atomic_mass) for z in atom_types], 3)


def _dynamical_matrices(
    constants: np.ndarray, mass: np.ndarray, size: tuple[int, int, int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each wave vector [3] that fits, and its Hermitian matrix [3 n, 3 n]."""
    n = len(mass) // 3
    cells = np.array(list(np.ndindex(*size)))
    by_cell = constants.reshape(3 * n, len(cells), 3 * n)
    translations = np.sqrt(mass)[:, None] * np.tile(np.eye(3), (n, 1))
    translations = np.linalg.qr(translations)[0]
    across = np.eye(3 * n) - translations @ translations.T
    for q in cells / np.array(size):
        phase = np.exp(2j * np.pi * cells @ q)
        matrix = np.einsum("irj,r->ij", by_cell, phase)
        matrix = matrix / np.sqrt(mass[:, None] * mass)
        if not q.any():
            matrix = across @ matrix @ across
        yield q, (matrix + matrix.conj().T) / 2

"""Elastic stiffness of a crystal, its atoms free to follow the strain. NumPy.

Voigt's order: xx, yy, zz, yz, xz, xy, shear strains twice the tensor's components.
"""

from typing import NamedTuple

import numpy as np

GPA = 160.21766  # eV/Å^3
RIGID = 1e-3  # eV/Å^2: modes of the atoms softer than this take no part
# From the orthonormal basis `STRAINS` of symmetric matrices to Voigt's strains.
_VOIGT = np.array([1, 1, 1, *[np.sqrt(0.5)] * 3])


class Stiffness(NamedTuple):
    """How a crystal answers a strain."""

    matrix: np.ndarray  # [6, 6] GPa, in Voigt's notation
    lowest: float  # GPa, the lowest eigenvalue of the tensor
    softest: np.ndarray  # [6] its strain, in the basis `STRAINS`
    bulk: float  # GPa, Hill's mean of Voigt's and Reuss's
    shear: float  # GPa


def stiffness(
    atom_atom: np.ndarray, atom_strain: np.ndarray, strain_strain, volume: float
) -> Stiffness:
    """Stiffness with the contribution of atoms that relax under the strain.

    C = (E_ee - E_eu E_uu^+ E_ue) / V, of the second derivatives in strain e and
    displacements u at Gamma (Wu, Vanderbilt and Hamann, PRB 72, 035105, 2005). A
    crystal is elastically stable if all eigenvalues of C as a tensor are above zero
    (Mouhat and Coudert, PRB 90, 224104, 2014).

    Args:
      atom_atom: [3 n, 3 n] eV/Å^2, that obeys the sum rule.
      atom_strain: [3 n, 6] eV/Å, strains in the orthonormal basis `STRAINS`.
      strain_strain: [6, 6] eV.
      volume: Å^3 of the cell.
    """
    values, modes = np.linalg.eigh((atom_atom + atom_atom.T) / 2)
    free = np.abs(values) > RIGID
    coupling = modes[:, free].T @ atom_strain
    tensor = strain_strain - coupling.T @ (coupling / values[free, None])
    tensor = (tensor + tensor.T) / 2 / volume * GPA
    values, strains = np.linalg.eigh(tensor)
    matrix = tensor * _VOIGT[:, None] * _VOIGT
    return Stiffness(matrix, float(values[0]), strains[:, 0], *_hill(matrix))


def _hill(c: np.ndarray) -> tuple[float, float]:
    """Bulk and shear modulus (Hill, Proc. Phys. Soc. A 65, 349, 1952)."""
    s = np.linalg.inv(c)
    bulk = c[:3, :3].sum() / 9, 1 / s[:3, :3].sum()
    direct, shears = np.trace(c[:3, :3]), np.trace(c[3:, 3:])
    across = (c[:3, :3].sum() - direct) / 2
    voigt = (direct - across + 3 * shears) / 15
    direct, shears = np.trace(s[:3, :3]), np.trace(s[3:, 3:])
    across = (s[:3, :3].sum() - direct) / 2
    reuss = 15 / (4 * direct - 4 * across + 3 * shears)
    return float(np.mean(bulk)), float((voigt + reuss) / 2)

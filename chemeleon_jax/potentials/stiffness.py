"""A model of how stiff a crystal is: springs between atoms that are near each other.

They are strong up to the sum of the covalent radii and fade beyond it, as in the
preconditioner of Packwood et al., J. Chem. Phys. 144, 164109 (2016), and the model
Hessian of Lindh et al., Chem. Phys. Lett. 241, 423 (1995). The cell is among the
degrees of freedom, coupled to the atoms. Only the pattern counts: the scale is learnt
on the way.
"""

import ase.data
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

STRETCH, FADE = 5.0, 7.0  # eV/Å^2 at the sum of the radii; e-fold less at 8/7 of it
STIFFEST = 50.0  # eV/Å^2, of atoms too close together
BEND = 0.3  # stiffness of a spring sideways, by that lengthwise
ANCHOR, CELL_ANCHOR = 0.2, 1.0  # eV/Å^2 of an atom; eV per atom of the cell

_RADII = np.array(ase.data.covalent_radii, np.float32)  # Å (Cordero et al., 2008)
# Of two opposite images one, the first half and the cell itself: a pair from its other
# end is the same pair.
_IMAGES = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), -1).reshape(-1, 3)
_IMAGES = _IMAGES[:14]
_WEIGHTS = np.array([1.0] * 13 + [0.5], np.float32)  # in the cell itself it has both
_ROOT = np.sqrt(0.5)


def _symmetric_matrices() -> np.ndarray:
    """An orthonormal basis of the symmetric matrices, [6, 3, 3]."""
    basis = np.zeros((6, 3, 3), np.float32)
    basis[range(3), range(3), range(3)] = 1
    for k, (i, j) in enumerate(((1, 2), (0, 2), (0, 1)), start=3):
        basis[k, i, j] = basis[k, j, i] = _ROOT
    return basis


STRAINS = _symmetric_matrices()


def model_hessian(frac_coords, lattice, atom_types, mask) -> jax.Array:
    """Second derivatives of the springs' energy, of one crystal.

    A pair at a distance r stores (k / 2) |d|^2 for a stretch d along it, and `BEND` of
    that sideways: k = `STRETCH` exp(-`FADE` (r / r0 - 1)), r0 the sum of the radii.

    Args:
      frac_coords: [N, 3].
      lattice: [3, 3] in Å.
      atom_types: [N].
      mask: [N].

    Returns:
      [3 N + 6, 3 N + 6], positive definite: of displacements of the atoms in Å, atom by
      atom, and of a symmetric strain in the basis `STRAINS`. eV/Å^2, eV/Å and eV.
    """
    n = len(frac_coords)
    between = frac_coords[None] - frac_coords[:, None]
    between = between - jnp.round(between)  # [N, N, 3]
    radius = jnp.asarray(_RADII)[atom_types]
    ideal = radius[:, None] + radius[None]
    eye = jnp.eye(3)

    def add(total, image_and_weight):
        image, weight = image_and_weight
        coupled, pull, cell = total
        vector = (between + image[None, None]) @ lattice
        distance = jnp.sqrt((vector**2).sum(-1) + 1e-12)
        spring = jnp.minimum(
            STRETCH * jnp.exp(-FADE * (distance / ideal - 1)), STIFFEST
        )
        pair = mask[:, None] & mask[None] & (distance > 0.1)  # not an atom and itself
        spring = jnp.where(pair, weight * spring, 0.0)[..., None, None]
        square = vector[..., :, None] * vector[..., None, :]
        along = square / (distance**2)[..., None, None]
        stiffness = spring * ((1 - BEND) * along + BEND * eye[None, None])
        moment = stiffness[..., None] * vector[:, :, None, None]  # [N, N, 3, 3, 3]
        coupled += stiffness + stiffness.swapaxes(0, 1)
        pull += moment.sum(1) - moment.sum(0)
        cell += jnp.einsum("ijab,ijcd->abcd", stiffness, square)
        return (coupled, pull, cell), None

    nothing = jnp.zeros((n, n, 3, 3)), jnp.zeros((n, 3, 3, 3)), jnp.zeros([3] * 4)
    images = jnp.asarray(_IMAGES), jnp.asarray(_WEIGHTS)
    (coupled, pull, cell), _ = lax.scan(add, nothing, images)
    # What a strain does to a vector: of the second index, or of the last two.
    pull = jnp.einsum("iabc,kbc->ika", pull, STRAINS)
    cell_cell = jnp.einsum("abcd,kac,lbd->kl", cell, STRAINS, STRAINS)

    atoms = jnp.arange(n)
    coupled = coupled.at[atoms, atoms].set(0.0)  # images of an atom move with it
    on_site = coupled.sum(1) + ANCHOR * eye[None]
    atom_atom = (-coupled).at[atoms, atoms].add(on_site)
    atom_atom = atom_atom.transpose(0, 2, 1, 3).reshape(3 * n, 3 * n)
    atom_cell = -pull.transpose(0, 2, 1).reshape(3 * n, 6)
    cell_cell += CELL_ANCHOR * mask.sum() * jnp.eye(6)
    return jnp.block([[atom_atom, atom_cell], [atom_cell.T, cell_cell]])


def invert(matrix) -> jax.Array:
    """Inverse of a symmetric, positive definite matrix [D, D].

    By Gauss-Jordan elimination, which needs no pivots then. `data.lattice.inverse` says
    why not by `jnp.linalg.inv`.
    """

    def eliminate(k, x):
        column, row = x[:, k], x[k] / x[k, k]
        pivot = jnp.arange(len(x)) == k
        x = jnp.where(pivot[:, None], row[None], x - column[:, None] * row[None])
        scaled = jnp.where(pivot, 1.0, -column) / column[k]
        return jnp.where(pivot[None], scaled[:, None], x)

    return lax.fori_loop(0, len(matrix), eliminate, matrix)

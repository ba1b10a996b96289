"""Second derivatives of a crystal's energy, in its atoms and its cell.

By automatic differentiation, forward over reverse, of a network in JAX: exact for the
graph of the crystal, whose edges fade out at the cutoff and so may be held fixed.
Directions go through a compiled function a few at a time, so that one compilation
serves crystals of any size that fit into its graph.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pymatgen.core import Structure

from chemeleon_jax.data.crystals import wrap
from chemeleon_jax.data.lattice import inverse
from chemeleon_jax.potentials.batches import PADDING_CELL, GraphPotential
from chemeleon_jax.potentials.graph import next_chunk
from chemeleon_jax.potentials.single import smallest_layout
from chemeleon_jax.potentials.stiffness import STRAINS
from chemeleon_jax.potentials.types import Potential

DIRECTIONS = 3  # at once: of one atom; more are not faster, and take memory


class SecondDerivatives(NamedTuple):
    """Of the energy of N atoms, some rows. Strains in the basis `STRAINS`."""

    gradient: np.ndarray  # [3 N + 6] eV/Å on the atoms, eV on the strain
    hessian: np.ndarray  # [M, 3 N + 6] eV/Å^2, eV/Å and eV


def second_derivatives(
    structure: Structure, potential: Potential, rows: Sequence[int] | None = None
) -> SecondDerivatives:
    """Gradient and rows of the Hessian of a crystal's energy.

    Displacements are in Å before a strain e, which takes positions and lattice vectors
    x to x (1 + e + e^2 / 2), as in `relax`.

    Args:
      structure: an ordered crystal of N atoms.
      potential: a network in JAX.
      rows: those that are wanted, at least one; all 3 N + 6 by default, 3 of each atom
        and then those of the strain.

    Raises:
      ValueError: the potential has no energy for it, or it has too many neighbours.
    """
    if potential.network is None:
        raise ValueError(f"{potential.name} is no network in JAX")
    model, params = potential.network
    graph, width = _single_graph(model, structure)
    frac = np.zeros((width, 3), np.float32)
    frac[: len(structure)] = wrap(structure.frac_coords)
    lattice = np.asarray(structure.lattice.matrix, np.float32)
    kept = np.array([*range(3 * len(structure)), *range(3 * width, 3 * width + 6)])
    wanted = kept if rows is None else kept[list(rows)]
    found, gradient = [], np.zeros(0)
    for start in range(0, len(wanted), DIRECTIONS):
        some = wanted[start : start + DIRECTIONS]
        directions = np.zeros((DIRECTIONS, 3 * width + 6), np.float32)
        directions[range(len(some)), some] = 1
        gradient, changes = jax.device_get(
            _differentiate(model.graph_energy, params, graph, frac, lattice, directions)
        )
        found.append(changes[: len(some), kept])
    hessian = np.concatenate(found).astype(float)
    result = SecondDerivatives(gradient[kept].astype(float), hessian)
    if not all(np.isfinite(x).all() for x in result):
        raise ValueError("second derivatives are not finite")
    return result


def _single_graph(model: GraphPotential, structure: Structure):
    """The graph of one crystal, in the smallest of a few sizes, and its atoms."""
    layout = smallest_layout(model, structure)
    graph, _, _ = next_chunk(
        0,
        np.array(structure.atomic_numbers)[None],
        wrap(structure.frac_coords)[None].astype(float),
        np.array(structure.lattice.matrix, order="C")[None],
        np.ones((1, len(structure)), bool),
        capacity=layout,
    )
    return graph, layout.sizes[0]


@partial(jax.jit, static_argnums=0)
def _differentiate(graph_energy, params, graph, frac_coords, lattice, directions):
    """Gradient [3 A + 6], and its change along directions [D, 3 A + 6]."""
    to_frac = inverse(lattice)
    real = graph.atom_crystal == 0
    at = frac_coords[jnp.where(real, graph.atom_slot, len(frac_coords) - 1)]

    def energy(x):
        moves, strain = x[:-6].reshape(-1, 3), jnp.einsum("k,kij->ij", x[-6:], STRAINS)
        cell = lattice @ (jnp.eye(3) + strain + 0.5 * strain @ strain)
        cells = jnp.stack([cell, PADDING_CELL * jnp.eye(3)])
        moved = at + jnp.where(real[:, None], moves @ to_frac, 0.0)
        return graph_energy(params, graph, moved, cells)[0] * real.sum()

    zero = jnp.zeros(directions.shape[1])
    gradient = jax.grad(energy)
    along = jax.vmap(lambda d: jax.jvp(gradient, (zero,), (d,)))
    gradients, changes = along(directions)
    return gradients[0], changes

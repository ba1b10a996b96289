"""A potential of few numbers with derivatives: Morse's, over the edges of a graph."""

import jax
import jax.numpy as jnp

from chemeleon_jax.potentials.batches import GraphPotential, energies
from chemeleon_jax.potentials.graph import Capacity
from chemeleon_jax.potentials.types import Potential

DEPTH, STEEPNESS, LENGTH = 0.2, 1.6, 2.8  # eV, 1/Å, Å
SMALL = Capacity(crystals=9, atoms=64, edges=4096, bonds=1024, angles=16384)


def graph_energy(params, graph, frac_coords, lattice):
    shift = frac_coords[graph.edge_second] - frac_coords[graph.edge_first]
    cell = lattice[graph.atom_crystal[graph.edge_first]]
    vector = jnp.einsum("ei,eij->ej", shift + graph.edge_image, cell)
    distance = jnp.sqrt((vector**2).sum(-1))
    fade = jnp.where(distance < 6.0, (1 - (distance / 6.0) ** 2) ** 3, 0.0)
    bond = jnp.exp(-params["steepness"] * (distance - LENGTH))
    energy = DEPTH * (bond**2 - 2 * bond) * fade
    crystal = graph.atom_crystal[graph.edge_first]
    total = jax.ops.segment_sum(energy, crystal, len(lattice))
    atoms = jnp.ones_like(graph.atom_crystal, frac_coords.dtype)
    count = jax.ops.segment_sum(atoms, graph.atom_crystal, len(lattice))
    return total / jnp.maximum(count, 1)


def morse():
    network = GraphPotential(graph_energy, SMALL), {"steepness": STEEPNESS}
    return Potential(
        "morse",
        "morse",
        lambda crystals: energies(*network, crystals),
        network=network,
    )

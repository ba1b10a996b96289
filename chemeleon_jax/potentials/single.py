"""Graphs for one crystal: no larger than it needs.

A packed graph has room for some 28 crystals of up to 20 atoms, and to evaluate it costs
as much if it holds one of them.
"""

from functools import lru_cache, partial

import numpy as np
from pymatgen.core import Structure

from chemeleon_jax.data.crystals import wrap
from chemeleon_jax.potentials import batches
from chemeleon_jax.potentials.batches import GraphPotential
from chemeleon_jax.potentials.graph import Layout
from chemeleon_jax.potentials.types import Potential, Status, per_device

SCALES = (1 / 16, 0.25, 0.5, 1.0, 2.0, 4.0)  # of the default graph: few compilations
ROOM = 1.5  # times what a crystal asks for as it is: on its way it may become denser


def smallest_layout(
    model: GraphPotential, structure: Structure, room: float = 1.0
) -> Layout:
    """The smallest of a few sizes that a crystal fits into, with so much room.

    Raises:
      ValueError: it fits into none.
    """
    arrays = (
        np.array(structure.atomic_numbers),
        wrap(structure.frac_coords).astype(float),
        np.array(structure.lattice.matrix, order="C"),
    )
    status = Status.TOO_DENSE
    for scale in SCALES:
        layout = model.capacity.for_one(scale)
        status, _, sizes = layout.find(*arrays)
        if status == Status.OK and (room * np.array(sizes) < layout.sizes).all():
            return layout
    raise ValueError(f"no graph: {Status(status).name.lower()}")


def for_one(potential: Potential, structure: Structure) -> Potential:
    """The potential, on graphs for one crystal of this size each.

    Without corrections: its energies compare crystals of one composition. A crystal
    that no size holds has no energy by it; a potential that is no network in JAX is
    returned as it is.
    """
    if potential.network is None:
        return potential
    model, _ = potential.network
    try:
        layout = smallest_layout(model, structure, ROOM)
    except ValueError:
        layout = model.capacity.for_one(SCALES[-1])
    return _on_graphs(potential, layout)


@lru_cache
def _on_graphs(potential: Potential, layout: Layout) -> Potential:
    """One object for each size: what is compiled is kept by it."""
    assert potential.network is not None
    model, params = potential.network
    model = model._replace(capacity=layout, small=None)
    return Potential(
        potential.name,
        potential.digest,
        per_device(partial(batches.energies, model, params)),
        network=potential.network,
    )

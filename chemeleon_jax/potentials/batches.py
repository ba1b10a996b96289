"""Energies of whole batches from a potential that evaluates one packed graph.

The host packs as many crystals as fit into one graph, the device evaluates it, and so
on to the end of the batch. So the arithmetic follows the real size of the graphs, and
one compilation serves every batch.

For gradients on a CPU the graphs are small, so that what they need again stays in its
cache, and only crystals that do not fit into such a graph are packed into large ones.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.devices.host import call_host
from chemeleon_jax.potentials.graph import Layout, next_chunk
from chemeleon_jax.potentials.types import Status

# eV/atom. Elements lie above -15 by PBE; what a network puts below has atoms so close
# together that it knows nothing of them, and is a hole that a relaxation falls into.
LOWEST = -25.0
PADDING_CELL = 20.0  # Å; longer than the cutoff, so that padding has no weight


class GraphPotential(NamedTuple):
    """What evaluates a packed graph; static under jit.

    `graph_energy(params, graph, frac_coords, lattice)` takes coordinates [A, 3] of the
    graph's atoms and cells [C, 3, 3], of which the last belongs to the padding and is
    longer than the cutoff. It returns energies [C], eV/atom, that can be differentiated
    by coordinates and cells. Slots without a crystal may hold any finite number.
    """

    graph_energy: Callable[..., jax.Array]
    capacity: Layout
    small: Layout | None = None  # for gradients on a CPU, where a crystal fits in


def energies(potential: GraphPotential, params, crystals: CrystalBatch):
    """Energies of a batch; jits, and never raises on a crystal's account.

    A crystal that does not fit into a graph by itself has status `TOO_DENSE`.

    Args:
      potential: static.
      params: of its network.
      crystals: `CrystalBatch` [B, N].

    Returns:
      energy: [B], eV/atom, NaN where the status is not OK. Differentiable in the
        coordinates and cell parameters of the crystals whose energy is finite.
      status: [B] int32, a `Status`.
    """
    crystals.assert_shapes()
    frac = crystals.frac_coords - jnp.floor(crystals.frac_coords)
    return batch_energy(
        potential,
        params,
        frac,
        jnp.asarray(crystals.lattice, frac.dtype),
        jnp.asarray(crystals.atom_types),
        jnp.asarray(crystals.mask),
    )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def batch_energy(
    potential: GraphPotential, params, frac_coords, lattice, atom_types, mask
):
    """`energies` with the lattice vectors [B, 3, 3] as an argument, for stresses.

    Coordinates are in [0, 1]. The weights are constants to a gradient.
    """

    def body(carry, graph, rows, status):
        at = _gather(graph, rows, frac_coords, lattice)
        return _fill_in(carry, potential.graph_energy(params, graph, *at), rows, status)

    init = _no_energies(len(lattice))
    return _for_each_chunk(
        potential._replace(small=None),
        body,
        init,
        frac_coords,
        lattice,
        atom_types,
        mask,
    )


def _batch_energy_fwd(potential, params, frac_coords, lattice, atom_types, mask):
    # A while loop has no reverse mode, and crystals need none: each has a gradient of
    # its own, found with its energy, and a cotangent only scales it.
    def body(carry, graph, rows, status):
        def total(frac_coords, lattice):
            at = _gather(graph, rows, frac_coords, lattice)
            value = potential.graph_energy(params, graph, *at)
            return jnp.where(status == Status.OK, value, 0.0).sum(), value

        differentiate = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
        (_, value), gradient = differentiate(frac_coords, lattice)
        found, sums = carry
        return (
            _fill_in(found, value, rows, status),
            jax.tree.map(jnp.add, sums, gradient),
        )

    zeros = jnp.zeros_like(frac_coords), jnp.zeros_like(lattice)
    init = _no_energies(len(lattice)), zeros
    found, gradient = _for_each_chunk(
        potential, body, init, frac_coords, lattice, atom_types, mask
    )
    return found, (gradient, found[1] == Status.OK)


def _batch_energy_bwd(_, residuals, cotangents):
    gradient, found = residuals
    weight = jnp.where(found, cotangents[0], 0.0)[:, None, None]
    # A crystal that failed may have a gradient that is not finite.
    scaled = [jnp.where(found[:, None, None], weight * g, 0.0) for g in gradient]
    return None, *scaled, None, None


batch_energy.defvjp(_batch_energy_fwd, _batch_energy_bwd)


def _no_energies(batch: int):
    nothing = jnp.full(batch, Status.NOT_FINITE, jnp.int32)  # rows without atoms
    return jnp.full(batch, jnp.nan, jnp.float32), nothing


def _fill_in(found, value, rows, status):
    """Energies and statuses [B], with those of a chunk [C] filled in."""
    energy, statuses = found
    failed = (status == Status.OK) & ~(jnp.isfinite(value) & (value > LOWEST))
    status = jnp.where(failed, Status.FAILED, status)
    value = jnp.where(status == Status.OK, value, jnp.nan).astype(energy.dtype)
    return (
        energy.at[rows].set(value, mode="drop"),
        statuses.at[rows].set(status, mode="drop"),
    )


def _gather(graph: Any, rows, frac_coords, lattice):
    """Coordinates [A, 3] and cells [C, 3, 3] of a chunk, padding filled in."""
    batch = len(lattice)
    frac = jnp.concatenate([frac_coords.reshape(-1, 3), jnp.zeros((1, 3))])
    padding = PADDING_CELL * jnp.eye(3)
    cells = jnp.concatenate([lattice, padding[None]])
    rows = jnp.where(jnp.arange(len(rows)) == len(rows) - 1, batch, rows)
    return frac[graph.atom_slot], cells[jnp.minimum(rows, batch)]


def _for_each_chunk(
    potential: GraphPotential, body, init, frac_coords, lattice, atom_types, mask
):
    """Fold `body(carry, graph, rows, status)` over the graphs of a batch.

    Args:
      potential: whose graphs they are.
      body: `rows` [C] are the crystals of the slots, B for a slot without one; `status`
        [C] says why.
      init: carry.
      frac_coords: [B, N, 3] in [0, 1].
      lattice: [B, 3, 3] in Å.
      atom_types: [B, N].
      mask: [B, N].
    """
    batch, capacity = len(lattice), potential.capacity
    small = potential.small if jax.default_backend() == "cpu" else None
    pack = partial(_padded_chunk, capacity=capacity, small=small)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
        (_entries(capacity), np.int32(0), np.bool_(False)),
    )

    def fold(carry, entries, start, end, *, layout):
        graph, status = jax.tree.map(
            lambda x, y: x[: len(y)], entries, _entries(layout)
        )
        rows = start + jnp.arange(layout.crystals)
        return body(carry, graph, jnp.where(rows < end, rows, batch), status)

    def step(state):
        start, carry = state
        entries, end, is_small = call_host(
            pack, shapes, start, atom_types, frac_coords, lattice, mask
        )
        whole = partial(fold, layout=capacity)
        if small is None:
            return end, whole(carry, entries, start, end)
        part = partial(fold, layout=small)
        return end, lax.cond(is_small, part, whole, carry, entries, start, end)

    # Rows without atoms at the end, those that `relax` is done with, cost nothing.
    stop = jnp.where(mask.any(1), jnp.arange(1, batch + 1), 0).max()
    return lax.while_loop(lambda s: s[0] < stop, step, (jnp.int32(0), init))[1]


def _entries(layout: Layout):
    """An empty graph, and statuses of its slots."""
    return layout.empty(), np.zeros(layout.crystals, np.int32)


def _padded_chunk(*arguments, capacity: Layout, small: Layout | None):
    """`next_chunk` in arrays of the capacity's shape, and whether it is a small one."""
    graph, status, end = next_chunk(*arguments, capacity=capacity, small=small)
    is_small = len(status) < capacity.crystals
    if is_small:
        whole, statuses = _entries(capacity)
        for array, entries in zip((*whole, statuses), (*graph, status), strict=True):
            array[: len(entries)] = entries
        graph, status = whole, statuses
    return (graph, status), end, np.bool_(is_small)

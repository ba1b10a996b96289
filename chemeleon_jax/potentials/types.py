"""What every potential is, and what it says of a crystal."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import jax


class Status(IntEnum):
    """What became of a crystal's energy."""

    OK = 0
    NOT_FINITE = 1  # no atoms, or a cell or coordinate that is not finite
    UNKNOWN_ELEMENT = 2  # one that the potential does not know
    ISOLATED = 3  # an atom without a neighbour within the cutoff
    TOO_DENSE = 4  # atoms too close together, or too many for one graph
    BAD_CELL = 5  # too flat, too skewed or too large to search for neighbours
    FAILED = 6  # no finite energy, or one that no crystal has


@dataclass(frozen=True)
class Potential:
    """An interatomic potential.

    `energies` takes a `CrystalBatch` [B, N] and returns the energies [B] in eV/atom and
    the statuses [B], int32, `Status`. It can be jitted and never raises on a
    crystal's account: where the status is not OK the energy is NaN.
    """

    name: str  # as in the config
    digest: str  # of the weights or settings: two potentials of one digest agree
    energies: Callable[[Any], tuple[Any, Any]] = field(repr=False)
    scheme: str = "own"  # of corrections in the energies: "MP2020", or the potential's
    # What evaluates packed graphs, a `batches.GraphPotential`, and its parameters;
    # None where no network in JAX does it.
    network: tuple[Any, Any] | None = field(default=None, repr=False, compare=False)


def per_device(energies):
    """Lets every device of the mesh evaluate its own crystals.

    A callback gathers its arguments on one device, and XLA would then repeat on every
    device what follows. Without a mesh (`jax.set_mesh`), for a batch that it does not
    divide, and inside `jax.shard_map`, it does nothing.

    Args:
      energies: of a `Potential`; what else it takes is [B] too.
    """

    def sharded(crystals, *others):
        mesh = jax.sharding.get_abstract_mesh()
        alone = mesh.empty or mesh.manual_axes
        if alone or len(crystals.atom_types) % mesh.size:
            return energies(crystals, *others)
        rows = jax.sharding.PartitionSpec(mesh.axis_names)
        # Loops of different length on each device: nothing here is replicated.
        return jax.shard_map(energies, in_specs=rows, out_specs=rows, check_vma=False)(
            crystals, *others
        )

    return sharded

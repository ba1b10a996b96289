"""Potentials: energies of crystals, and the convex hull that judges them.

Every potential is a `Potential`; `load_potential` makes one from a config string, and
`hull.load_hull` gives the hull whose entries the same potential has evaluated.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pymatgen.core import Structure

from chemeleon_jax.errors import UserError

STATUS = (
    "ok",
    "no atoms, or a cell or coordinate that is not finite",
    "an element that the potential does not know",
    "an atom without a neighbour within the cutoff",
    "atoms too close together, or too many for one graph",
    "a cell too flat, too skewed or too large to search for neighbours",
    "no finite energy: the potential failed",
)
OK, NOT_FINITE, UNKNOWN_ELEMENT, ISOLATED, TOO_DENSE, BAD_CELL, FAILED = range(7)


@dataclass(frozen=True)
class Potential:
    """An interatomic potential.

    `energies` takes a `CrystalBatch` [B, N] and returns the energies [B] in eV/atom and
    the statuses [B], int32 indices into `STATUS`. It can be jitted and never raises on
    a crystal's account: where the status is not 0 the energy is NaN.
    """

    name: str  # as in the config
    digest: str  # of the weights or settings: two potentials of one digest agree
    energies: Callable[[Any], tuple[Any, Any]] = field(repr=False)


class Relaxed(NamedTuple):
    """What became of a crystal whose energy was minimised."""

    structure: Structure  # as far as it came
    energy: float  # eV/atom; NaN where the potential gave none
    initial_energy: float
    steps: int
    converged: bool
    problem: str = ""  # why it stayed where it was


def per_device(energies):
    """Lets every device of the mesh evaluate its own crystals.

    A callback gathers its arguments on one device, and XLA would then repeat on every
    device what follows. Without a mesh (`jax.set_mesh`), and for a batch that it does
    not divide, it does nothing.

    Args:
      energies: of a `Potential`.
    """
    import jax  # a process without JAX may read STATUS

    def sharded(crystals):
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or len(crystals.atom_types) % mesh.size:
            return energies(crystals)
        rows = jax.sharding.PartitionSpec(mesh.axis_names)
        # Loops of different length on each device: nothing here is replicated.
        return jax.shard_map(energies, in_specs=rows, out_specs=rows, check_vma=False)(
            crystals
        )

    return sharded


def load_potential(name: str, **kwargs) -> Potential:
    """The potential that a config names.

    Args:
      name: "chgnet", or "ase:module:callable" for any ASE calculator, for example
        "ase:mace.calculators:mace_mp".
      **kwargs: what the ASE calculator is made with.

    Raises:
      UserError: there is no such potential, module or callable.
    """
    if name == "chgnet" and not kwargs:
        from chemeleon_jax.potentials import chgnet

        return chgnet.potential()
    if name.startswith("ase:"):
        from chemeleon_jax.potentials import ase

        return ase.potential(name, kwargs)
    settings = f" with settings {sorted(kwargs)}" if kwargs else ""
    raise UserError(
        f"unknown potential {name!r}{settings}: use 'chgnet' (it has no settings) or "
        "'ase:module:callable'"
    )

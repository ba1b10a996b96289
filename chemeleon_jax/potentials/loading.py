"""Potentials by the name that a config gives."""

from chemeleon_jax.errors import UserError
from chemeleon_jax.potentials import ase, chgnet, nequix, sevennet
from chemeleon_jax.potentials.types import Potential

# By what stands before the first colon: name, settings -> Potential.
LOADERS = {
    "chgnet": chgnet.potential,
    "sevennet-l3i5": sevennet.potential,
    "sevennet-0": sevennet.potential,
    "nequix": nequix.potential,
    "ase": ase.potential,
}


def load_potential(name: str, **settings) -> Potential:
    """The potential that a config names.

    Args:
      name: "chgnet", "sevennet-l3i5", "sevennet-0", "nequix:PATH" of a checkpoint, or
        "ase:module:callable" for any ASE calculator, for example
        "ase:mace.calculators:mace_mp".
      **settings: what an ASE calculator is made with.

    Raises:
      UserError: there is no such potential, module or callable, or it has no settings.
    """
    prefix = name.partition(":")[0]
    if prefix not in LOADERS:
        raise UserError(
            f"unknown potential {name!r}: use 'chgnet', 'sevennet-l3i5', 'sevennet-0', "
            "'nequix:PATH' or 'ase:module:callable'"
        )
    return LOADERS[prefix](name, settings)

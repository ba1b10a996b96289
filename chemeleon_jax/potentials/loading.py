"""Potentials by the name that a config gives.

A potential's module is imported when it is asked for: e3nn-jax and ASE's optimisers,
which most runs do not need, take longer than all of this package.
"""

from collections.abc import Callable
from functools import cache

from chemeleon_jax.errors import UserError
from chemeleon_jax.potentials.types import Potential


@cache
def _made_once(make: Callable[[str, dict], Potential], name: str) -> Potential:
    """An embedded potential: what was compiled with it is found again."""
    return make(name, {})


def _chgnet(name: str, settings: dict) -> Potential:
    from chemeleon_jax.potentials import chgnet

    make = chgnet.potential
    return make(name, settings) if settings else _made_once(make, name)


def _sevennet(name: str, settings: dict) -> Potential:
    from chemeleon_jax.potentials import sevennet

    make = sevennet.potential
    return make(name, settings) if settings else _made_once(make, name)


def _nequix(name: str, settings: dict) -> Potential:
    from chemeleon_jax.potentials import nequix

    return nequix.potential(name, settings)


def _ase(name: str, settings: dict) -> Potential:
    from chemeleon_jax.potentials import ase

    return ase.potential(name, settings)


# By what stands before the first colon: name, settings -> Potential.
LOADERS = {
    "chgnet": _chgnet,
    "sevennet-l3i5": _sevennet,
    "sevennet-0": _sevennet,
    "nequix": _nequix,
    "ase": _ase,
}


def load_potential(name: str, **settings) -> Potential:
    """The potential that a config names.

    Args:
      name: "chgnet", "sevennet-l3i5", "sevennet-0", "nequix:PATH" of a checkpoint, or
        "ase:module:callable" for any ASE calculator, for example
        "ase:mace.calculators:mace_mp". SevenNets and Nequix also without the MP2020
        corrections, "sevennet-l3i5:uncorrected".
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

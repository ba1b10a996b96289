"""Any ASE calculator as a potential: MACE, ORB, or a pair potential.

The calculator runs in worker processes, each of which has its own: one that hangs or
crashes costs its crystal the energy, and nothing more.

The hull must hold energies of the same calculator, or energies above it mean nothing.
`hull.load_hull` sees to that: it evaluates the reference data set with the calculator
once, which may take hours for a large model, and keeps the result on disk. Weights
that a calculator reads from a file are not looked at: name another file for others.
"""

import hashlib
import importlib
import json
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.devices.host import call_host
from chemeleon_jax.potentials.graph import screen
from chemeleon_jax.potentials.types import Potential, Status, per_device
from chemeleon_jax.workers import calculators
from chemeleon_jax.workers.pool import WorkerPool

_MAX_EDGES = 20_000  # for one crystal; more are atoms on top of each other
_CUTOFF = 6.0  # Å; what a calculator's own may be is not known
_ELEMENTS = np.arange(1, 119)
_TIME_LIMIT = 120.0  # s, of an energy, making the calculator included


def potential(name: str, settings: dict) -> Potential:
    """The calculator that `module.callable(**settings)` returns.

    Args:
      name: "ase:module:callable".
      settings: keyword arguments, such as {"device": "cpu"}.

    Raises:
      UserError: the module or callable is missing, or refuses the settings.
    """
    calculators.find_callable(name)
    calculators.check(name, settings, pool=_pool())
    identity = json.dumps(
        [name, _version(calculators.split_name(name)[0]), settings],
        sort_keys=True,
        default=str,
    )
    evaluate = partial(
        calculators.energies, potential=name, settings=settings, pool=_pool()
    )
    host = partial(_host_energies, evaluate)
    return Potential(
        name,
        hashlib.sha256(identity.encode()).hexdigest(),
        per_device(partial(_energies, host)),
    )


def _version(module_name: str) -> list[str]:
    """What tells a module from what it was: its package's version, and its text."""
    package = importlib.import_module(module_name.split(".")[0])
    text = b""
    if file := getattr(importlib.import_module(module_name), "__file__", None):
        text = Path(file).read_bytes()
    return [getattr(package, "__version__", ""), hashlib.sha256(text).hexdigest()]


def _energies(host, crystals: CrystalBatch):
    batch = crystals.atom_types.shape[0]
    shapes = (
        jax.ShapeDtypeStruct((batch,), np.float32),
        jax.ShapeDtypeStruct((batch,), np.int32),
    )
    return call_host(
        host,
        shapes,
        jnp.asarray(crystals.atom_types),
        jnp.asarray(crystals.frac_coords),
        jnp.asarray(crystals.lattice),
        jnp.asarray(crystals.mask),
    )


def _host_energies(evaluate, atom_types, frac_coords, lattice, mask):
    """Energies per atom [B] and statuses [B]."""
    atom_types, mask = np.asarray(atom_types), np.asarray(mask)
    frac_coords = np.asarray(frac_coords, np.float64)
    lattice = np.asarray(lattice, np.float64)
    crystals = [
        (atom_types[row, real], frac_coords[row, real], lattice[row])
        for row, real in enumerate(mask)
    ]
    bounds = {"cutoff": _CUTOFF, "elements": _ELEMENTS, "max_edges": _MAX_EDGES}
    status = np.array([screen(*crystal, **bounds) for crystal in crystals], np.int32)
    energy = np.full(len(crystals), np.nan, np.float32)
    fit = np.flatnonzero(status == Status.OK)
    energy[fit] = evaluate([crystals[row] for row in fit])
    status[fit[~np.isfinite(energy[fit])]] = Status.FAILED
    return np.where(np.isfinite(energy), energy, np.float32(np.nan)), status


@cache
def _pool() -> WorkerPool:
    """The workers of all calculators of this process."""
    return WorkerPool(time_limit=_TIME_LIMIT)

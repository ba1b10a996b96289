"""Any ASE calculator as a potential: MACE, SevenNet, ORB, or a pair potential.

The calculator runs on the host, one crystal at a time, in the process that trains. One
that is itself built on JAX may not be used: JAX inside a callback can deadlock.

The hull must hold energies of the same calculator, or energies above it mean nothing.
`hull.load_hull` sees to that: it evaluates the reference data set with the calculator
once, which may take hours for a large model, and keeps the result on disk.
"""

import hashlib
import importlib
import json
import threading
from functools import partial

import ase
import jax
import jax.numpy as jnp
import numpy as np

from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.devices.host import call_host
from chemeleon_jax.potentials.graph import screen
from chemeleon_jax.potentials.types import Potential, Status, per_device
from chemeleon_jax.workers.calculators import make_calculator, split_name

_MAX_EDGES = 20_000  # for one crystal; more are atoms on top of each other
_CUTOFF = 6.0  # Å; what a calculator's own may be is not known
_ELEMENTS = np.arange(1, 119)


def potential(name: str, settings: dict) -> Potential:
    """The calculator that `module.callable(**settings)` returns.

    Args:
      name: "ase:module:callable".
      settings: keyword arguments, such as {"device": "cpu"}.

    Raises:
      UserError: the module or callable is missing, or refuses the settings.
    """
    calculator = make_calculator(name, settings)
    package = split_name(name)[0].split(".")[0]
    version = getattr(importlib.import_module(package), "__version__", "")
    identity = json.dumps([name, version, settings], sort_keys=True, default=str)
    host = partial(_host_energies, calculator, threading.Lock())
    return Potential(
        name,
        hashlib.sha256(identity.encode()).hexdigest(),
        per_device(partial(_energies, host)),
    )


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


def _host_energies(calculator, lock, atom_types, frac_coords, lattice, mask):
    """Energies per atom [B] and statuses [B], one crystal after the other."""
    atom_types, mask = np.asarray(atom_types), np.asarray(mask)
    frac_coords = np.asarray(frac_coords, np.float64)
    lattice = np.asarray(lattice, np.float64)
    energy = np.full(len(atom_types), np.nan, np.float32)
    status = np.zeros(len(atom_types), np.int32)
    for row, real in enumerate(mask):
        types, frac = atom_types[row, real], frac_coords[row, real]
        status[row] = screen(
            types,
            frac,
            lattice[row],
            cutoff=_CUTOFF,
            elements=_ELEMENTS,
            max_edges=_MAX_EDGES,
        )
        if status[row] != Status.OK:
            continue
        atoms = ase.Atoms(types, scaled_positions=frac, cell=lattice[row], pbc=True)
        try:
            # Callbacks of several devices come in several threads; a calculator holds
            # the state of one crystal.
            with lock:
                atoms.calc = calculator
                energy[row] = atoms.get_potential_energy() / len(types)
        except Exception:  # whatever a calculator raises is about this crystal
            energy[row] = np.nan
        if not np.isfinite(energy[row]):
            energy[row], status[row] = np.nan, Status.FAILED
    return energy, status

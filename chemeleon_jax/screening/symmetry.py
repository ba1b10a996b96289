"""Crystals under their symmetry, where that costs no energy."""

from collections.abc import Callable

import numpy as np
from pymatgen.core import Structure

from chemeleon_jax.workers.matching import cell_of, to_structure
from chemeleon_jax.workers.outcome import Status
from chemeleon_jax.workers.pool import Pool
from chemeleon_jax.workers.symmetry import symmetrise

TIGHT, LOOSE = 0.01, 0.1  # Å
MAX_RISE = 0.005  # eV/atom that the energy may rise by


def symmetrise_all(
    structures: list[Structure],
    energies: Callable[[list[Structure]], np.ndarray],
    pool: Pool,
) -> list[dict]:
    """Of each crystal its space groups at two tolerances, and its cells by one.

    The cells are of the looser tolerance, unless the energy is more than `MAX_RISE`
    above that of the crystal as it was; then of the tighter; then as it was.

    Args:
      structures: relaxed crystals.
      energies: eV/atom of structures.
      pool: worker processes.

    Returns:
      JSON values: `space_group` {tolerance: symbol and number}, `tolerance` (None where
      the crystal is as it was), `rise` in eV/atom, and the structures `primitive` and
      `conventional`.
    """
    before = energies(structures)
    records = [
        {
            "space_group": {},
            "tolerance": None,
            "rise": 0.0,
            "primitive": s,
            "conventional": s,
        }
        for s in structures
    ]
    for tolerance in (TIGHT, LOOSE):
        tasks = [(cell_of(s), tolerance) for s in structures]
        outcomes = pool.map(symmetrise, tasks)
        found = {i: o.value for i, o in enumerate(outcomes) if o.status == Status.OK}
        after = energies([to_structure(x.primitive) for x in found.values()])
        for (i, x), energy in zip(found.items(), after, strict=True):
            record, rise = records[i], float(energy - before[i])
            record["space_group"][f"{tolerance:g}"] = f"{x.symbol} ({x.number})"
            if rise <= MAX_RISE:
                record |= {
                    "tolerance": tolerance,
                    "rise": rise,
                    "primitive": to_structure(x.primitive),
                    "conventional": to_structure(x.conventional),
                }
    for record in records:
        for name in ("primitive", "conventional"):
            record[name] = record[name].as_dict(verbosity=0)
    return records

"""Crystals under their symmetry, where that costs no energy."""

from collections.abc import Callable

import numpy as np
from pymatgen.core import Structure

from chemeleon_jax.workers.matching import cell_of, to_structure
from chemeleon_jax.workers.outcome import Outcome, Status
from chemeleon_jax.workers.pool import Pool
from chemeleon_jax.workers.symmetry import symmetric_cif, symmetrise

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
      the crystal is as it was), `rise` in eV/atom, the structures `primitive` and
      `conventional`, `cif` of the latter with its symmetry (None where it has none),
      and `symmetry_problem`, where spglib failed or took too long ("" if nowhere).
    """
    before = energies(structures)
    records = [
        {
            "space_group": {},
            "tolerance": None,
            "rise": 0.0,
            "primitive": s,
            "conventional": s,
            "cif": None,
            "symmetry_problem": "",
        }
        for s in structures
    ]
    for tolerance in (TIGHT, LOOSE):
        tasks = [(cell_of(s), tolerance) for s in structures]
        outcomes = pool.map(symmetrise, tasks)
        note_problems(f"within {tolerance:g} Å", records, outcomes)
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
    moved = [record for record in records if record["tolerance"]]
    tasks = [(cell_of(record["conventional"]), TIGHT) for record in moved]
    outcomes = pool.map(symmetric_cif, tasks)
    note_problems("CIF", moved, outcomes)
    for record, outcome in zip(moved, outcomes, strict=True):
        record["cif"] = outcome.value
    for record in records:
        for name in ("primitive", "conventional"):
            record[name] = record[name].as_dict(verbosity=0)
    return records


def note_problems(what: str, records: list[dict], outcomes: list[Outcome]) -> None:
    """Adds to the records why there is no outcome, in a word of `Status`."""
    for record, outcome in zip(records, outcomes, strict=True):
        if outcome.status != Status.OK:
            problem = f"{what}: {Status(outcome.status).name.lower()}"
            before = record["symmetry_problem"]
            record["symmetry_problem"] = f"{before}; {problem}" if before else problem

"""Structures relaxed: `relax`."""

import contextlib
from collections.abc import Sequence

import pandas as pd
from pymatgen.core import Structure

from chemeleon_jax.data.crystals import from_structures
from chemeleon_jax.errors import UserError
from chemeleon_jax.evaluation.judge import Row, describe_relaxation, reasons_of
from chemeleon_jax.evaluation.terms import TIME_LIMIT, Terms, load_relaxation
from chemeleon_jax.interface.result import Crystals, items_of
from chemeleon_jax.potentials.relax import MAX_FORCE
from chemeleon_jax.workers import calculators
from chemeleon_jax.workers.pool import WorkerPool


def relax(
    structures: Crystals | Sequence[Structure | None],
    potential: str = "chgnet",
    *,
    relax_steps: int | None = None,
    max_force: float = MAX_FORCE,
    relax_time_limit: float = calculators.TIME_LIMIT,
    workers: int | None = None,
) -> Crystals:
    """Minimises the energy of each valid crystal, positions and cell.

    Args:
      structures: of any generator, or what `sample` returned.
      potential: as `python -m chemeleon_jax.evaluate --relax_with` takes it.
      relax_steps: energies at most: 100 by default, 200 with an ASE potential.
      max_force: eV/Å, to stop at.
      relax_time_limit: s, for a crystal, with an ASE potential.
      workers: processes, of an ASE potential; by default as many as CPUs.

    Returns:
      The structures as far as they came, those that are no valid crystals unchanged,
      and a table: `energy` and `energy_unrelaxed` (eV/atom), `relax_steps`, `relaxed`
      (whether it converged), `relax_rmsd` (Å); `reason` and `status` say why not.

    Raises:
      UserError: an unknown potential, or a limit out of range. A crystal raises none.
    """
    if "," in potential:
        raise UserError(f"potential={potential}: one of them relaxes; name that")
    terms = Terms(
        potential=potential,
        relax=True,
        relax_steps=relax_steps,
        max_force=max_force,
        relax_time_limit=relax_time_limit,
        workers=workers,
    )
    items = items_of(structures)
    found = [item.structure for item in items]
    reasons = reasons_of(items, from_structures(found))
    rows: list[Row] = [
        {"valid": reason == "valid", "reason": reason, "status": item.problem}
        for item, reason in zip(items, reasons, strict=True)
    ]
    picked = [i for i, row in enumerate(rows) if row["valid"]]
    with contextlib.ExitStack() as stack:
        pool = None
        if potential.startswith("ase:"):
            pool = stack.enter_context(WorkerPool(terms.workers, time_limit=TIME_LIMIT))
        results = load_relaxation(terms, {}, pool)([found[i] for i in picked])
    for i, result in zip(picked, results, strict=True):
        found[i] = result.structure
        rows[i]["energy"] = result.energy
        describe_relaxation(rows[i], result)
    for i, (row, structure) in enumerate(zip(rows, found, strict=True)):
        row["index"], row["status"] = i, row["status"] or "ok"
        if structure is not None:
            row["formula"] = structure.composition.reduced_formula
            row["num_atoms"] = len(structure)
    return Crystals(found, pd.DataFrame(rows, columns=COLUMNS))


COLUMNS = ["index", "formula", "num_atoms", "valid", "reason", "energy"]
COLUMNS += ["energy_unrelaxed", "relax_steps", "relaxed", "relax_rmsd", "status"]

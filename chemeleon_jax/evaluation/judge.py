"""What each crystal is like: one row per crystal, chunk by chunk."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import numpy as np
from pymatgen.core import Composition, Structure

from chemeleon_jax.data.crystals import (
    VALIDITY_REASONS,
    formula_key,
    from_structures,
    validity,
)
from chemeleon_jax.data.readers.item import Item
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.models.vae import VAE
from chemeleon_jax.potentials.hull import Hull
from chemeleon_jax.potentials.types import Potential
from chemeleon_jax.rewards.features import mean_latent
from chemeleon_jax.rewards.matches import (
    References,
    by_formula,
    find_known,
    first_occurrences,
)
from chemeleon_jax.rewards.stability import (
    FAR_BELOW,
    MAX_FRACTION,
    EnergyStatus,
    is_metastable,
    is_msun,
    judge_energies,
)
from chemeleon_jax.workers.calculators import RelaxedStructure
from chemeleon_jax.workers.composition import smact_valid
from chemeleon_jax.workers.matching import Cell, cell_of, reduce_cell
from chemeleon_jax.workers.outcome import Outcome, Status
from chemeleon_jax.workers.pool import Pool
from chemeleon_jax.workers.symmetry import space_group

STABLE = 0.0  # eV/atom above the hull

Row = dict[str, Any]  # of one crystal; JSON values


@dataclass(eq=False)
class EvaluationContext:
    """What crystals are judged by, made once."""

    references: References
    pool: Pool
    vae: tuple[VAE, Any] | None  # with its parameters; None: no features
    judges: dict[str, tuple[Potential, Hull]]  # by name; the first is the main one
    relax: Callable[[list[Structure]], list[RelaxedStructure]] | None
    relaxer: str  # the name of the potential that does it
    width: int  # atoms that all batches are padded to
    chunk: int  # crystals of a batch
    protocol: Any = None  # of others, that is judged by too, see `protocols.choice`
    smact: dict[tuple[int, ...], bool | None] = field(default_factory=dict)

    @property
    def corrects_relaxer(self) -> bool:
        """Whether the protocol adds corrections to the calculator that relaxes."""
        corrects = self.protocol is not None and self.protocol.corrects
        return corrects and self.relaxer.startswith("ase:")

    @cached_property
    def energies(self) -> dict[str, Callable]:
        """The potentials, each compiled once."""
        return {name: jax.jit(p.energies) for name, (p, _) in self.judges.items()}


def judge_chunk(
    items: list[Item], shares_formula: list[bool], context: EvaluationContext
) -> list[Row]:
    """Everything about crystals that does not depend on the rest of their set.

    At most `context.chunk` of them. One that `shares_formula` (reduced) with another of
    the set must be compared with others.
    """
    rows: list[Row] = [{"status": item.problem} for item in items]
    structures = [item.structure for item in items]
    crystals = from_structures(structures, context.width, context.chunk)
    reasons = reasons_of(items, crystals)
    if context.relax is not None:
        structures = _relax(structures, reasons, rows, context)
        crystals = from_structures(structures, context.width, context.chunk)
        reasons = reasons_of(items, crystals)
    valid = np.array([reason == "valid" for reason in reasons])
    for row, structure, reason in zip(rows, structures, reasons, strict=True):
        row |= {"valid": reason == "valid", "reason": reason}
        if structure is not None:
            row |= {
                "formula": structure.composition.reduced_formula,
                "num_atoms": len(structure),
                "density": float(structure.density),
                "structure": structure.as_dict(verbosity=0),
            }
    cells = {i: cell_of(s) for i, s in enumerate(structures) if s is not None}
    _check_compositions(cells, rows, context)
    cells = {i: cell for i, cell in cells.items() if valid[i]}
    _find_space_groups(cells, rows, context)
    _find_known(cells, shares_formula, rows, context)
    find_energies(crystals, valid, rows, context)
    _encode(crystals, valid, rows, context)
    if context.protocol:
        context.protocol.judge(rows, structures, context)
    return rows


def reasons_of(items: list[Item], crystals: CrystalBatch) -> list[str]:
    """Why each crystal is none, or "valid"; the batch may be longer than the items."""
    codes = validity(crystals)
    return [
        VALIDITY_REASONS[code] if item.structure else item.problem.partition(":")[0]
        for item, code in zip(items, codes[: len(items)], strict=True)
    ]


def _relax(structures, reasons, rows, context) -> list[Structure | None]:
    """Relaxed structures in the place of valid ones; rows say how it went."""
    picked = [i for i, reason in enumerate(reasons) if reason == "valid"]
    relaxed = list(structures)
    results = context.relax([structures[i] for i in picked])
    before = context.pool.map(space_group, [cell_of(structures[i]) for i in picked])
    for i, result, group in zip(picked, results, before, strict=True):
        relaxed[i] = result.structure
        rows[i] |= {
            "initial_structure": structures[i].as_dict(verbosity=0),
            "space_group_unrelaxed": group.value,
        }
        describe_relaxation(rows[i], result)
        if context.corrects_relaxer:  # what it relaxed by is not what it judges by
            rows[i]["energy_unrelaxed"] = None
        elif context.relaxer in context.judges and np.isfinite(result.initial_energy):
            _, hull = context.judges[context.relaxer]
            lowest = hull.hull_energy(structures[i].atomic_numbers)
            above = result.initial_energy - lowest
            rows[i]["e_above_hull_unrelaxed"] = number(above)
    return relaxed


def describe_relaxation(row: Row, result: RelaxedStructure) -> None:
    """Adds to a row how the relaxation of its crystal went; NaN is None."""
    row |= {
        "energy_unrelaxed": number(result.initial_energy),
        "relax_steps": result.steps,
        "relaxed": result.converged,
        "relax_rmsd": number(result.rmsd),
    }
    if result.problem:
        note(row, f"relaxation: {result.problem}")


def _check_compositions(cells, rows, context: EvaluationContext) -> None:
    """SMACT's charge balance and electronegativity rules, once per formula."""
    keys = {i: formula_key(cell.atom_types) for i, cell in cells.items()}
    new = [key for key in dict.fromkeys(keys.values()) if key not in context.smact]
    for key, outcome in zip(new, context.pool.map(smact_valid, new), strict=True):
        context.smact[key] = outcome.value if outcome.status == Status.OK else None
    for i, key in keys.items():
        rows[i]["smact_valid"] = context.smact[key]
        if context.smact[key] is None:
            note(rows[i], "smact: no answer")


def _find_space_groups(cells, rows, context: EvaluationContext) -> None:
    outcomes = context.pool.map(space_group, list(cells.values()))
    for i, outcome in zip(cells, outcomes, strict=True):
        rows[i]["space_group"] = outcome.value  # None where spglib finds none


def _find_known(cells, shares_formula, rows, context: EvaluationContext) -> None:
    """Reduced cells of the crystals that have company, and which are not novel."""
    formulas = {i: formula_key(cell.atom_types) for i, cell in cells.items()}
    known = context.references.by_formula
    wanted = [i for i, f in formulas.items() if shares_formula[i] or f in known]
    outcomes = context.pool.map(reduce_cell, [cells[i] for i in wanted])
    reduced = dict(zip(wanted, outcomes, strict=True))
    for i, outcome in reduced.items():
        if outcome.status == Status.OK:
            rows[i]["reduced"] = [x.tolist() for x in outcome.value]
        else:
            note(rows[i], f"matching: {Status(outcome.status).name.lower()}")
    comparable = {i: formulas[i] for i in wanted if "reduced" in rows[i]}
    found = find_known(comparable, reduced, context.references, context.pool)
    for i in cells:
        outcome = found.get(i, Outcome(Status.OK, False))
        rows[i]["novel"] = outcome.status == Status.OK and not outcome.value
        if i in reduced and reduced[i].status != Status.OK:
            rows[i]["novel"] = False
        elif outcome.status != Status.OK:
            note(rows[i], f"matching: {Status(outcome.status).name.lower()}")


def find_energies(
    crystals: CrystalBatch,
    valid: np.ndarray,
    rows: list[Row],
    context: EvaluationContext,
) -> None:
    """Adds to rows energies and distances from the hull, eV/atom; None: there is none.

    By the first potential; of several, also by each under its name. The batch may be
    longer than the rows and `valid`, which says whose energies are wanted.
    """
    valid = np.append(valid, np.zeros(len(crystals.mask) - len(valid), bool))
    judged = crystals.replace(mask=crystals.mask & valid[:, None])  # no work on others
    for name, (_, hull) in context.judges.items():
        energy, status = jax.device_get(context.energies[name](judged))
        above, status = judge_energies(hull, crystals.atom_types, energy, status, valid)
        is_main = name == next(iter(context.judges))
        for i in np.flatnonzero(valid):
            found = {"energy": energy[i], "e_above_hull": above[i]}
            if is_main:
                rows[i] |= {what: number(x) for what, x in found.items()}
            if len(context.judges) > 1:
                rows[i] |= {f"{k}:{name}": number(x) for k, x in found.items()}
            if status[i]:
                whose = "energy" if is_main else f"energy by {name}"
                note(rows[i], f"{whose}: {EnergyStatus(status[i]).name.lower()}")


def _encode(crystals, valid, rows, context: EvaluationContext) -> None:
    if context.vae is None:
        return
    latent = np.asarray(mean_latent(*context.vae, crystals), np.float64)
    for i in np.flatnonzero(valid):
        rows[i]["latent"] = latent[i].tolist()


def number(x: float) -> float | None:
    """A value for a row: None for what is not finite."""
    return float(x) if np.isfinite(x) else None


def note(row: Row, problem: str) -> None:
    """Says in a row what could not be found out."""
    if problem not in row["status"]:
        row["status"] = "; ".join(filter(None, [row["status"], problem]))


# --------------------------------------------------------------- the set as a whole


def judge_set(rows: list[Row], pool: Pool) -> None:
    """What depends on the whole set: who is unique; and the flags made of others."""
    cells = {
        i: Cell(*(np.array(x) for x in row["reduced"]))
        for i, row in enumerate(rows)
        if row["valid"] and "reduced" in row
    }
    alike = by_formula({i: formula_key(cell.atom_types) for i, cell in cells.items()})
    buckets = [members for members in alike.values() if len(members) > 1]
    reduced = {i: Outcome(Status.OK, cell) for i, cell in cells.items()}
    flags = first_occurrences(buckets, reduced, pool)
    for i, row in enumerate(rows):
        row["novel"] = row.get("novel", False)
        row["unique"] = row["valid"] and "matching" not in row["status"]
        if i in flags:
            row["unique"] = bool(flags[i].status == Status.OK and flags[i].value)
            if flags[i].status != Status.OK:
                note(row, f"matching: {Status(flags[i].status).name.lower()}")
        row["symmetric"] = row.get("space_group") not in (None, "P1")
        above = row.get("e_above_hull")
        above = np.nan if above is None else above
        row["metastable"], row["stable"] = is_metastable(above), above <= STABLE
        row["sun"] = row["stable"] and row["unique"] and row["novel"]
        row["msun"] = is_msun(above, row["unique"], row["novel"])
        row["far_below_hull"] = above < FAR_BELOW
        row["msun_near_hull"] = row["msun"] and not row["far_below_hull"]
        composition = Composition(row["formula"] if row["valid"] else {})
        most = max(composition.values(), default=0)
        row["diluted"] = most > MAX_FRACTION * composition.num_atoms
        row["msun_undiluted"] = row["msun"] and not row["diluted"]
        row["status"] = row["status"] or "ok"

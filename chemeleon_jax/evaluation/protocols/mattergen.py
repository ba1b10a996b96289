"""MatterGen's metrics of a set of crystals, against a reference of one's own.

`evaluate` of microsoft/mattergen (MIT; Zeni et al., Nature 639, 624, 2025), commit
ac9ddd4, written anew from its definitions; names as there. Metrics of structures are of
the crystals that could be read, as they are judged; those of energies are by the first
potential, with the MP2020 corrections. docs/protocols.md has every metric, and what is
different here.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pymatgen.core import Structure

from chemeleon_jax.data.crystals import (
    chemical_system,
    formula_key,
    read_structure,
)
from chemeleon_jax.data.dataset import Dataset
from chemeleon_jax.evaluation.judge import EvaluationContext, Row, note, number
from chemeleon_jax.evaluation.protocols import disorder
from chemeleon_jax.evaluation.protocols.mattergen_checks import (
    composition_valid,
    relaxation_rmsd,
    structure_valid_cell,
)
from chemeleon_jax.evaluation.protocols.rows import (
    first_ones,
    numbers,
    reduced_cells,
    share,
    without_interval,
)
from chemeleon_jax.evaluation.scores import structure_types
from chemeleon_jax.evaluation.statistics import Score, mean_score
from chemeleon_jax.rewards.matches import fill_cache
from chemeleon_jax.workers.matching import cell_of, reduce_cell
from chemeleon_jax.workers.outcome import Outcome, Status

SOURCE = "microsoft/mattergen ac9ddd4, evaluate"
INSTEAD_OF = "Alex-MP reference with MP2020 corrections (845,997 crystals)"
STABLE = 0.1  # eV/atom above the hull
SHARES = {  # score: flag, of the crystals that could be read
    "frac_unique_structures": "unique",
    "frac_novel_structures": "novel",
    "frac_novel_unique_structures": "novel_unique",
    "avg_structure_validity": "structure_validity",
    "avg_comp_validity": "comp_validity",
    "avg_structure_comp_validity": "structure_comp_validity",
}
ENERGY_SHARES = {  # of all
    "frac_stable_structures": "stable",
    "frac_novel_unique_stable_structures": "novel_unique_stable",
}
_OF_REFERENCE = ("novel", "stable", "precision", "recall", "above_hull")


@dataclass(frozen=True, eq=False)
class MatterGen:
    """The protocol: `judge` a chunk of crystals, `finish` the set, and `score` it."""

    corrects: ClassVar[bool] = True  # energies of ASE potentials
    dataset: Dataset  # the reference
    with_energies: bool

    @staticmethod
    def columns(judges: list[str]) -> tuple[str, ...]:
        """What it adds to `crystals.csv`, with potentials of these names."""
        found = (*SHARES.values(), "num_matches")
        if judges:
            found += (*ENERGY_SHARES.values(), "rmsd_from_relaxation")
        return tuple(f"mattergen/{column}" for column in found)

    @staticmethod
    def description() -> dict[str, Any]:
        """What its numbers depend on, for `summary.json`."""
        return {
            "name": "mattergen",
            "source": SOURCE,
            "reference_instead_of": INSTEAD_OF,
            "matcher": "disordered",
            "stable": STABLE,
        }

    @staticmethod
    def is_of_reference(score: str) -> bool:
        """Whether MatterGen takes a score against its own reference."""
        return any(part in score for part in _OF_REFERENCE)

    @staticmethod
    def unit(score: str) -> str:
        """Of a score: "%" for shares, "eV/atom" or "Å"."""
        if score.endswith("rmsd_from_relaxation"):
            return "Å"
        return "eV/atom" if "above_hull" in score else "%"

    # ---------------------------------------------------------------- one chunk

    def judge(
        self,
        rows: list[Row],
        structures: list[Structure | None],
        context: EvaluationContext,
    ) -> None:
        """Adds what does not depend on the rest of the set."""
        cells = {i: cell_of(s) for i, s in enumerate(structures) if s is not None}
        keys = {i: formula_key(cell.atom_types) for i, cell in cells.items()}
        new = list(dict.fromkeys(keys.values()))
        answers = dict(zip(new, context.pool.map(composition_valid, new), strict=True))
        valid = context.pool.map(structure_valid_cell, list(cells.values()))
        for (i, key), outcome in zip(keys.items(), valid, strict=True):
            self._keep(rows[i], "structure_validity", outcome)
            self._keep(rows[i], "comp_validity", answers[key])
        # Valid ones have their reduced cell already, if they have company.
        missing = [i for i in cells if not rows[i]["valid"]]
        found = context.pool.map(reduce_cell, [cells[i] for i in missing])
        for i, outcome in zip(missing, found, strict=True):
            if outcome.status == Status.OK:
                rows[i]["reduced"] = [x.tolist() for x in outcome.value]
        self._find_known(rows, keys, context)
        if self.with_energies:
            self._measure(rows, structures, context)

    @staticmethod
    def _keep(row: Row, flag: str, outcome: Outcome) -> None:
        row[f"mattergen/{flag}"] = outcome.status == Status.OK and outcome.value
        if outcome.status != Status.OK:
            note(row, f"mattergen: no answer on {flag}")

    @staticmethod
    def _find_known(rows, keys, context: EvaluationContext) -> None:
        """Which known crystals each matches, by their numbers."""
        known, reduced = context.references, reduced_cells(rows, keys)
        others = {i: known.by_formula.get(key, []) for i, key in keys.items()}
        needed = [r for some in others.values() for r in some]
        fill_cache(known.reduced, needed, reduce_cell, known.cells, context.pool)
        items = {}
        for i, some in others.items():
            some = [r for r in some if known.reduced[r].status == Status.OK]
            if not others[i]:
                rows[i]["mattergen/matches"] = []
            elif i in reduced:
                items[i] = reduced[i].value, [known.reduced[r].value for r in some]
                others[i] = some
        found = context.pool.map(disorder.all_that_fit, list(items.values()))
        for i, outcome in zip(items, found, strict=True):
            if outcome.status == Status.OK:
                rows[i]["mattergen/matches"] = [others[i][k] for k in outcome.value]
        for i in keys:
            if "mattergen/matches" not in rows[i]:
                note(rows[i], "mattergen: not compared")

    @staticmethod
    def _measure(rows, structures, context: EvaluationContext) -> None:
        """How far each crystal that was relaxed went."""
        pairs = {
            i: (initial, structures[i])
            for i, row in enumerate(rows)
            if (initial := row.get("initial_structure"))
            and row["relax_rmsd"] is not None
        }
        cells = [
            (cell_of(read_structure(before)), cell_of(after))
            for before, after in pairs.values()
        ]
        outcomes = context.pool.map(relaxation_rmsd, cells)
        for i, outcome in zip(pairs, outcomes, strict=True):
            if outcome.status == Status.OK:
                found = number(outcome.value)
                rows[i]["mattergen/rmsd_from_relaxation"] = found
            else:
                note(rows[i], "mattergen: no RMSD")

    # ------------------------------------------------------------------ the set

    def finish(self, rows: list[Row], context: EvaluationContext) -> None:
        """Adds who is unique, and the flags made of others."""
        read = np.flatnonzero(self._read(rows)).tolist()
        unique = first_ones(rows, read, context.pool, disorder.fits_earlier)
        for i in read:
            row = rows[i]
            matches = row.get("mattergen/matches")
            novel, is_unique = matches == [], i in unique
            above = row.get("e_above_hull")
            stable = above is not None and above <= STABLE
            validity = (row[f"mattergen/{x}_validity"] for x in ("structure", "comp"))
            flags = {
                "num_matches": None if matches is None else len(matches),
                "unique": is_unique,
                "novel": novel,
                "novel_unique": novel and is_unique,
                "structure_comp_validity": all(validity),
                "stable": stable,
                "novel_unique_stable": novel and is_unique and stable,
            }
            row |= {f"mattergen/{name}": value for name, value in flags.items()}

    @staticmethod
    def _read(rows: list[Row]) -> np.ndarray:
        return np.array(["structure" in row for row in rows], bool)

    def score(
        self, rows: list[Row], context: EvaluationContext, draws: np.ndarray
    ) -> dict[str, Score]:
        """Every score of the set; those without a meaningful interval have none."""
        read = self._read(rows)
        scores = {
            name: share(rows, f"mattergen/{flag}", draws, read)
            for name, flag in SHARES.items()
        }
        matches = [row.get("mattergen/matches") or [] for row in rows]
        matched = np.array([bool(some) for some in matches], float)
        scores["precision"] = mean_score(np.where(read, matched, np.nan), draws)
        found = set().union(*matches)
        scores["recall"] = without_interval(len(found) / len(self.dataset))
        scores |= self._systems(rows, read, context)
        if self.with_energies:
            energy = np.isfinite(numbers(rows, "e_above_hull"))
            scores["frac_successful_jobs"] = mean_score(energy.astype(float), draws)
            for name, flag in ENERGY_SHARES.items():
                scores[name] = share(rows, f"mattergen/{flag}", draws)
            for name, column in (
                ("avg_energy_above_hull_per_atom", "e_above_hull"),
                ("avg_rmsd_from_relaxation", "mattergen/rmsd_from_relaxation"),
            ):
                scores[name] = mean_score(numbers(rows, column), draws)
        return {f"mattergen/{name}": score for name, score in scores.items()}

    @staticmethod
    def _systems(rows, read, context: EvaluationContext) -> dict[str, Score]:
        """How many chemical systems there are, and new ones, per crystal."""
        some = [row for row, there in zip(rows, read, strict=True) if there]
        systems = {chemical_system(structure_types(row["structure"])) for row in some}
        formulas = context.references.by_formula  # keys (Z1, n1, Z2, n2, ...)
        known = {chemical_system(key[::2]) for key in formulas}
        size = len(some) or np.nan
        return {
            "frac_unique_systems": without_interval(len(systems) / size),
            "frac_novel_systems": without_interval(len(systems - known) / size),
        }

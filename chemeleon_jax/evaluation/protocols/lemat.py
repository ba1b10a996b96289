"""LeMat-GenBench's metrics of a set of crystals, against a reference of one's own.

arXiv:2512.04562; LeMaterial/lemat-genbench (Apache-2.0), commit 5bab2cd, configuration
`comprehensive_multi_mlip_hull`; written anew from the definitions. All but the four
ratios of validity are of valid crystals only, and shares are of their number. Energies
are those of the crystals as they are judged; relaxation tells how far atoms move.
docs/protocols.md has every metric, and what is different here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from pymatgen.core import Structure

from chemeleon_jax.data.crystals import formula_key
from chemeleon_jax.data.dataset import Dataset
from chemeleon_jax.evaluation.judge import EvaluationContext, Row, note, number
from chemeleon_jax.evaluation.protocols.lemat_checks import Checks, check
from chemeleon_jax.evaluation.protocols.lemat_scores import (
    displacement,
    distribution_scores,
    diversity_scores,
    hhi_scores,
)
from chemeleon_jax.evaluation.protocols.profile import (
    profile_of_dataset,
    profile_of_rows,
)
from chemeleon_jax.evaluation.protocols.rows import (
    above_hull,
    first_ones,
    numbers,
    reduced_cells,
    share,
)
from chemeleon_jax.evaluation.scores import structure_types
from chemeleon_jax.evaluation.statistics import Score, mean_score
from chemeleon_jax.rewards.matches import find_known
from chemeleon_jax.workers.calculators import RelaxedStructure
from chemeleon_jax.workers.matching import cell_of, fits
from chemeleon_jax.workers.outcome import Status

SOURCE = "LeMat-GenBench 5bab2cd (arXiv:2512.04562), comprehensive_multi_mlip_hull"
INSTEAD_OF = "LeMat-Bulk (5,335,299 crystals)"
MAX_FORCE, STEPS = 0.02, 50  # eV/Å; of the relaxation
STABLE, METASTABLE = 0.0, 0.1  # eV/atom above the hull
MIN_JUDGES = 2  # whose mean counts, if there are as many
LENGTH_TOL = 0.1  # of StructureMatcher, whose other tolerances are its defaults
VALIDITY = {  # score: flag
    "charge_neutral_ratio": "charge",
    "distance_valid_ratio": "distance",
    "plausibility_valid_ratio": "plausible",
    "overall_valid_ratio": "valid",
}

same = partial(fits, length_tol=LENGTH_TOL)


@dataclass(frozen=True, eq=False)
class LeMat:
    """The protocol: `judge` a chunk of crystals, `finish` the set, and `score` it."""

    corrects: ClassVar[bool] = False  # energies of ASE potentials
    dataset: Dataset  # the reference
    relaxations: dict[str, Callable[[list[Structure]], list[RelaxedStructure]]]

    @property
    def judges(self) -> list[str]:
        """The potentials by name."""
        return list(self.relaxations)

    @staticmethod
    def columns(judges: list[str]) -> tuple[str, ...]:
        """What it adds to `crystals.csv`, with potentials of these names."""
        found = (*VALIDITY.values(), "space_group", "unique", "novel")
        if judges:
            found += ("e_above_hull", "stable", "metastable", "sun", "msun")
        found += tuple(f"relaxation_rmse:{name}" for name in judges)
        return tuple(f"lemat/{column}" for column in found)

    @staticmethod
    def description() -> dict[str, Any]:
        """What its numbers depend on, for `summary.json`."""
        return {
            "name": "lemat",
            "source": SOURCE,
            "reference_instead_of": INSTEAD_OF,
            "matcher_ltol": LENGTH_TOL,
            "relaxation": {"max_force": MAX_FORCE, "max_steps": STEPS},
        }

    @staticmethod
    def is_of_reference(score: str) -> bool:
        """Whether LeMat-GenBench takes a score against its own reference or hulls."""
        what = score.removeprefix("lemat/").partition(":")[0]
        return what.startswith(("novelty", "js_", "mmd_", "stable", "metastable")) or (
            what.endswith(("_rate", "e_above_hull", "formation_energy"))
        )

    @staticmethod
    def unit(score: str) -> str:
        """Of a score: "%" for shares, "eV/atom", "Å" or none."""
        what = score.partition(":")[0]
        if what.endswith("relaxation_rmse"):
            return "Å"
        if what.endswith(("e_above_hull", "formation_energy")):
            return "eV/atom"
        return "%" if what.endswith(("_ratio", "_score", "_rate", "_coverage")) else ""

    # ---------------------------------------------------------------- one chunk

    def judge(
        self,
        rows: list[Row],
        structures: list[Structure | None],
        context: EvaluationContext,
    ) -> None:
        """Adds what does not depend on the rest of the set: checks, novelty, RMSE."""
        there = {i: s for i, s in enumerate(structures) if s is not None}
        outcomes = context.pool.map(check, [cell_of(s) for s in there.values()])
        for i, outcome in zip(there, outcomes, strict=True):
            if outcome.status != Status.OK:
                note(rows[i], "lemat: no answer")
                continue
            found: Checks = outcome.value
            rows[i] |= {f"lemat/{k}": v for k, v in found._asdict().items()}
            rows[i] |= {
                "lemat/valid": found.valid,
                "lemat/packing": number(found.packing),
            }
        valid = {i: s for i, s in there.items() if rows[i].get("lemat/valid")}
        self._find_known(rows, valid, context)
        picked = {i: s for i, s in valid.items() if rows[i]["valid"]}
        for name, relax in self.relaxations.items():
            results = relax(list(picked.values()))
            for (i, before), result in zip(picked.items(), results, strict=True):
                if not result.problem:
                    rmse = displacement(before, result.structure)
                    rows[i][f"lemat/relaxation_rmse:{name}"] = number(rmse)

    def _find_known(self, rows, valid: dict[int, Structure], context) -> None:
        known, reduced = context.references, reduced_cells(rows, valid)
        formulas = {i: formula_key(s.atomic_numbers) for i, s in valid.items()}
        wanted = {i: f for i, f in formulas.items() if f in known.by_formula}
        compared = {i: f for i, f in wanted.items() if i in reduced}
        found = find_known(compared, reduced, known, context.pool, same)
        for i in valid:
            rows[i]["lemat/novel"] = i not in wanted
        for i in wanted:
            if i in found and found[i].status == Status.OK:
                rows[i]["lemat/novel"] = not found[i].value
            else:
                note(rows[i], "lemat: not compared")

    # ------------------------------------------------------------------ the set

    def finish(self, rows: list[Row], context: EvaluationContext) -> None:
        """Adds who is unique, the mean over the judges, and the flags made of them.

        A crystal is `sun` where it is stable, novel, and the first of its kind among
        the stable ones; `msun` likewise among those that are metastable and not stable.
        Here one judge's answer is enough; `stable_ratio` asks for two.
        """
        valid = self._valid(rows)
        for i, first in self._first_ones(rows, valid, valid, context):
            rows[i]["lemat/unique"] = first
        if not self.judges:
            return
        above = mean_of_judges(above_hull(rows, self.judges), 1)
        stable, metastable = above <= STABLE, above <= METASTABLE
        for i in np.flatnonzero(valid):
            rows[i]["lemat/e_above_hull"] = number(above[i])
            rows[i]["lemat/stable"] = bool(stable[i])
            rows[i]["lemat/metastable"] = bool(metastable[i])
        for flag, some in (("sun", stable), ("msun", metastable & ~stable)):
            for i, first in self._first_ones(rows, valid, valid & some, context):
                rows[i][f"lemat/{flag}"] = first and rows[i]["lemat/novel"]

    @staticmethod
    def _first_ones(rows, valid, among, context) -> list[tuple[int, bool]]:
        """Each valid crystal, and whether it is the first of its kind among some."""
        chosen = np.flatnonzero(among).tolist()
        firsts = first_ones(rows, chosen, context.pool, same)
        return [(i, i in firsts) for i in np.flatnonzero(valid).tolist()]

    @staticmethod
    def _valid(rows: list[Row]) -> np.ndarray:
        return np.array([bool(row.get("lemat/valid")) for row in rows], bool)

    def score(
        self, rows: list[Row], context: EvaluationContext, draws: np.ndarray
    ) -> dict[str, Score]:
        """Every score of the set; those without a meaningful interval have none."""
        valid = self._valid(rows)
        scores = {k: share(rows, f"lemat/{v}", draws) for k, v in VALIDITY.items()}
        scores["uniqueness_score"] = share(rows, "lemat/unique", draws, valid)
        scores["novelty_score"] = share(rows, "lemat/novel", draws, valid)
        if self.judges:
            scores |= self._energy_scores(rows, context, draws, valid)
        known = profile_of_dataset(self.dataset, context.references.cells, context.pool)
        found = profile_of_rows(rows, valid)
        scores |= distribution_scores(found, known)
        scores |= diversity_scores(found, draws[:, valid])
        scores |= hhi_scores(found, draws[:, valid])
        return {f"lemat/{name}": score for name, score in scores.items()}

    def _energy_scores(self, rows, context, draws, valid) -> dict[str, Score]:
        above = np.where(valid, above_hull(rows, self.judges), np.nan)
        names = [f"lemat/relaxation_rmse:{name}" for name in self.judges]
        tables = {
            "mean_e_above_hull": above,
            "mean_formation_energy": above + self._hull_formation(rows, context),
            "mean_relaxation_rmse": np.array([numbers(rows, name) for name in names]),
        }
        scores = {}
        for what, table in tables.items():
            columns = {"": mean_of_judges(table, MIN_JUDGES)}
            columns |= {f":{k}": x for k, x in zip(self.judges, table, strict=True)}
            for whose, values in columns.items():
                scores[what + whose] = mean_score(values, draws)
                if what != "mean_e_above_hull":
                    continue
                for flag, limit in (("stable", STABLE), ("metastable", METASTABLE)):
                    below = np.where(valid, values <= limit, np.nan)
                    scores[f"{flag}_ratio{whose}"] = mean_score(below, draws)
        for flag in ("sun", "msun"):
            scores[f"{flag}_rate"] = share(rows, f"lemat/{flag}", draws, valid)
        either = [bool(row.get("lemat/sun") or row.get("lemat/msun")) for row in rows]
        both = np.where(valid, either, np.nan)
        scores["combined_sun_msun_rate"] = mean_score(both, draws)
        return scores

    def _hull_formation(self, rows, context: EvaluationContext) -> np.ndarray:
        """The hull's formation energy at each composition, [judges, n], eV/atom.

        From the elements as each potential has them.
        """
        found = np.full((len(self.judges), len(rows)), np.nan)
        for k, name in enumerate(self.judges):
            _, hull = context.judges[name]
            for i, row in enumerate(rows):
                if row.get("lemat/valid"):
                    types = structure_types(row["structure"])
                    elements = [hull.hull_energy([z]) for z in types]
                    found[k, i] = hull.hull_energy(types) - np.mean(elements)
        return found


def mean_of_judges(table: np.ndarray, least: int) -> np.ndarray:
    """Mean over the judges that have an answer, [judges, n] -> [n].

    NaN where fewer than `least` have one, or than there are judges.
    """
    known = np.isfinite(table).sum(0)
    mean = np.nansum(table, 0) / np.maximum(known, 1)
    return np.where(known >= min(least, len(table)), mean, np.nan)

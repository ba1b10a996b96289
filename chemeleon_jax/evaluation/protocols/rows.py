"""What protocols ask of the rows of a set, and write into them."""

from collections.abc import Iterable

import numpy as np

from chemeleon_jax.data.crystals import formula_key
from chemeleon_jax.evaluation import statistics
from chemeleon_jax.evaluation.judge import Row, note
from chemeleon_jax.evaluation.scores import structure_types
from chemeleon_jax.evaluation.statistics import Score
from chemeleon_jax.rewards.matches import by_formula, first_occurrences
from chemeleon_jax.workers.matching import Cell, Fit
from chemeleon_jax.workers.outcome import Outcome, Status
from chemeleon_jax.workers.pool import Pool


def numbers(rows: list[Row], name: str) -> np.ndarray:
    """A column [n], float64; NaN where a row has none."""
    values = [row.get(name) for row in rows]
    return np.array([np.nan if x is None else x for x in values], float)


def above_hull(rows: list[Row], judges: list[str]) -> np.ndarray:
    """Energy above the hull by each potential, [judges, n], eV/atom."""
    several = len(judges) > 1
    names = [f"e_above_hull:{k}" if several else "e_above_hull" for k in judges]
    return np.array([numbers(rows, name) for name in names]).reshape(-1, len(rows))


def reduced_cells(rows: list[Row], among: Iterable[int]) -> dict[int, Outcome]:
    """The reduced cells of those of some crystals that have one, by row."""
    return {
        i: Outcome(Status.OK, Cell(*(np.array(x) for x in rows[i]["reduced"])))
        for i in among
        if "reduced" in rows[i]
    }


def first_ones(rows: list[Row], among: list[int], pool: Pool, fit: Fit) -> set[int]:
    """Which of some crystals are the first of their kind, in the order of the set.

    One that has company of its reduced formula and could not be compared with it is
    not. Rows have their `structure` and, where it could be made, their `reduced` cell.

    Args:
      rows: of the whole set.
      among: numbers of the rows to compare with each other.
      pool: worker processes.
      fit: what a match is; can be pickled.
    """
    reduced = reduced_cells(rows, among)
    keys = {i: formula_key(structure_types(rows[i]["structure"])) for i in among}
    groups = [group for group in by_formula(keys).values() if len(group) > 1]
    buckets = [[i for i in group if i in reduced] for group in groups]
    flags = first_occurrences(buckets, reduced, pool, fit)
    alone = set(among).difference(*groups)
    for i, outcome in flags.items():
        if outcome.status != Status.OK:
            note(rows[i], "protocol: not compared")
    firsts = {i for i, o in flags.items() if o.status == Status.OK and o.value}
    return alone | firsts


def share(
    rows: list[Row], flag: str, draws: np.ndarray, among: np.ndarray | None = None
) -> Score:
    """Share of crystals with a flag, of those `among` [n] bool, and its interval."""
    values = np.array([bool(row.get(flag)) for row in rows], float)
    if among is not None:
        values[~among] = np.nan
    return statistics.mean_score(values, draws)


def without_interval(value: float) -> Score:
    """A score whose interval would mislead, or is not known."""
    return Score(float(value), np.nan, np.nan)

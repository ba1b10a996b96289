"""Crystals judged by several potentials: by each, by all, and how far they agree.

What a potential says is in columns and scores named `e_above_hull:NAME`. `all` stands
for the consensus, `mean` and `spread` for the mean and the range over the potentials.
"""

from itertools import combinations

import numpy as np

from chemeleon_jax.evaluation import statistics
from chemeleon_jax.evaluation.judge import STABLE, Row
from chemeleon_jax.rewards.stability import is_metastable, is_msun

FLAGS = ("metastable", "stable", "msun", "msun_undiluted")


def columns(names: list[str]) -> tuple[str, ...]:
    """Columns of `crystals.csv` that several potentials add."""
    found = ("energy", "e_above_hull", *FLAGS)
    return (
        *(f"{what}:{name}" for name in names for what in found),
        *("e_above_hull:mean", "e_above_hull:spread"),
        *(f"{flag}:all" for flag in FLAGS),
    )


def add_opinions(rows: list[Row], names: list[str]) -> None:
    """Flags by each potential and by all; mean and range of the distances, eV/atom.

    Where a potential gives no distance from the hull, its flags and those of all are
    False, and there is neither mean nor range. Rows have `e_above_hull:NAME` for each
    of the names, `unique`, `novel` and `diluted`.
    """
    for row in rows:
        found = np.array([_distance(row, name) for name in names])
        for name, above in zip(names, found, strict=True):
            row[f"metastable:{name}"] = bool(is_metastable(above))
            row[f"stable:{name}"] = bool(above <= STABLE)
            row[f"msun:{name}"] = bool(is_msun(above, row["unique"], row["novel"]))
            row[f"msun_undiluted:{name}"] = row[f"msun:{name}"] and not row["diluted"]
        for flag in FLAGS:
            row[f"{flag}:all"] = all(row[f"{flag}:{name}"] for name in names)
        if np.isfinite(found).all():
            row["e_above_hull:mean"] = float(found.mean())
            row["e_above_hull:spread"] = float(np.ptp(found))


def _distance(row: Row, name: str) -> float:
    """Energy above the hull by a potential, NaN where it has none."""
    above = row.get(f"e_above_hull:{name}")
    return np.nan if above is None else above


def score_opinions(
    rows: list[Row], names: list[str], draws: np.ndarray
) -> dict[str, statistics.Score]:
    """Shares by each potential and by all, distances, and rank correlations.

    Of rows that have their opinions; `draws`: see `statistics.resample`.
    """
    scores = {}
    for flag in FLAGS:
        for name in (*names, "all"):
            values = np.array([row[f"{flag}:{name}"] for row in rows], float)
            scores[f"{flag}:{name}"] = statistics.mean_score(values, draws)
    above = {}
    for name in (*names, "mean", "spread"):
        above[name] = np.array([_distance(row, name) for row in rows])
        scores[f"e_above_hull:{name}"] = statistics.mean_score(above[name], draws)
    for one, other in combinations(names, 2):
        scores[f"rank_correlation:{one},{other}"] = statistics.rank_correlation(
            above[one], above[other], draws
        )
    return scores

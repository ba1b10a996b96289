import numpy as np
import pytest

from chemeleon_jax.evaluation.opinions import add_opinions, columns, score_opinions
from chemeleon_jax.evaluation.statistics import rank_correlation, resample

NAMES = ["a", "ase:b:c"]


@pytest.fixture
def rows():
    """Four: both agree, they differ and it is diluted, one knows none, not new."""
    above = [(0.05, -0.01), (0.02, 0.3), (0.08, None), (-0.1, -0.2)]
    rows = [
        {"unique": True, "novel": True, "e_above_hull:a": a, "e_above_hull:ase:b:c": b}
        for a, b in above
    ]
    rows[3]["novel"] = False
    for i, row in enumerate(rows):
        row["diluted"] = i == 1
    add_opinions(rows, NAMES)
    return rows


def test_flags_by_each_and_by_all(rows):
    def flags(name):
        return [row[name] for row in rows]

    assert flags("metastable:a") == [True, True, True, True]
    assert flags("metastable:ase:b:c") == [True, False, False, True]
    assert flags("metastable:all") == [True, False, False, True]
    assert flags("stable:a") == [False, False, False, True]
    assert flags("stable:ase:b:c") == [True, False, False, True]
    assert flags("msun:all") == [True, False, False, False]
    assert flags("msun:a") == [True, True, True, False]
    assert flags("msun_undiluted:a") == [True, False, True, False]
    assert rows[1]["e_above_hull:mean"] == pytest.approx(0.16)
    assert rows[1]["e_above_hull:spread"] == pytest.approx(0.28)
    assert "e_above_hull:mean" not in rows[2]
    assert set(rows[0]) - {"unique", "novel", "diluted"} <= set(columns(NAMES))


def test_scores_of_opinions(rows):
    scores = score_opinions(rows, NAMES, resample(4, 50, seed=0))
    assert scores["metastable:a"].value == 1.0
    assert scores["metastable:all"].value == 0.5
    assert scores["msun:ase:b:c"].value == 0.25
    assert scores["e_above_hull:spread"].value == pytest.approx((0.06 + 0.28 + 0.1) / 3)
    # Three crystals have both: ranks 3, 2, 1 and 2, 3, 1.
    assert scores["rank_correlation:a,ase:b:c"].value == pytest.approx(0.5)


def test_rank_correlation_by_hand():
    x = np.array([1.0, 2.0, 3.0, 40.0, np.nan])
    draws = resample(5, 200, seed=0)
    assert rank_correlation(x, x**3, draws) == pytest.approx((1, 1, 1))
    score = rank_correlation(x, np.array([2.0, 1.0, 4.0, 3.0, 0.0]), draws)
    assert score.value == pytest.approx(1 - 6 * 4 / (4 * 15))  # sum of squares: 4
    assert -1 <= score.low < score.value < score.high <= 1
    assert np.isnan(rank_correlation(x, np.ones(5), draws).value)

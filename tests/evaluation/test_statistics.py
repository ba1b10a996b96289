import numpy as np
import pytest

from chemeleon_jax.evaluation.statistics import (
    effective_number,
    frechet_score,
    mean_score,
    resample,
)


def test_effective_numbers_by_hand():
    draws = resample(4, 300, seed=0)
    two, one = np.eye(2)[[0, 0, 1, 1]], np.eye(2)[[0, 0, 0, 1]]
    assert effective_number(two, draws).value == pytest.approx(2.0)
    shares = 0.75 * np.log(0.75) + 0.25 * np.log(0.25)
    score = effective_number(one, draws)
    assert score.value == pytest.approx(np.exp(-shares))
    assert score.low < score.value < score.high
    assert effective_number(one[:3], draws[:, :3]).value == pytest.approx(1.0)
    assert np.isnan(effective_number(np.zeros((4, 0)), draws)).all()  # all invalid


def test_intervals_hold_the_value_and_shrink_with_the_set():
    rng = np.random.default_rng(0)
    known, widths = rng.normal(size=(300, 3)), []
    for count in (50, 800):
        draws = resample(count, 400, seed=0)
        share = mean_score((np.arange(count) % 5 == 0).astype(float), draws)
        assert share.low < share.value < share.high
        # The normal approximation of a share of 0.2: +- 1.96 sqrt(0.2 * 0.8 / n).
        half = 1.96 * np.sqrt(0.16 / count)
        np.testing.assert_allclose((share.high - share.low) / 2, half, rtol=0.15)
        distance = frechet_score(rng.normal(size=(count, 3)), known, draws)
        assert 0 <= distance.low < distance.value < distance.high
        widths.append(distance.high - distance.low)
    assert widths[1] < widths[0] / 2


def test_two_valid_crystals_in_a_set_have_a_distance():
    features = np.full((20, 2), np.nan)
    features[:2] = [[0.0, 1.0], [2.0, 1.0]]
    draws = resample(20, 200, seed=0)  # some of them without either
    score = frechet_score(features, np.eye(2), draws)
    assert np.isfinite(score).all()


def test_crystals_without_a_value_are_left_out():
    draws = resample(4, 100, seed=0)
    score = mean_score(np.array([1.0, 1.0, np.nan, 1.0]), draws)
    assert score == (1.0, 1.0, 1.0)
    assert np.isnan(mean_score(np.full(4, np.nan), draws)).all()

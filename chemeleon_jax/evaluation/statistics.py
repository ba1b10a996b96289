"""Scores of a set of crystals with bootstrap intervals. NumPy, float64."""

from typing import NamedTuple

import numpy as np
from scipy.stats import entropy

from chemeleon_jax.rewards.audit import spearman
from chemeleon_jax.rewards.frechet import fit_gaussian, frechet_distance

CONFIDENCE = 0.95


class Score(NamedTuple):
    """A score of a set of crystals, and its interval."""

    value: float
    low: float
    high: float


def resample(count: int, resamples: int, seed: int) -> np.ndarray:
    """How often each of `count` crystals is drawn, [resamples, count] (Efron 1979)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), resamples)


def mean_score(values: np.ndarray, draws: np.ndarray) -> Score:
    """Mean of values [n], NaN left out, and its percentile interval."""
    known = np.isfinite(values)
    if not known.any():
        return Score(np.nan, np.nan, np.nan)
    weights = draws[:, known].astype(np.float64)
    total = weights.sum(1)
    means = (weights @ values[known])[total > 0] / total[total > 0]
    return Score(float(values[known].mean()), *_quantiles(means))


def rank_correlation(x: np.ndarray, y: np.ndarray, draws: np.ndarray) -> Score:
    """Spearman's rank correlation of x [n] and y [n], and its percentile interval.

    Pairs that are not finite are left out. NaN of fewer than three, or of constants.
    """
    known = np.isfinite(x) & np.isfinite(y)
    x, y, weights = x[known], y[known], draws[:, known]
    drawn = (np.repeat(np.arange(len(x)), counts) for counts in weights)
    found = np.array([spearman(x[rows], y[rows]) for rows in drawn])
    found = found[np.isfinite(found)]
    low_high = _quantiles(found) if len(found) else (np.nan, np.nan)
    return Score(spearman(x, y), *low_high)


def frechet_score(
    features: np.ndarray, references: np.ndarray, draws: np.ndarray
) -> Score:
    """Fréchet distance between crystals and references, and an interval.

    A resample has fewer distinct crystals than the set, so its distance is larger. That
    shift is known, the mean over resamples minus the distance, and is taken off the
    percentiles. The distance itself is not corrected: it is comparable only between
    sets of one size.

    Args:
      features: [n, p], rows that are not finite are left out.
      references: [m, p].
      draws: see `resample`.
    """
    known = np.isfinite(features).all(1)
    if known.sum() < 2:
        return Score(np.nan, np.nan, np.nan)
    x, weights = features[known], draws[:, known]
    weights = weights[weights.any(1)]  # of few crystals, some resamples hold none
    target = fit_gaussian(references)
    value = frechet_distance(fit_gaussian(x), target)
    spread = [frechet_distance(fit_gaussian(x, w), target) for w in weights]
    spread = np.array(spread)
    low, high = _quantiles(spread - spread.mean() + value)
    return Score(value, max(low, 0.0), high)


def effective_number(counts: np.ndarray, draws: np.ndarray) -> Score:
    """How many kinds, if all were equally common, are as diverse as these.

    exp(-sum_k p_k ln p_k), the Hill number of order 1 (Hill, Ecology 54, 427, 1973).
    Resamples are less diverse than the set, which is taken off as in `frechet_score`.

    Args:
      counts: [n, kinds], how much of each kind is in each crystal.
      draws: see `resample`.
    """
    if not counts.any():
        return Score(np.nan, np.nan, np.nan)
    drawn = draws @ counts
    value = float(np.exp(entropy(counts.sum(0))))
    spread = np.exp(entropy(drawn[drawn.any(1)], axis=1))
    return Score(value, *_quantiles(spread - spread.mean() + value))


def _quantiles(values: np.ndarray) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)

"""Scores of a set of crystals with bootstrap intervals. NumPy, float64."""

from typing import NamedTuple

import numpy as np
from scipy.stats import entropy, rankdata

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
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Score(np.nan, np.nan, np.nan)
    found = []
    for counts in weights:
        rows = np.repeat(np.arange(len(x)), counts)
        if len(rows) > 2 and np.ptp(x[rows]) > 0 and np.ptp(y[rows]) > 0:
            found.append(_spearman(x[rows], y[rows]))
    low_high = _quantiles(np.array(found)) if found else (np.nan, np.nan)
    return Score(_spearman(x, y), *low_high)


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])


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
    target = _moments(references, np.ones(len(references)))
    root = _square_root(target[1])
    value = _distance(_moments(x, np.ones(len(x))), target, root)
    spread = np.array([_distance(_moments(x, w), target, root) for w in weights])
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


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Squared 2-Wasserstein distance of the Gaussians fitted to x [n, p] and y [m, p].

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S2^1/2 S1 S2^1/2)^1/2)  (Dowson and Landau, 1982), the
    "FID" of arXiv:1706.08500 on other features.
    """
    one, other = (_moments(a, np.ones(len(a))) for a in (x, y))
    return _distance(one, other, _square_root(other[1]))


def _moments(x: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    weights = weights / weights.sum()
    mean = weights @ x
    centred = x - mean
    return mean, (centred * weights[:, None]).T @ centred


def _square_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def _distance(one, other, other_root) -> float:
    between = np.linalg.eigvalsh(other_root @ one[1] @ other_root)
    trace = np.trace(one[1]) + np.trace(other[1])
    trace -= 2 * np.sqrt(np.maximum(between, 0.0)).sum()
    return float(((one[0] - other[0]) ** 2).sum() + max(trace, 0.0))


def _quantiles(values: np.ndarray) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)

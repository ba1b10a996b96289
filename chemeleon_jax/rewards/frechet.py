"""Fréchet distance between sets of features. NumPy, float64."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False)
class Gaussian:
    """The normal distribution fitted to features of p numbers."""

    mean: np.ndarray  # [p]
    covariance: np.ndarray  # [p, p]

    @cached_property
    def root(self) -> np.ndarray:
        """Square root of the covariance, [p, p]."""
        values, vectors = np.linalg.eigh(self.covariance)
        return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def fit_gaussian(x: np.ndarray, weights: np.ndarray | None = None) -> Gaussian:
    """Mean and covariance of x [n, p], whose rows count as much as weights [n] say."""
    total = np.ones(len(x)) if weights is None else weights
    share = total / total.sum()
    mean = share @ x
    centred = x - mean
    return Gaussian(mean, (centred * share[:, None]).T @ centred)


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """Squared 2-Wasserstein distance of two normal distributions.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S2^1/2 S1 S2^1/2)^1/2)  (Dowson and Landau, 1982), the
    "FID" of arXiv:1706.08500 on other features. It shrinks with the size of the sets
    that they were fitted to. The square root of `other` is computed once.
    """
    between = np.linalg.eigvalsh(other.root @ one.covariance @ other.root)
    trace = np.trace(one.covariance) + np.trace(other.covariance)
    trace -= 2 * np.sqrt(np.maximum(between, 0.0)).sum()
    return float(((one.mean - other.mean) ** 2).sum() + max(trace, 0.0))

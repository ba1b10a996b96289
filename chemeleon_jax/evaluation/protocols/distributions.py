"""How far apart two distributions are, and how broad one is. NumPy, float64.

The definitions are LeMat-GenBench's (arXiv:2512.04562; Apache-2.0).
"""

import numpy as np
from scipy.spatial.distance import jensenshannon

_BLOCK = 256  # values compared with others at once


def histogram(values, num_kinds: int) -> np.ndarray:
    """How often each of the kinds 1 to `num_kinds` occurs, [num_kinds]."""
    return np.bincount(np.asarray(values, int), minlength=num_kinds + 1)[1:]


def js_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Jensen-Shannon distance of two histograms [k], each of any sum.

    sqrt((KL(p, m) + KL(q, m)) / 2) with m = (p + q) / 2, in nats: 0 for the same
    distribution, sqrt(ln 2) = 0.833 for those that share nothing. NaN of an empty one.
    """
    if not one.any() or not other.any():
        return np.nan
    return float(jensenshannon(one, other))


def mmd(x: np.ndarray, y: np.ndarray, sigma: float = 1.0) -> float:
    """Squared maximum mean discrepancy of x [n] and y [m], with a Gaussian kernel.

    mean k(x, x') + mean k(y, y') - 2 mean k(x, y), pairs of one with itself included,
    k(a, b) = exp(-(a - b)^2 / (2 sigma^2)) (Gretton et al., JMLR 13, 723, 2012, eq. 5).
    NaN without values.
    """
    if len(x) == 0 or len(y) == 0:
        return np.nan
    xx = _sum_of_kernel(x, None, sigma) / len(x) ** 2
    yy = _sum_of_kernel(y, None, sigma) / len(y) ** 2
    return xx + yy - 2 * _sum_of_kernel(x, y, sigma) / (len(x) * len(y))


def _sum_of_kernel(x: np.ndarray, y: np.ndarray | None, sigma: float) -> float:
    """Sum of k over all pairs of x and y, or of x and itself."""
    total = 0.0
    for start in range(0, len(x), _BLOCK):  # all pairs at once may not fit
        end = start + _BLOCK
        if y is None:  # pairs with later blocks count twice
            total += _block_sum(x[start:end], x[start:end], sigma)
            total += 2 * _block_sum(x[start:end], x[end:], sigma)
        else:
            total += _block_sum(x[start:end], y, sigma)
    return total


def _block_sum(x: np.ndarray, y: np.ndarray, sigma: float) -> float:
    exponent = (x[:, None] - y) / sigma
    exponent *= exponent
    exponent *= -0.5
    return float(np.exp(exponent, out=exponent).sum())


def entropy_of_bins(values: np.ndarray, width: float) -> float:
    """Shannon entropy of values [n] in bins of a width, in nats; NaN without values."""
    if len(values) == 0:
        return np.nan
    _, counts = np.unique(values // width, return_counts=True)
    share = counts / len(values)
    return float(-(share * np.log(share)).sum())

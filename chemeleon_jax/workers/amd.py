"""Average minimum distances: a fingerprint of a periodic set of points.

NumPy only: it runs in worker processes.
"""

import numpy as np

_GROWTH = 1.25  # of the search radius, while an atom lacks neighbours
_BLOCK = 4_000_000  # distances held at once, 32 MB


def average_minimum_distance(
    matrix: np.ndarray, frac_coords: np.ndarray, k: int = 100
) -> np.ndarray:
    """AMD vector of a crystal (Widdowson et al., MATCH 87, 529, 2022).

    Entry j is the distance from an atom to its (j+1)-th nearest neighbour, averaged
    over the atoms of the cell; neighbours at equal distance count each, elements do not
    count. It does not depend on the choice of cell, and moves continuously with atoms.

    Exact for cells of any shape: two points closer than r differ by less than r / h in
    the fractional coordinate along which lattice planes are h apart, which bounds the
    images that have to be looked at.

    Args:
      matrix: [3, 3] lattice vectors as rows, Å, linearly independent.
      frac_coords: [n, 3].
      k: length of the vector.

    Returns:
      [k] float64, ascending, Å.
    """
    n = len(frac_coords)
    volume = abs(np.linalg.det(matrix))
    spacings = 1 / np.linalg.norm(np.linalg.inv(matrix), axis=0)
    frac = frac_coords % 1.0
    radius = 1.1 * (3 * (k + 1) * volume / (4 * np.pi * n)) ** (1 / 3)
    while True:
        distances = _nearest(matrix, frac, np.floor(radius / spacings + 1), k)
        if distances.max() <= radius:  # else an atom beyond the images may be nearer
            return distances.mean(0)
        radius *= _GROWTH


def _nearest(matrix, frac, reach, k) -> np.ndarray:
    """Distances to the k nearest points among images -reach..reach, [n, k]."""
    axes = [np.arange(-r, r + 1) for r in reach]
    images = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    points = (images[:, None] + frac).reshape(-1, 3) @ matrix
    if len(points) <= k:
        return np.full((len(frac), k), np.inf)
    nearest = np.empty((len(frac), k))
    rows = max(1, _BLOCK // len(points))
    for i in range(0, len(frac), rows):
        apart = points - (frac[i : i + rows] @ matrix)[:, None]
        squared = np.einsum("npx,npx->np", apart, apart)
        squared = np.partition(squared, k, axis=1)[:, : k + 1]
        nearest[i : i + rows] = np.sqrt(np.sort(squared, axis=1)[:, 1:])  # not itself
    return nearest

"""A quick necessary condition of StructureMatcher.fit.

NumPy only: it runs in worker processes. StructureMatcher spends its time on making
objects and refining candidates; the tests that reject most pairs are array arithmetic.
"""

import numpy as np

LENGTH_TOL, ANGLE_TOL, SITE_TOL = 0.2, 5.0, 0.3  # StructureMatcher's defaults
_SLACK = 1e-6  # never stricter than pymatgen, however it rounds


def may_fit(one, other) -> bool:
    """False only where `StructureMatcher().fit(one, other)` is, of two reduced cells.

    Both are `matching.Cell`s of the same reduced formula. Follows the algorithm as far
    as its first test of positions: both cells are scaled to the same volume; a cell of
    `one` has lengths within 20 % and angles within 5 degrees of those of `other`; and
    with one atom of the rarest element put on another, each atom of `other` has one of
    its element in a box around it.
    """
    if len(one.atom_types) != len(other.atom_types):
        return False
    volumes = [abs(np.linalg.det(cell.matrix)) for cell in (one, other)]
    ratio = (volumes[1] / volumes[0]) ** (1 / 6)
    matrix, target = one.matrix * ratio, other.matrix / ratio
    mappings = _mappings(matrix, target)
    if not len(mappings):
        return False
    frac = np.moveaxis(one.frac_coords @ np.linalg.inv(mappings), -1, 0)  # [3, m, n]
    origin = other.frac_coords.T[:, None]  # [3, 1, n]
    differ = other.atom_types[:, None] != one.atom_types  # [n, n], other by one
    anchor = int(differ.sum(1).argmax())
    box = _box(mappings @ matrix, target, len(one.atom_types)).T + _SLACK
    for start in np.flatnonzero(~differ[anchor]):
        moved = origin + (frac[:, :, start] - origin[:, :, anchor])[..., None]
        near = ~differ
        for x, y, half_width in zip(moved, frac, box, strict=True):
            apart = x[:, :, None] - y[:, None]  # [m, n, n]
            apart -= np.round(apart)
            near = near & (abs(apart) <= half_width[:, None, None])
        if near.any(2).all(1).any():
            return True
    return False


def _mappings(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Unimodular M for which M @ matrix has about the shape of `target`, [m, 3, 3]."""
    lengths = np.linalg.norm(target, axis=1)
    angles = _angles(target, target)
    high = 1 + LENGTH_TOL + _SLACK
    spacings = 1 / np.linalg.norm(np.linalg.inv(matrix), axis=0)
    reach = np.floor(lengths.max() * high / spacings)
    axes = [np.arange(-r, r + 1) for r in reach]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    vectors = points @ matrix
    norms = np.linalg.norm(vectors, axis=1)
    a, b, c = (np.flatnonzero((norms < x * high) & (norms * high > x)) for x in lengths)

    def alike(i, j, angle):
        found = _angles(vectors[i], vectors[j])
        return abs(found - angle) <= ANGLE_TOL + _SLACK

    triples = alike(a, b, angles[0, 1])[:, :, None] & alike(a, c, angles[0, 2])[:, None]
    i, j, k = np.nonzero(triples & alike(b, c, angles[1, 2])[None])
    mappings = np.stack([points[a[i]], points[b[j]], points[c[k]]], 1)
    return mappings[np.isclose(abs(np.linalg.det(mappings)), 1)]


def _angles(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Angles between vectors [..., n, 3] and [..., m, 3], degrees, [..., n, m]."""
    u, v = (x / np.sqrt((x * x).sum(-1, keepdims=True)) for x in (u, v))
    return np.rad2deg(np.arccos(np.clip(u @ np.swapaxes(v, -1, -2), -1, 1)))


def _box(matrices: np.ndarray, target: np.ndarray, count: int) -> np.ndarray:
    """Half-widths of the box around an atom, fractional, [m, 3].

    StructureMatcher's: 2 SITE_TOL (V / n)^(1/3) / h, with h the distance between the
    planes of the average of both cells, by lengths and angles.
    """
    lengths, own = (np.linalg.norm(x, axis=-1) for x in (matrices, target))
    lengths = (lengths + own) / 2
    angles = (_angles(matrices, matrices) + _angles(target, target)) / 2
    cos = np.cos(np.deg2rad(angles[:, [1, 0, 0], [2, 2, 1]]))  # alpha, beta, gamma
    unit = 1 - (cos**2).sum(1) + 2 * cos.prod(1)
    unit = np.sqrt(np.maximum(unit, 1e-12))  # volume of the cell with lengths of 1
    spacings = lengths * unit[:, None] / np.sqrt(1 - cos**2)
    volume = lengths.prod(1) * unit
    return 2 * SITE_TOL * (volume[:, None] / count) ** (1 / 3) / spacings

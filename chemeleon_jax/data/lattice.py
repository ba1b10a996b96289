"""Lattice algebra. Vectors are rows; lengths in Å, angles in degrees.

Each function takes NumPy or JAX arrays with any leading axes and answers in kind.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np


def _array_module(x):
    return jnp if isinstance(x, jax.Array) else np


def _assert_vectors(matrix):
    chex.assert_axis_dimension(matrix, -1, 3)
    chex.assert_axis_dimension(matrix, -2, 3)


def lattice_matrix(lengths, angles):
    """Lattice vectors from cell parameters, in the orientation of Chemeleon2.

    c lies along z and a in the xz plane (as in pymatgen's `from_parameters`).
    Impossible angles do not raise: the cosine of gamma* is clipped to [-1, 1], which
    flattens the cell.

    Args:
      lengths: [..., 3] a, b, c in Å.
      angles: [..., 3] alpha, beta, gamma in degrees.

    Returns:
      [..., 3, 3], rows are the vectors, in Å.
    """
    chex.assert_equal_shape([lengths, angles])
    chex.assert_axis_dimension(lengths, -1, 3)
    xp = _array_module(lengths)
    radians = angles * (np.pi / 180)
    a, b, c = (lengths[..., i] for i in range(3))
    cos, sin = xp.cos(radians), xp.sin(radians)
    cos_a, cos_b, cos_g = (cos[..., i] for i in range(3))
    sin_a, sin_b = sin[..., 0], sin[..., 1]
    cos_gamma_star = xp.clip((cos_a * cos_b - cos_g) / (sin_a * sin_b), -1.0, 1.0)
    sin_gamma_star = xp.sqrt(xp.maximum(1 - cos_gamma_star**2, 0.0))
    zero = xp.zeros_like(a)
    vectors = [
        xp.stack([a * sin_b, zero, a * cos_b], -1),
        xp.stack(
            [-b * sin_a * cos_gamma_star, b * sin_a * sin_gamma_star, b * cos_a], -1
        ),
        xp.stack([zero, zero, c], -1),
    ]
    return xp.stack(vectors, -2)


def lattice_parameters(matrix):
    """Cell parameters of lattice vectors: `lattice_matrix` undone, up to rotation.

    Args:
      matrix: [..., 3, 3], rows are the vectors, in Å.

    Returns:
      lengths [..., 3] in Å, angles [..., 3] in degrees.
    """
    _assert_vectors(matrix)
    xp = _array_module(matrix)
    lengths = xp.sqrt((matrix**2).sum(-1))
    unit = matrix / lengths[..., None]
    pairs = ((1, 2), (0, 2), (0, 1))  # alpha is between b and c, and so on
    cosines = [(unit[..., i, :] * unit[..., j, :]).sum(-1) for i, j in pairs]
    angles = xp.arccos(xp.clip(xp.stack(cosines, -1), -1.0, 1.0)) * (180 / np.pi)
    return lengths, angles


def metric_parameters(metric):
    """Cell parameters of metric tensors, whose elements are a.a, a.b, ...

    Args:
      metric: [..., 3, 3] in Å^2.

    Returns:
      lengths [..., 3] in Å, angles [..., 3] in degrees.
    """
    _assert_vectors(metric)
    xp = _array_module(metric)
    lengths = xp.sqrt(xp.stack([metric[..., i, i] for i in range(3)], -1))
    pairs = ((1, 2), (0, 2), (0, 1))  # alpha is between b and c, and so on
    cosines = [
        metric[..., i, j] / (lengths[..., i] * lengths[..., j]) for i, j in pairs
    ]
    return lengths, xp.arccos(xp.clip(xp.stack(cosines, -1), -1.0, 1.0)) * (180 / np.pi)


def volume(matrix):
    """Cell volume in Å^3 of lattice vectors [..., 3, 3] -> [...]."""
    _assert_vectors(matrix)
    xp = _array_module(matrix)
    a, b, c = (matrix[..., i, :] for i in range(3))
    return xp.abs((a * xp.cross(b, c)).sum(-1))


def inverse(matrix):
    """Inverses of lattice vectors [..., 3, 3], by cross products, [..., 3, 3].

    Not by `jnp.linalg.inv`: its batched LU decomposition waits on a CPU for threads of
    the pool that it runs in, and with one on each of several devices waits for ever
    (jaxlib 0.10).
    """
    _assert_vectors(matrix)
    xp = _array_module(matrix)
    a, b, c = (matrix[..., i, :] for i in range(3))
    columns = xp.stack([xp.cross(b, c), xp.cross(c, a), xp.cross(a, b)], -1)
    return columns / (a * xp.cross(b, c)).sum(-1)[..., None, None]

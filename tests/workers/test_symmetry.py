"""Space groups, and how much symmetry a crystal has."""

import math

import numpy as np
import pytest

from chemeleon_jax.workers.matching import Cell
from chemeleon_jax.workers.symmetry import space_group, symmetry_degree

SALT = np.array([[0.0, 0, 0], [0.5, 0.5, 0.5]])
ROCK_SALT = 5.6 * np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
SKEWED = np.array([[5.0, 0, 0], [0.7, 6, 0], [1.1, 1.3, 7]])


@pytest.mark.parametrize(
    "matrix, types, frac, group, order",
    [
        (ROCK_SALT, [11, 17], SALT, "Fm-3m", 48),
        (ROCK_SALT, [31, 33], SALT / 2, "F-43m", 24),
        (SKEWED, [11, 11], SALT / 3, "P-1", 2),
        (SKEWED, [11, 17, 8], [[0, 0, 0], [0.3, 0.4, 0.6], [0.7, 0.1, 0.2]], "P1", 1),
        # Twice the primitive cell: its translations are no further rotations.
        (np.diag([1, 1, 2]) @ ROCK_SALT, [11, 17, 11, 17], None, "Fm-3m", 48),
    ],
)
def test_degree_is_the_logarithm_of_the_order(matrix, types, frac, group, order):
    if frac is None:
        frac = np.concatenate([SALT, SALT + [0, 0, 1]]) / [1, 1, 2]
    cell = Cell(matrix, np.array(types), np.array(frac))
    assert space_group(cell) == group
    assert symmetry_degree(cell) == pytest.approx(math.log(order) / math.log(48))


def test_tolerance():
    moved = np.array([[0.0, 0, 0], [0.5, 0.5, 0.52]])  # 0.07 Å: P4mm, 8 operations
    cell = Cell(3.5 * np.eye(3), np.array([55, 17]), moved)
    expected = math.log(8) / math.log(48)
    assert symmetry_degree(cell, tolerance=0.01) == pytest.approx(expected)
    assert symmetry_degree(cell, tolerance=0.3) == 1

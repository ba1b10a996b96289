import numpy as np
import pytest

from chemeleon_jax.workers.amd import average_minimum_distance

ROCK_SALT = 5.6 * np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])


def random_crystal(n, seed=0):
    rng = np.random.default_rng(seed)
    matrix = 5 * np.eye(3) + rng.normal(size=(3, 3))
    return matrix, rng.random((n, 3))


def test_simple_cubic():
    """6 neighbours at a, 12 at sqrt 2 a, 8 at sqrt 3 a, 6 at 2 a."""
    got = average_minimum_distance(3.0 * np.eye(3), np.zeros((1, 3)), 32)
    shells = np.repeat([1, np.sqrt(2), np.sqrt(3), 2], [6, 12, 8, 6])
    np.testing.assert_allclose(got, 3.0 * shells, atol=1e-12)


def test_mean_over_atoms():
    """Three atoms on a line of period 10 at 0, 1, 3: nearest at 1, 1, 2 Å."""
    matrix = np.diag([10.0, 100.0, 100.0])
    frac = np.array([[0, 0, 0], [0.1, 0, 0], [0.3, 0, 0]])
    got = average_minimum_distance(matrix, frac, 2)
    np.testing.assert_allclose(got, [(1 + 1 + 2) / 3, (3 + 2 + 3) / 3], atol=1e-12)


def test_against_a_large_block_of_the_crystal():
    matrix, frac = random_crystal(5)
    axis = np.arange(-8, 9)
    images = np.stack(np.meshgrid(axis, axis, axis), -1).reshape(-1, 3)
    points = (images[:, None] + frac).reshape(-1, 3) @ matrix
    apart = np.linalg.norm(points - (frac @ matrix)[:, None], axis=-1)
    expected = np.sort(apart, axis=1)[:, 1:101].mean(0)
    got = average_minimum_distance(matrix, frac)
    np.testing.assert_allclose(got, expected, atol=1e-10)


@pytest.mark.parametrize(
    "supercell",
    [
        [[2, 0, 0], [0, 1, 0], [0, 0, 3]],
        [[1, 1, 0], [0, 1, 0], [0, 0, 1]],  # another cell of the same lattice
        [[1, 7, 0], [0, 1, 5], [0, 0, 1]],  # the same, very skewed
        [[0, 1, 0], [1, 0, 0], [0, 0, 1]],  # left-handed
    ],
)
def test_any_cell_of_the_crystal_gives_the_same(supercell):
    matrix, frac = random_crystal(4)
    points = np.stack(np.meshgrid(*[np.arange(-9, 10)] * 3), -1).reshape(-1, 3)
    everywhere = (points[:, None] + frac).reshape(-1, 3) @ np.linalg.inv(supercell)
    inside = ((everywhere > -1e-9) & (everywhere < 1 - 1e-9)).all(1)
    assert inside.sum() == 4 * round(abs(np.linalg.det(supercell)))
    got = average_minimum_distance(supercell @ matrix, everywhere[inside])
    np.testing.assert_allclose(got, average_minimum_distance(matrix, frac), atol=1e-9)


def test_translation_permutation_rotation_and_wrapping():
    matrix, frac = random_crystal(6)
    rng = np.random.default_rng(1)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    moved = frac[rng.permutation(6)] + rng.normal(size=3) + rng.integers(-2, 3, (6, 3))
    got = average_minimum_distance(matrix @ rotation, moved)
    np.testing.assert_allclose(got, average_minimum_distance(matrix, frac), atol=1e-9)


@pytest.mark.parametrize("lengths", [(3, 3, 60), (50, 50, 2.5), (100, 100, 100)])
def test_long_and_empty_cells(lengths):
    """Far more images along one axis than along another."""
    got = average_minimum_distance(np.diag(lengths), np.zeros((1, 3)))
    reach = np.arange(-120, 121)
    squares = [np.sort((reach * a) ** 2)[:160] for a in lengths]
    a, b, c = (s[s <= 250.0**2] if s[1] < 25**2 else s[:9] for s in squares)
    everything = (a[:, None, None] + b[:, None] + c).ravel()
    expected = np.sqrt(np.sort(everything)[1:101])
    np.testing.assert_allclose(got, expected, atol=1e-9)


def test_overlapping_atoms():
    got = average_minimum_distance(ROCK_SALT, np.zeros((2, 3)), 3)
    np.testing.assert_allclose(got, [0, 3.9597980, 3.9597980], atol=1e-6)

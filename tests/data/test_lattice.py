import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from pymatgen.core import Lattice

from chemeleon_jax.data.lattice import (
    inverse,
    lattice_matrix,
    lattice_parameters,
    volume,
)


def random_cells(size=50):
    """Lengths and angles of cells that exist: angles of random vectors."""
    rng = np.random.default_rng(0)
    return lattice_parameters(rng.normal(size=(size, 3, 3)) + 3 * np.eye(3))


def test_hexagonal_cell_by_hand():
    """c along z and a along x; gamma = 120 puts b at (-b/2, b sqrt(3)/2, 0)."""
    matrix = lattice_matrix(np.array([3.0, 3.0, 5.0]), np.array([90.0, 90.0, 120.0]))
    expected = [[3, 0, 0], [-1.5, 1.5 * np.sqrt(3), 0], [0, 0, 5]]
    np.testing.assert_allclose(matrix, expected, atol=1e-12)
    assert volume(matrix) == pytest.approx(9 * np.sqrt(3) / 2 * 5)


def test_rock_salt_primitive_cell_by_hand():
    """Three vectors of a/sqrt(2) at 60 degrees enclose a^3/4."""
    edge = 5.64 / np.sqrt(2)
    matrix = lattice_matrix(np.full(3, edge), np.full(3, 60.0))
    assert volume(matrix) == pytest.approx(5.64**3 / 4)


def test_same_orientation_as_pymatgen():
    lengths, angles = random_cells()
    for length, angle, matrix in zip(
        lengths, angles, lattice_matrix(lengths, angles), strict=True
    ):
        expected = Lattice.from_parameters(*length, *angle).matrix
        np.testing.assert_allclose(matrix, expected, atol=1e-9)


def test_parameters_undo_matrix():
    lengths, angles = random_cells()
    again = lattice_parameters(lattice_matrix(lengths, angles))
    np.testing.assert_allclose(again[0], lengths, rtol=1e-12)
    np.testing.assert_allclose(again[1], angles, rtol=1e-9)


def test_jax_answers_in_kind_and_agrees():
    lengths, angles = random_cells()
    matrix = jax.jit(lattice_matrix)(jnp.asarray(lengths), jnp.asarray(angles))
    assert isinstance(matrix, jax.Array)
    expected = lattice_matrix(lengths, angles)
    np.testing.assert_allclose(matrix, expected, atol=1e-5)
    assert isinstance(lattice_matrix(lengths, angles), np.ndarray)
    np.testing.assert_allclose(volume(matrix), volume(expected), rtol=1e-4)


def test_impossible_angles_flatten_the_cell():
    """120 + 120 + 150 degrees do not close: volume 0, not NaN."""
    matrix = lattice_matrix(np.ones(3), np.array([120.0, 120.0, 150.0]))
    assert np.isfinite(matrix).all()
    assert volume(matrix) == pytest.approx(0, abs=1e-12)


def test_wrong_axes_are_refused():
    with pytest.raises(AssertionError):
        lattice_matrix(np.ones((5, 3)), np.ones((4, 3)))
    with pytest.raises(AssertionError):
        volume(np.ones((5, 3)))
    crystals = tiny.crystals((3, 2))
    with pytest.raises(AssertionError):
        crystals.replace(angles=crystals.angles[:1]).assert_shapes()


def test_inverse_and_volume_are_those_of_linear_algebra():
    matrices = np.random.default_rng(0).normal(size=(5, 2, 3, 3))
    np.testing.assert_allclose(inverse(matrices), np.linalg.inv(matrices), rtol=1e-9)
    volumes = abs(np.linalg.det(matrices))
    np.testing.assert_allclose(volume(matrices), volumes, rtol=1e-9)
    found = jax.jit(inverse)(jnp.asarray(matrices, jnp.float32))
    np.testing.assert_allclose(found, np.linalg.inv(matrices), rtol=2e-3)

import numpy as np

from chemeleon_jax.rewards.frechet import fit_gaussian, frechet_distance


def distance(x, y):
    return frechet_distance(fit_gaussian(x), fit_gaussian(y))


def test_frechet_distance_by_hand():
    # In one dimension (m1 - m2)^2 + (s1 - s2)^2: means 1 and 4, deviations 1 and 3.
    x, y = np.array([[0.0], [2.0]]), np.array([[1.0], [7.0]])
    np.testing.assert_allclose(distance(x, y), 9 + 4)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 4))
    np.testing.assert_allclose(distance(x, x), 0, atol=1e-6)
    # Independent axes add up.
    scaled = x - x.mean(0)
    np.testing.assert_allclose(
        distance(scaled, 2 * scaled), (scaled**2).mean(0).sum(), rtol=1e-6
    )


def test_a_row_of_weight_two_counts_like_two():
    x, y = np.array([[0.0, 1.0], [2.0, 5.0], [3.0, 3.0]]), np.eye(2)
    weighted = fit_gaussian(x, np.array([1, 2, 0]))
    expected = distance(x[[0, 1, 1]], y)
    np.testing.assert_allclose(frechet_distance(weighted, fit_gaussian(y)), expected)

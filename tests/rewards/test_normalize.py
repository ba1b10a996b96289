import jax
import jax.numpy as jnp
import numpy as np
import paths
import pytest

from chemeleon_jax.rewards.normalize import NORMALIZATIONS

RECORDED = np.load(paths.FIXTURES / "rewards.npz")
EPS = 1e-4


@pytest.mark.parametrize("name", ["std", "norm", "subtract_mean", "clip"])
def test_recorded_numbers_of_chemeleon2(name):
    got = NORMALIZATIONS[name](jnp.asarray(RECORDED["x"]), EPS)
    np.testing.assert_allclose(got, RECORDED[name], atol=2e-6)


def test_std_is_the_unbiased_one():
    # Mean 2, squared deviations 1, 0, 1: std 1 over n - 1, 0.816 over n.
    got = NORMALIZATIONS["std"](jnp.array([1.0, 2.0, 3.0]), 0.0)
    np.testing.assert_allclose(got, [-1, 0, 1], atol=1e-6)


@pytest.mark.parametrize("name", NORMALIZATIONS)
@pytest.mark.parametrize("values", [[3.0, 3.0, 3.0], [3.0]])
def test_equal_values_give_no_nan(name, values):
    got = NORMALIZATIONS[name](jnp.array(values), EPS)
    expected = {"clip": 1.0, "none": 3.0}.get(name, 0.0)
    np.testing.assert_array_equal(got, np.full(len(values), expected))


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_groups_are_rows(name):
    x = jax.random.normal(jax.random.key(0), (3, 8))
    together = NORMALIZATIONS[name](x, EPS)
    alone = jnp.stack([NORMALIZATIONS[name](row, EPS) for row in x])
    np.testing.assert_allclose(together, alone, atol=1e-6)

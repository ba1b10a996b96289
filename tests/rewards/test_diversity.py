import numpy as np
import paths
import pytest

from chemeleon_jax.rewards.diversity import diversity, kernel_mean, leave_one_out_mmd
from chemeleon_jax.rewards.features import composition_fractions, embedding_gram
from chemeleon_jax.workers.outcome import Status

RECORDED = np.load(paths.FIXTURES / "rewards.npz")
GENERATED = RECORDED["mmd_gen"].astype(np.float64)
REFERENCES = RECORDED["mmd_ref"].astype(np.float64)


def plain_mmd2(x, y):
    """Unbiased MMD^2 of the cubic kernel, as its definition has it."""
    k = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3  # noqa: E731
    off = lambda a: (k(a, a).sum() - np.trace(k(a, a))) / (len(a) * (len(a) - 1))  # noqa: E731
    return off(x) + off(y) - 2 * k(x, y).mean()


def contributions(x, references):
    without, everything = leave_one_out_mmd(x, references)
    return without - everything


def test_recorded_numbers_of_chemeleon2():
    got = contributions(GENERATED, kernel_mean(REFERENCES))
    np.testing.assert_allclose(got, RECORDED["mmd_r_indiv"], atol=1e-6)


def test_leaves_one_out():
    everything = plain_mmd2(GENERATED, REFERENCES)
    assert -everything == pytest.approx(float(RECORDED["mmd_r"]), abs=1e-6)
    without = [
        plain_mmd2(np.delete(GENERATED, i, 0), REFERENCES)
        for i in range(len(GENERATED))
    ]
    got = contributions(GENERATED, kernel_mean(REFERENCES))
    np.testing.assert_allclose(got, np.array(without) - everything, rtol=1e-9)


def test_the_likeness_of_the_batch():
    """Contributions alone are 0 on average, and their curve says nothing."""
    kernel = kernel_mean(REFERENCES)
    assert contributions(GENERATED, kernel).mean() == pytest.approx(0, abs=1e-12)
    pairs = (REFERENCES @ REFERENCES.T / REFERENCES.shape[1] + 1) ** 3
    assert kernel.among == pytest.approx(pairs.mean(), rel=1e-12)
    # plain_mmd2 leaves the pairs of a reference with itself out.
    off = (pairs.sum() - np.trace(pairs)) / (len(pairs) * (len(pairs) - 1))
    mmd = plain_mmd2(GENERATED, REFERENCES) - off + pairs.mean()
    values, _, likeness = diversity(GENERATED, np.ones(len(GENERATED), bool), kernel)
    np.testing.assert_array_equal(values, contributions(GENERATED, kernel))
    assert likeness == pytest.approx(-mmd, rel=1e-9)


def test_moments_are_the_mean_of_the_kernel():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 5)), rng.normal(size=(300, 5))
    root = rng.normal(size=(5, 4))
    expected = ((x @ root @ root.T @ y.T) + 1) ** 3
    kernel = kernel_mean(y, root @ root.T)
    np.testing.assert_allclose(kernel(x), expected.mean(1), rtol=1e-10)
    pairs = ((y @ root @ root.T @ y.T) + 1) ** 3
    assert kernel.among == pytest.approx(pairs.mean(), rel=1e-10)


def test_small_differences_survive():
    """In float32 the differences, 1e-9 of the kernel, would be noise."""
    x = 30 + 1e-3 * np.random.default_rng(0).normal(size=(64, 8))
    got = contributions(x, kernel_mean(x[:40] + 1e-3))
    everything = plain_mmd2(x, x[:40] + 1e-3)
    first = plain_mmd2(x[1:], x[:40] + 1e-3) - everything
    assert got[0] == pytest.approx(first, rel=1e-3)
    assert len(np.unique(got)) == 64


def test_an_invalid_crystal_changes_no_other():
    kernel = kernel_mean(REFERENCES)
    valid = np.ones(14, bool)
    valid[3] = False
    features = np.insert(GENERATED, [3, 8], np.nan, axis=0)
    values, status, likeness = diversity(features, valid, kernel)
    assert status[3] == Status.INVALID and status[9] == Status.BAD_VALUE
    assert values[3] == values[9] == 0
    alone, _, expected = diversity(GENERATED, np.ones(len(GENERATED), bool), kernel)
    np.testing.assert_allclose(values[status == Status.OK], alone)
    assert likeness == pytest.approx(expected)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_to_leave_one_out(count):
    few, valid = GENERATED[:count], np.ones(count, bool)
    got, _, likeness = diversity(few, valid, kernel_mean(REFERENCES))
    np.testing.assert_array_equal(got, np.zeros(count))
    assert likeness == 0


def test_composition_features_are_the_mean_embedding():
    rng = np.random.default_rng(0)
    types = np.array([[11, 17, 0, 0], [8, 8, 8, 26], [1, 0, 0, 0]])
    mask = types > 0
    table = rng.normal(size=(100, 16))
    mean = np.stack([table[t[m]].mean(0) for t, m in zip(types, mask, strict=True)])
    shares = composition_fractions(types, mask)
    np.testing.assert_allclose(shares @ table, mean)
    np.testing.assert_allclose(
        shares @ embedding_gram(table) @ shares.T, mean @ mean.T / 16
    )

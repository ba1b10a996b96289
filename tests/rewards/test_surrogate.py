"""What crystals that nobody scored are probably worth."""

import numpy as np
import pytest
import tiny
from small_reward import BATCH, score

from chemeleon_jax.data.crystals import validity
from chemeleon_jax.errors import UserError
from chemeleon_jax.rewards.surrogate import (
    GaussianProcess,
    Surrogate,
    costly_values,
    fit_gaussian_process,
    load_surrogate,
    scored_rows,
    without_costly,
)
from chemeleon_jax.runs.iteration_files import save_iteration


@pytest.fixture(scope="module")
def vae():
    model, _ = tiny.generator()
    return model.vae, model.frozen["vae"]


def crystals(count=8, seed=0):
    batch = tiny.crystals(np.full(count, 5), seed=seed)
    return type(batch)(**{k: np.array(v) for k, v in vars(batch).items()})


def test_two_points_by_hand():
    """Length 1, noise 1: covariance [[1, k], [k, 1]] with k = exp(-1/2) / 2.

    Values -1 and 1 are their own standard scores. By symmetry the expectation in the
    middle is 0; at the first point it is (-1/2 + k) / (1 - k), its variance
    1/2 - [1/2, k] C^-1 [1/2, k].
    """
    features, values = np.array([[0.0], [1.0]]), np.array([-1.0, 1.0])
    found = fit_gaussian_process(features, values)
    assert isinstance(found, GaussianProcess)
    k = np.exp(-0.5) / 2
    covariance = np.array([[1, k], [k, 1]])
    factor = np.linalg.cholesky(covariance), True
    weights = np.linalg.solve(covariance, values)
    process = GaussianProcess(features, weights, factor, 1.0, 1.0, 0.0, 1.0)
    mean, std = process.predict(np.array([[0.5], [0.0], [50.0]]))
    np.testing.assert_allclose(mean, [0.0, (-0.5 + k) / (1 - k), 0.0], atol=1e-12)
    row = np.array([0.5, k])
    variance = 0.5 - row @ np.linalg.solve(covariance, row)
    np.testing.assert_allclose(std[1:], np.sqrt([variance, 0.5]), rtol=1e-12)


def test_it_finds_a_smooth_function_and_knows_how_noisy_it_is():
    rng = np.random.default_rng(0)
    features = rng.uniform(-1, 1, (400, 2))
    truth = 3 + 2 * np.sin(2 * features[:, 0]) * features[:, 1]
    process = fit_gaussian_process(features, truth + rng.normal(0, 0.5, 400))
    found, std = process.predict(features)
    assert np.corrcoef(found, truth)[0, 1] > 0.97
    assert np.abs(found - truth).mean() < 0.15 and std.max() < 0.5
    assert process.noise in (
        0.3,
        1.0,
    )  # the truth's variance is about 0.6, of noise 0.25
    far, unsure = process.predict(np.full((1, 2), 99.0))
    np.testing.assert_allclose(far, process.mean)
    assert unsure > std.max()


def test_the_first_of_each_group_are_scored():
    assert scored_rows(2, 4, 4).tolist() == [0, 1, 4, 5]
    assert scored_rows(2, 4, 8).tolist() == list(range(8))


def test_all_count_as_what_is_expected_of_them(vae):
    """Two groups of four; lower by the doubt; what is invalid as the worst scored."""
    batch, surrogate = crystals(), Surrogate(vae, 4)
    batch.lengths[7] = 0.01  # no crystal
    rows, values = scored_rows(2, 4, 4), np.array([1.0, -1.0, 2.0, 0.0])
    rest = np.arange(8) / 10

    def judge():
        return surrogate.judge(
            batch, rows, values, rest, group_size=4, normalize_fn="none", eps=1e-4
        )

    first = judge()
    assert first.advantage[7] == pytest.approx(-1.0 + 0.7)
    expected, doubt = surrogate.predict(surrogate.describe(batch))
    valid = validity(batch) == 0
    found = (first.advantage - rest)[valid]
    np.testing.assert_allclose(found, (expected - doubt)[valid], rtol=1e-5)
    assert 3 < valid.sum() < 8 and np.allclose((first.advantage - rest)[~valid], -1.0)
    assert first.metrics == {"surrogate/calls": 4.0}
    assert {"surrogate/error", "surrogate/correlation"} < judge().metrics.keys()
    standard = surrogate.judge(
        batch, rows, values, rest, group_size=4, normalize_fn="std", eps=1e-4
    ).advantage
    np.testing.assert_allclose(standard.reshape(2, 4).sum(1), 0.0, atol=1e-5)


def test_of_features_that_are_not_finite_nothing_is_expected(vae):
    surrogate, features = Surrogate(vae, 2), np.eye(4, 24, dtype=np.float32)
    surrogate.add(features[:3], np.array([1.0, 0.0, 2.0]), np.ones(3, bool))
    alone, _ = surrogate.predict(features[:3])
    features[3, 5] = np.nan
    expected, doubt = surrogate.predict(features)
    np.testing.assert_array_equal(np.isnan([expected, doubt]), [[0, 0, 0, 1]] * 2)
    np.testing.assert_allclose(expected[:3], alone)


def test_without_a_valid_crystal_all_are_worth_the_same(vae):
    batch = crystals(4)
    batch.lengths[:] = 0.01
    judged = Surrogate(vae, 2).judge(
        batch,
        np.array([0, 1]),
        np.zeros(2),
        np.zeros(4),
        group_size=4,
        normalize_fn="std",
        eps=1e-4,
    )
    assert not judged.advantage.any()


def test_a_run_that_continues_expects_the_same(vae, tmp_path):
    surrogate, rng = Surrogate(vae, 4), np.random.default_rng(0)
    for i in range(2):
        batch, values = crystals(4, seed=i), rng.normal(size=4).astype(np.float32)
        judged = surrogate.judge(
            batch,
            np.arange(4),
            values,
            np.zeros(4),
            group_size=4,
            normalize_fn="std",
            eps=1e-4,
        )
        scores = {"total": values, "advantage": values, "valid": np.ones(4, bool)}
        scores |= {"unique": None, "novel": None, "e_above_hull": None}
        save_iteration(
            tmp_path,
            i,
            vars(batch),
            scores | {"components": {}},
            features=judged.features,
            costly=values,
        )
    other = load_surrogate(tmp_path, vae, 4, 2)
    features = surrogate.describe(crystals(4, seed=5))
    np.testing.assert_allclose(surrogate.predict(features), other.predict(features))
    assert load_surrogate(tmp_path, vae, 0, 2) is None
    (tmp_path / "crystals" / "iteration_000001.npz").unlink()
    with pytest.raises(UserError, match="iteration_000001.*budget_per_iteration = 4"):
        load_surrogate(tmp_path, vae, 4, 2)


def test_what_is_costly_is_left_to_it(reward):
    """Energy and a user's function; of the rest all crystals are scored."""
    output = score(BATCH, reward=reward, group_size=4)
    weights = {term.name: term.weight for term in reward.terms}
    costly = sum(
        weights[name] * np.asarray(output.components[name], np.float64)
        for name in ("energy", "custom")
    )
    np.testing.assert_allclose(costly_values(reward, output), costly)
    rest = score(BATCH, reward=without_costly(reward), group_size=4)
    assert rest.components.keys() == weights.keys() - {"energy", "custom"}
    np.testing.assert_allclose(rest.raw, output.raw - costly, atol=1e-5)

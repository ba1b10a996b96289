"""Objectives of noised copies: AWM and DiffusionNFT."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from chemeleon_jax import sample_group
from chemeleon_jax.data.types import NoisyLatents
from chemeleon_jax.errors import UserError
from chemeleon_jax.models.diffusion import ldm_loss, make_schedule
from chemeleon_jax.models.optimizer import make_optimizer
from chemeleon_jax.rl.checks import check_rl
from chemeleon_jax.rl.config import GRPOConfig
from chemeleon_jax.rl.forward_process import awm_loss, nft_loss, noise_latents
from chemeleon_jax.rl.learner import init_state, train_step
from configs.rl_dng import get_config

ADVANTAGE = jnp.array([1.0, -0.5, 2.0, -1.0])
# Without a limit, as the formulas are: untrained, all errors are near 1.
CONFIG = GRPOConfig(
    objective="awm", kl_weight=0.0, clip_ratio=0.1, error_limit=float("inf")
)
LOSSES = {"awm": awm_loss, "nft": nft_loss}


@cache
def rolled_out(learn_sigma=False):
    """Four crystals of a sampler without noise, of which no step is recorded."""
    sampler, policy = tiny.sampler(4, eta=0.0, learn_sigma=learn_sigma)
    rollout = jax.jit(partial(sample_group, record=False), static_argnames="group_size")
    _, trajectory = rollout(
        policy, jax.random.key(5), jnp.array([3, 5]), sampler=sampler, group_size=2
    )
    return sampler, policy, trajectory


@cache
def first_copy(learn_sigma=False) -> NoisyLatents:
    _, _, trajectory = rolled_out(learn_sigma)
    return jax.tree.map(lambda x: x[0], noise_latents(trajectory, CONFIG).steps)


@cache
def compiled(name, on_policy, learn_sigma, config=CONFIG):
    sampler, _, trajectory = rolled_out(learn_sigma)
    copy = first_copy(learn_sigma)

    def compute(policy, old_params, advantage):
        return jax.grad(LOSSES[name], has_aux=True)(
            policy,
            copy,
            advantage,
            trajectory.mask,
            sampler=sampler,
            config=config,
            old_params=old_params,
            on_policy=on_policy,
        )

    return jax.jit(compute)


def gradient(name, advantage, *, old_params=None, learn_sigma=False):
    """Of the loss of one copy, and its metrics; on policy without `old_params`."""
    _, policy, _ = rolled_out(learn_sigma)
    on_policy = old_params is None
    compute = compiled(name, on_policy, learn_sigma)
    return compute(policy, policy if on_policy else old_params, advantage)


def training_loss(policy, learn_sigma=False):
    """Of the denoiser on the same copy, of each crystal."""
    sampler, _, trajectory = rolled_out(learn_sigma)
    copy, mask = first_copy(learn_sigma), trajectory.mask
    denoiser = sampler.model.denoiser(policy, mask)
    schedule = make_schedule("ddpm", 1000)
    inputs = copy.z, copy.noise, copy.timestep, mask
    return ldm_loss(denoiser, *inputs, schedule=schedule)["loss"]


def pretraining_gradient(weights, learn_sigma=False):
    """Of its mean, each crystal with a weight."""
    policy, _ = rolled_out(learn_sigma)[1], first_copy(learn_sigma)
    loss = lambda policy: (weights * training_loss(policy, learn_sigma)).mean()  # noqa: E731
    return jax.jit(jax.grad(loss))(policy)


def assert_close(found, expected, atol=2e-6):
    jax.tree.map(partial(np.testing.assert_allclose, atol=atol), found, expected)
    assert max(jnp.abs(g).max() for g in jax.tree.leaves(expected)) > 1e-3


@pytest.mark.parametrize(
    ("learn_sigma", "advantage"), [(True, jnp.ones(4)), (False, ADVANTAGE)]
)
def test_awm_is_pretraining_weighted_by_the_advantage(learn_sigma, advantage):
    """With advantage 1 it is pretraining itself, a learned variance included."""
    found, metrics = gradient("awm", advantage, learn_sigma=learn_sigma)
    assert_close(found, pretraining_gradient(advantage, learn_sigma))
    np.testing.assert_allclose(metrics["ratio"], 1.0)


def test_awm_clips_the_ratio_of_the_losses():
    _, policy, _ = rolled_out()
    other = tiny.stir(policy, scale=0.02)
    old = jax.jit(training_loss)(other)

    def surrogate(policy):
        ratio = jnp.exp(old - training_loss(policy))
        low, high = ratio * ADVANTAGE, jnp.clip(ratio, 0.9, 1.1) * ADVANTAGE
        return -jnp.minimum(low, high).mean(), ratio

    expected, ratio = jax.jit(jax.grad(surrogate, has_aux=True))(policy)
    found, metrics = gradient("awm", ADVANTAGE, old_params=other)
    assert_close(found, expected)
    outside = np.abs(ratio - 1) > 0.1
    assert 0 < outside.mean() == metrics["clip_fraction"]
    np.testing.assert_allclose(metrics["ratio_max"], ratio.max(), rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_without_advantage_nothing_moves(name):
    """But for rounding in the two halves of NFT."""
    found, _ = gradient(name, jnp.zeros(4))
    largest = max(jnp.abs(g).max() for g in jax.tree.leaves(found))
    assert largest < 1e-7


def test_nft_by_hand():
    """One coordinate: e = 1, e' = 0.5, noise 0, A = 5 c / 10: r = 3/4, b = 2, c = 5.

    Better: 0.5 + 2 * 0.5 = 1.5, error 1.5^2 / 1.5; worse: -0.5, error 0.25 / 0.5.
    5 / 2 * (3/4 * 1.5 + 1/4 * 0.5) = 3.125, and (e - e')^2 = 1/4 at weight 2.
    """

    class Fixed:
        def denoiser(self, params, mask, condition):
            return lambda z, t: jnp.full(z.shape, params)

    copy = NoisyLatents(jnp.array([500]), jnp.zeros((1, 1, 1)), jnp.zeros((1, 1, 1)))
    config = GRPOConfig(objective="nft", kl_weight=2.0, nft_beta=2.0)
    sampler = type("Sampler", (), {"model": Fixed()})()
    loss, metrics = nft_loss(
        jnp.float32(1.0),
        copy,
        jnp.array([2.5]),
        jnp.ones((1, 1), bool),
        sampler=sampler,
        config=config,
        old_params=jnp.float32(0.5),
    )
    np.testing.assert_allclose(loss, 3.125 + 0.5, rtol=1e-6)
    np.testing.assert_allclose(metrics["distance"], 0.25)
    np.testing.assert_allclose(metrics["denoising_error"], 1.0)
    np.testing.assert_allclose(metrics["ratio"], np.exp(0.25 - 1.0), rtol=1e-6)


def test_nft_pulls_towards_good_crystals_and_away_from_bad_ones():
    """On policy its gradient is that of AWM, each error over its mean distance."""
    good, _ = gradient("nft", jnp.ones(4))
    bad, _ = gradient("nft", -jnp.ones(4))
    assert_close(good, jax.tree.map(jnp.negative, bad))


@pytest.mark.parametrize("name", LOSSES)
def test_bad_crystals_are_pushed_no_further_than_the_limit(name):
    """Good ones are still learnt, however far they are."""
    _, policy, _ = rolled_out()
    errors = np.asarray(jax.jit(training_loss)(policy))
    advantage = jnp.array([-1.0, -1.0, -1.0, 1.0])
    limit = float(errors[:3].mean())
    assert 0 < (held := errors[:3] > limit).sum() < 3
    compute = compiled(name, True, False, replace(CONFIG, error_limit=limit))
    found, metrics = compute(policy, policy, advantage)
    free = advantage.at[:3].set(jnp.where(held, 0.0, -1.0))
    assert_close(found, gradient(name, free)[0])
    np.testing.assert_allclose(metrics["held_fraction"], held.sum() / 4)


def test_copies_depend_on_the_crystal_alone_and_cover_the_density():
    _, _, trajectory = rolled_out()
    config = GRPOConfig(
        objective="awm", timesteps_per_crystal=8, timesteps="uniform", kl_weight=0.0
    )
    steps = noise_latents(trajectory, config).steps
    timesteps = np.sort(np.asarray(steps.timestep), 0)  # [8, 4]
    assert (timesteps // 125 == np.arange(8)[:, None]).all()
    assert len(np.unique(timesteps)) > 16
    assert not np.asarray(steps.noise)[:, ~np.asarray(trajectory.mask)].any()
    some = jnp.array([3, 1])
    part = trajectory.replace(
        mask=trajectory.mask[some],
        latents=trajectory.latents[some],
        keys=trajectory.keys[some],
    )
    found = noise_latents(part, config).steps
    np.testing.assert_array_equal(found.timestep, steps.timestep[:, some])
    np.testing.assert_allclose(found.noise, steps.noise[:, some])
    logit = GRPOConfig(objective="awm", timestep_mean=-4.0, timestep_std=0.5)
    assert noise_latents(trajectory, logit).steps.timestep.max() < 120


def test_an_iteration_learns_and_counts():
    """The average samples, the update stays with the original, the KL is measured."""
    sampler, policy, trajectory = rolled_out()
    optimizer = make_optimizer(1e-3)
    config = GRPOConfig(
        objective="nft",
        num_inner_batch=2,
        kl_target="reference",
        ema_decay=0.5,
        sample_average=True,
    )
    step = jax.jit(partial(train_step, config=config, optimizer=optimizer))
    state, seen = init_state(policy, optimizer), []
    for _ in range(2):
        state, metrics = step(
            state, trajectory, ADVANTAGE, sampler=sampler, reference_params=policy
        )
        seen.append(metrics)
    assert int(state.iteration) == 2 and int(state.skipped) == 0
    assert seen[0]["kl_div"] == 0.0 < seen[1]["kl_div"] < jnp.inf
    assert seen[0]["distance"] < seen[1]["distance"]
    np.testing.assert_allclose(seen[0]["ratio_first"], 1.0, atol=1e-6)


def test_what_needs_the_steps_is_refused():
    config = get_config()
    config.rl.objective, config.sampling.eta = "awm", 0.0
    check_rl(config, 1)
    config.rl.window = 2
    with pytest.raises(UserError, match="rl.window = 2.*grpo"):
        check_rl(config, 1)
    config.rl.window, config.rl.objective = 0, "dpo"
    with pytest.raises(UserError, match="rl.objective = 'dpo'.*awm"):
        check_rl(config, 1)

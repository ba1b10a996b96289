from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from chemeleon_jax import sample_group
from chemeleon_jax.models import buckets
from chemeleon_jax.models.buckets import (
    at_width,
    choose_microbatches,
    map_microbatches,
    network_widths,
)
from chemeleon_jax.models.diffusion import make_schedule
from chemeleon_jax.models.optimizer import make_optimizer
from chemeleon_jax.rl.config import GRPOConfig
from chemeleon_jax.rl.learner import update

SCHEDULE = make_schedule("ddim", 5)
NUM_ATOMS = jnp.array([5, 2, 6, 3, 4, 1])


@pytest.fixture(autouse=True)
def _published_widths(monkeypatch):
    monkeypatch.setattr(buckets, "WIDTH_STEP", 4)


def test_widths_end_at_the_longest():
    model, _ = tiny.generator(max_atoms=20)
    assert network_widths(model, SCHEDULE) == (4, 8, 12, 16, 20)
    assert network_widths(tiny.generator()[0], SCHEDULE) == (4, 6)


def test_learned_variances_of_ddpm_are_not_bucketed():
    """Their layout depends on the width; DDIM does not read them."""
    model, _ = tiny.generator(learn_sigma=True)
    assert network_widths(model, make_schedule("ddpm", 5)) == (6,)
    assert network_widths(model, SCHEDULE) == (4, 6)


@pytest.mark.parametrize(("largest", "width"), [(1, 4), (4, 4), (5, 8), (9, 20)])
def test_the_narrowest_width_that_holds_them(largest, width):
    chosen = at_width(lambda n: jnp.array(n), jnp.array([1, largest]), (4, 8, 20))
    assert chosen == width


def test_microbatches_hold_crystals_of_similar_size_and_order_is_restored():
    sizes = []

    def function(crystals):
        jax.debug.callback(lambda n: sizes.append(n.tolist()), crystals)
        return crystals * 10

    result = map_microbatches(function, NUM_ATOMS, NUM_ATOMS, 3)
    jax.effects_barrier()
    np.testing.assert_array_equal(result, NUM_ATOMS * 10)
    assert sorted(sorted(part) for part in sizes) == [[1, 2], [3, 4], [5, 6]]


def test_microbatches_fit_the_budget_and_the_devices():
    model, _ = tiny.generator()  # 96 * 2 * 16 * 6 = 18,432 bytes per crystal
    assert choose_microbatches(160, model, memory_budget=8.0) == 5  # of 32, on a CPU
    assert (
        choose_microbatches(160, model, memory_budget=8.0, devices=4) == 2
    )  # of 4 * 20
    assert choose_microbatches(160, model, memory_budget=2e-5) == 160
    assert choose_microbatches(10, model, memory_budget=1e-9) == 10
    assert choose_microbatches(6 * 7, model, memory_budget=5.6e-5) == 14  # of 3


def test_neither_crystals_nor_the_update_depend_on_microbatches():
    """Nor on the padding, which crystals of similar sizes save."""
    sampler, policy = tiny.sampler()
    optimizer = make_optimizer(1e-3)

    @partial(jax.jit, static_argnums=0)
    def iteration(count):
        crystals, trajectory = sample_group(
            policy,
            jax.random.key(2),
            NUM_ATOMS,
            sampler=sampler,
            group_size=1,
            num_microbatches=count,
        )
        improved, _, metrics = update(
            policy,
            optimizer.init(policy),
            trajectory,
            jnp.array([1.0, -0.5, 2.0, -1.0, 0.3, -2.0]),
            optimizer=optimizer,
            sampler=sampler,
            config=GRPOConfig(clip_ratio=0.1, entropy_weight=0.0, grad_accum=count),
        )
        return crystals, trajectory.steps, improved, metrics

    whole, cut = iteration(1), iteration(3)
    chex.assert_trees_all_close(whole[:3], cut[:3], atol=2e-5, rtol=1e-7)
    for name in ("ratio", "ratio_max", "grad_norm", "neg_log_prob", "clip_fraction"):
        np.testing.assert_allclose(whole[3][name], cut[3][name], rtol=1e-4)
    np.testing.assert_allclose(cut[3]["ratio_first"], 1.0, atol=1e-6)


def test_other_sizes_compile_nothing():
    sampler, policy = tiny.sampler()
    rollout = jax.jit(partial(sample_group, group_size=1, num_microbatches=3))
    first = rollout(policy, jax.random.key(0), NUM_ATOMS, sampler=sampler)
    key, smaller = jax.random.key(1), jnp.minimum(NUM_ATOMS, 3)
    jax.block_until_ready((first, key, smaller))
    compiled = []

    def listen(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        crystals, _ = rollout(policy, key, smaller, sampler=sampler)
        assert not compiled
        jax.jit(lambda x: x - 1)(smaller)  # what would have been heard
        assert compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    np.testing.assert_array_equal(crystals.num_atoms, smaller)

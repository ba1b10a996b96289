from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from chemeleon_jax import sample_group, update
from chemeleon_jax.models import buckets
from chemeleon_jax.models.buckets import (
    at_width,
    choose_parts,
    map_parts,
    network_widths,
)
from chemeleon_jax.models.diffusion import make_schedule
from chemeleon_jax.rl.objective import make_optimizer

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


def test_parts_hold_crystals_of_similar_size_and_order_is_restored():
    sizes = []

    def function(crystals):
        jax.debug.callback(lambda n: sizes.append(n.tolist()), crystals)
        return crystals * 10

    result = map_parts(function, NUM_ATOMS, NUM_ATOMS, parts=3)
    jax.effects_barrier()
    np.testing.assert_array_equal(result, NUM_ATOMS * 10)
    assert sorted(sorted(part) for part in sizes) == [[1, 2], [3, 4], [5, 6]]


def test_parts_fit_the_budget_and_the_devices():
    model, _ = tiny.generator()  # 96 * 2 * 16 * 6 = 18,432 bytes per crystal
    assert choose_parts(160, model, memory_budget=8.0) == 5  # of 32, on a CPU
    assert choose_parts(160, model, memory_budget=8.0, devices=4) == 2  # of 4 * 20
    assert choose_parts(160, model, memory_budget=2e-5) == 160
    assert choose_parts(10, model, memory_budget=1e-9) == 10
    assert choose_parts(6 * 7, model, memory_budget=5.6e-5) == 14  # of 3


def test_neither_crystals_nor_the_update_depend_on_the_parts():
    """Nor on the padding, which parts of similar sizes save."""
    model, policy = tiny.generator()
    optimizer = make_optimizer(1e-3)

    @partial(jax.jit, static_argnums=0)
    def iteration(parts):
        crystals, trajectory = sample_group(
            policy,
            jax.random.key(2),
            NUM_ATOMS,
            model=model,
            schedule=SCHEDULE,
            group_size=1,
            parts=parts,
        )
        improved, _, metrics = update(
            policy,
            optimizer.init(policy),
            trajectory,
            jnp.array([1.0, -0.5, 2.0, -1.0, 0.3, -2.0]),
            optimizer=optimizer,
            model=model,
            schedule=SCHEDULE,
            grad_accum=parts,
            clip_ratio=0.1,
            kl_weight=1.0,
            entropy_weight=0.0,
        )
        return crystals, trajectory.steps, improved, metrics

    whole, cut = iteration(1), iteration(3)
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5), whole[:3], cut[:3])
    for name in ("ratio", "ratio_max", "grad_norm", "neg_log_prob", "clip_fraction"):
        np.testing.assert_allclose(whole[3][name], cut[3][name], rtol=1e-4)
    np.testing.assert_allclose(cut[3]["ratio_first"], 1.0, atol=1e-6)


def test_other_sizes_compile_nothing():
    model, policy = tiny.generator()
    rollout = jax.jit(partial(sample_group, group_size=1, parts=3))
    settings = {"model": model, "schedule": SCHEDULE}
    first = rollout(policy, jax.random.key(0), NUM_ATOMS, **settings)
    key, smaller = jax.random.key(1), jnp.minimum(NUM_ATOMS, 3)
    jax.block_until_ready((first, key, smaller))
    compiled = []

    def listen(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        crystals, _ = rollout(policy, key, smaller, **settings)
        assert not compiled
        jax.jit(lambda x: x - 1)(smaller)  # what would have been heard
        assert compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    np.testing.assert_array_equal(crystals.num_atoms, smaller)

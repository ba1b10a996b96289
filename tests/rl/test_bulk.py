"""Crystals and updates of a whole iteration, on any number of devices."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from chemeleon_jax.data.types import SymmetryTemplate
from chemeleon_jax.devices.compilation import on_mesh
from chemeleon_jax.devices.sharding import make_mesh, replicate, shard_params
from chemeleon_jax.models.optimizer import make_optimizer
from chemeleon_jax.rl.bulk import (
    compile_sampling,
    draw_prompts,
    even_batch_size,
    group_prompts,
    jit_rollout,
    sample_in_bulk,
    shard_as_trajectory,
    similar_sizes,
)
from chemeleon_jax.rl.config import GRPOConfig
from chemeleon_jax.rl.learner import compile_train_step, init_state
from chemeleon_jax.rl.sampler import sample_group

GROUPS, GROUP_SIZE = 2, 4
LEARNING_RATE = 1e-3  # of AdamW: what two steps move, whatever the gradient
NUM_ATOMS = np.array([2, 5, 3, 6, 1, 4, 4, 5])
ADVANTAGE = np.float32([2, -1, 0.5, -1.5, 1, -2, 0.3, 0.7])


def draw(key, count):
    return jax.random.randint(key, (count,), 1, tiny.MAX_ATOMS + 1), None


@cache
def iteration(devices):
    """Crystals, their trajectory and the improved policy of two minibatches."""
    mesh = make_mesh(devices)
    sampler, policy = tiny.sampler(4)
    sampler = replicate(sampler, mesh)
    optimizer = make_optimizer(LEARNING_RATE)
    config = GRPOConfig(clip_ratio=0.1, num_inner_batch=2, objective="awm")
    state = shard_params(init_state(policy, optimizer), mesh)
    prompts = draw_prompts(draw, jax.random.key(3), GROUPS, GROUP_SIZE)
    jitted = jit_rollout(mesh, 2, 1, record=False)
    trace = on_mesh(jitted.trace, mesh)
    shapes = trace(state.params, prompts, sampler=sampler).out_info
    crystals, trajectory = on_mesh(jitted, mesh)(state.params, prompts, sampler=sampler)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), trajectory) == (
        jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), shapes[1])
    )
    inputs = {"sampler": sampler, "reference_params": shard_params(policy, mesh)}
    advantage = shard_as_trajectory(ADVANTAGE, config.num_inner_batch, mesh)
    step = on_mesh(compile_train_step, mesh)(
        state, shapes[1], advantage, config=config, optimizer=optimizer, **inputs
    )
    after, metrics = step(state, trajectory, advantage, **inputs)
    return jax.device_get((crystals, after, metrics))


def test_two_minibatches_on_two_devices_are_those_on_one():
    """Every crystal meets its own advantage and noise, wherever its trajectory lies.

    Of an objective that draws noise; for GRPO see test_objective.
    """
    crystals, one, metrics = iteration(1)
    other_crystals, two, other_metrics = iteration(2)
    chex.assert_trees_all_close(crystals, other_crystals, atol=1e-5)
    for name in ("surrogate", "loss", "grad_norm"):
        np.testing.assert_allclose(
            metrics[name], other_metrics[name], rtol=1e-4, atol=1e-6
        )
    chex.assert_trees_all_close(one.params, two.params, atol=1e-5)
    _, policy = tiny.sampler(4)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), one.params, policy)
    assert max(jax.tree.leaves(moved)) >= LEARNING_RATE
    np.testing.assert_allclose(metrics["ratio_first"], 1.0, atol=1e-6)


def test_what_goes_wrong_while_compiling_ahead_reaches_the_caller():
    """A trajectory of other crystals than the advantage is of."""
    mesh = make_mesh(1)
    sampler, policy = tiny.sampler(4)
    optimizer, config = make_optimizer(LEARNING_RATE), GRPOConfig(num_inner_batch=2)
    state = shard_params(init_state(policy, optimizer), mesh)
    prompts = draw_prompts(draw, jax.random.key(3), GROUPS, GROUP_SIZE)
    trace = on_mesh(jit_rollout(mesh, 2, 1).trace, mesh)
    shapes = trace(policy, prompts, sampler=sampler).out_info
    with ThreadPoolExecutor(1) as executor:
        step = executor.submit(
            on_mesh(compile_train_step, mesh),
            state,
            shapes[1],
            jnp.zeros(3),
            config=config,
            optimizer=optimizer,
            sampler=sampler,
            reference_params=policy,
        )
        with pytest.raises(AssertionError, match="prefix"):
            step.result()


def test_batches_hold_each_crystal_once_and_large_ones_first():
    size = even_batch_size(8, 5, 1)
    found = [rows.tolist() for rows in similar_sizes(NUM_ATOMS, size)]
    assert found == [[3, 1, 7, 5], [6, 2, 0, 4]]
    sizes = {n: even_batch_size(n, 8, 4) for n in (1, 8, 9, 17)}
    assert sizes == {1: 4, 8: 8, 9: 8, 17: 8}
    assert even_batch_size(9, 1, 4) == 4


def test_any_number_of_crystals_is_sampled_in_batches_of_one_size():
    """Five crystals by two; each comes back in its own place."""
    prompts = draw_prompts(draw, jax.random.key(0), 5)
    sizes = []

    def sample(params, prompts):
        sizes.append(len(prompts.keys))
        return {"n": prompts.num_atoms, "key": jax.random.key_data(prompts.keys)}

    found = sample_in_bulk(None, prompts, sample=sample, batch_size=2)
    assert sizes == [2, 2, 2]
    np.testing.assert_array_equal(found["n"], prompts.num_atoms)
    np.testing.assert_array_equal(found["key"], jax.random.key_data(prompts.keys))


def generated(devices, batch_size, template=None):
    sampler, policy = tiny.sampler(4)
    prompts = group_prompts(jax.random.key(5), NUM_ATOMS, None)
    return sample_in_bulk(
        policy,
        prompts._replace(template=template),
        sample=compile_sampling(sampler, make_mesh(devices)),
        batch_size=even_batch_size(len(NUM_ATOMS), batch_size, devices),
    )


def inverted():
    """A centre of inversion at the origin, which takes the first atom to the last."""
    atoms = np.arange(tiny.MAX_ATOMS)
    images = np.stack([[atoms, n - 1 - atoms] for n in NUM_ATOMS])
    images = np.where((images < 0) | (images >= NUM_ATOMS[:, None, None]), 0, images)
    size = len(NUM_ATOMS)
    return SymmetryTemplate(
        np.zeros((size, tiny.MAX_ATOMS, 3), np.float32),
        np.tile(np.array([np.eye(3), -np.eye(3)], np.int8), (size, 1, 1, 1)),
        images.astype(np.int8),
        np.zeros((size, tiny.MAX_ATOMS), int),
    )


def test_symmetric_crystals_do_not_depend_on_batches_or_devices_either():
    one, four = generated(1, 3, inverted()), generated(4, 32, inverted())
    chex.assert_trees_all_close(one, four, rtol=1e-4, atol=1e-4)
    for row, types, n in zip(one.frac_coords, one.atom_types, NUM_ATOMS, strict=True):
        np.testing.assert_allclose(row[:n], -row[:n][::-1], atol=1e-6)
        np.testing.assert_array_equal(types[:n], types[:n][::-1])


def test_neither_batches_nor_buckets_nor_devices_change_a_crystal():
    sampler, policy = tiny.sampler(4)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
        jax.random.key(5), jnp.arange(len(NUM_ATOMS))
    )
    plain, _ = jax.jit(sample_group, static_argnames="group_size")(
        policy,
        keys,
        jnp.asarray(NUM_ATOMS),
        sampler=sampler,
        group_size=1,
    )
    for crystals in (generated(1, 3), generated(4, 32)):
        for name in ("atom_types", "mask"):
            np.testing.assert_array_equal(getattr(crystals, name), getattr(plain, name))
        for name in ("frac_coords", "lengths", "angles"):
            np.testing.assert_allclose(
                getattr(crystals, name), getattr(plain, name), rtol=1e-5, atol=1e-5
            )

"""Sampling in parts: the same crystals and trajectories."""

from functools import partial

import jax
import numpy as np
import pytest
import tiny

from chemeleon_jax.devices.sharding import make_mesh, replicate
from chemeleon_jax.rl.experience import (
    Rollout,
    crystal_order,
    draw_groups,
    sampling_settings,
)
from configs.rl_dng import get_config


def config(parts, steps=2):
    small = get_config()
    small.update(
        {
            "rl": {
                "num_group_samples": 8,
                "num_inner_batch": steps,
                "rollout_parts": parts,
            },
            "data": {"batch_size": 2},
            "sampling": {"sampling_steps": 4},
        }
    )
    return small


def draw_prompts(key, count):
    return jax.random.randint(key, (count,), 1, tiny.MAX_ATOMS + 1), None


def sample(parts, steps, devices):
    """Crystals, trajectory and what was seen, all in the order of the crystals."""
    settings, mesh = config(parts, steps), make_mesh(devices)
    model, policy = tiny.generator()
    sampling = sampling_settings(settings, replicate(model, mesh))
    rollout = Rollout(settings, sampling, mesh)
    prompts = draw_groups(settings, draw_prompts, jax.random.key(3))
    policy = replicate(policy, mesh)
    crystals, trajectory, seen = rollout(
        policy, prompts, see=lambda part: part.num_atoms
    )
    shapes = rollout.trajectory_shapes(policy, prompts)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), trajectory) == (
        jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), shapes)
    )
    back = np.argsort(crystal_order(settings, mesh))
    recorded = trajectory.steps
    by_crystal = (recorded.z, recorded.z_next, recorded.log_prob)
    steps = [np.asarray(x)[:, back] for x in by_crystal]
    return crystals, (steps, np.asarray(trajectory.mask)[back]), seen


@pytest.mark.parametrize(
    ("parts", "steps", "devices"), [(2, 2, 1), (4, 2, 2), (2, 4, 2)]
)
def test_parts_of_a_rollout_are_those_of_the_whole(parts, steps, devices):
    whole, parted = sample(1, steps, 1), sample(parts, steps, devices)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), whole[:2], parted[:2])
    assert [len(x) for x in parted[2]] == [16 // parts] * parts
    np.testing.assert_array_equal(np.concatenate(parted[2]), whole[0].num_atoms)

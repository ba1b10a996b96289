"""Sampling in parts: the same crystals, trajectories and rewards."""

from functools import partial

import jax
import numpy as np
import pytest
import tiny
from small_reward import random_crystals

from chemeleon_jax.data.crystals import take
from chemeleon_jax.devices.sharding import make_mesh, replicate
from chemeleon_jax.rewards.creativity import Recent, join_met
from chemeleon_jax.rewards.processes import make_meet, make_score
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


def test_references_met_ahead_give_the_same_rewards(reward):
    """Crystals whose formula is known, or comes twice in the batch but in two parts."""
    crystals = random_crystals(24, seed=5)
    crystals = take(crystals, [*range(24), 3, 7, 3])
    score = make_score(reward, group_size=27)
    meet = make_meet(reward)
    parts = [take(crystals, rows) for rows in np.split(np.arange(27), 3)]
    recent = Recent(1)
    recent.remember(take(crystals, [0, 1, 2]))
    met = join_met([meet(part, recent.references) for part in parts])
    assert met.known and any(outcome.value for outcome in met.known.values())
    assert all(met.seen[i].value for i in (0, 1, 2))
    plain = score(crystals, recent.references)
    ahead = score(crystals, recent.references, met)
    jax.tree.map(np.testing.assert_array_equal, plain, ahead)
    assert not ahead.unique[24:].any() and ahead.unique[:3].all()
    np.testing.assert_array_equal(ahead.components["creativity"][:3], 0)
    assert (score(crystals).components["creativity"][:3] > 0.5).all()

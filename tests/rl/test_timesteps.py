from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from chemeleon_jax import sample_group
from chemeleon_jax.models.diffusion import make_schedule
from chemeleon_jax.rl.timesteps import (
    random_timesteps,
    stochastic_at,
    window_timesteps,
)

SCHEDULE = make_schedule("ddim", 10)  # timesteps 9 .. 1 have a density


def test_random_timesteps_are_spread_and_equally_likely():
    keys = jax.random.split(jax.random.key(0), 2000)
    draw = partial(random_timesteps, schedule=SCHEDULE, count=3)
    drawn = 9 - np.asarray(jax.vmap(draw)(keys))  # places in the trajectory
    assert (np.diff(drawn, axis=1) > 0).all()
    assert [drawn[:, i].tolist() for i in range(3)] != drawn.T[::-1].tolist()
    np.testing.assert_array_equal(drawn.min(0), [0, 3, 6])
    np.testing.assert_array_equal(drawn.max(0), [2, 5, 8])
    shares = np.bincount(drawn.ravel(), minlength=9) / 2000
    np.testing.assert_allclose(shares, 1 / 3, atol=0.05)


def test_all_timesteps_are_a_choice_too():
    chosen = random_timesteps(jax.random.key(1), SCHEDULE, 9)
    np.testing.assert_array_equal(chosen, np.arange(9, 0, -1))


def test_the_window_moves_and_starts_again():
    start = [int(window_timesteps(i, SCHEDULE, 4, 2)[0]) for i in range(14)]
    assert start == [9, 9, 8, 8, 7, 7, 6, 6, 5, 5, 4, 4, 9, 9]
    np.testing.assert_array_equal(window_timesteps(4, SCHEDULE, 4, 2), [7, 6, 5, 4])


def test_only_the_window_is_stochastic():
    sampler, policy = tiny.sampler(10)
    timesteps = window_timesteps(4, SCHEDULE, 3, 1)
    assert timesteps.tolist() == [5, 4, 3]
    windowed = stochastic_at(SCHEDULE, timesteps)
    assert np.flatnonzero(windowed.ddim_std).tolist() == [3, 4, 5]
    rollout = jax.jit(partial(sample_group, group_size=2))
    _, trajectory = rollout(
        policy,
        jax.random.key(0),
        jnp.array([4]),
        sampler=sampler.replace(schedule=windowed),
    )
    inside = trajectory.at(timesteps)
    np.testing.assert_array_equal(inside.steps.timestep, [5, 4, 3])
    np.testing.assert_array_equal(inside.steps.z, trajectory.steps.z[4:7])
    assert np.isfinite(inside.steps.log_prob).all()
    outside = np.delete(np.arange(9), [4, 5, 6])
    assert not np.isfinite(trajectory.steps.log_prob[outside]).any()

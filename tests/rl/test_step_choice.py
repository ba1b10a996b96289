from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from chemeleon_jax import sample_group
from chemeleon_jax.models.diffusion import make_schedule
from chemeleon_jax.rl.timesteps import (
    random_steps,
    stochastic_at,
    take_steps,
    window_steps,
)

SCHEDULE = make_schedule("ddim", 10)  # 9 steps with a density


def test_random_steps_are_spread_and_equally_likely():
    keys = jax.random.split(jax.random.key(0), 2000)
    drawn = np.asarray(jax.vmap(partial(random_steps, recorded=9, count=3))(keys))
    assert (np.diff(drawn, axis=1) > 0).all()
    assert [drawn[:, i].tolist() for i in range(3)] != drawn.T[::-1].tolist()
    np.testing.assert_array_equal(drawn.min(0), [0, 3, 6])
    np.testing.assert_array_equal(drawn.max(0), [2, 5, 8])
    shares = np.bincount(drawn.ravel(), minlength=9) / 2000
    np.testing.assert_allclose(shares, 1 / 3, atol=0.05)


def test_all_steps_are_a_choice_too():
    key = jax.random.key(1)
    np.testing.assert_array_equal(random_steps(key, 9, 9), np.arange(9))


def test_the_window_moves_and_starts_again():
    start = [int(window_steps(i, 9, 4, 2)[0]) for i in range(14)]
    assert start == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 0, 0]
    np.testing.assert_array_equal(window_steps(4, 9, 4, 2), [2, 3, 4, 5])


def test_only_the_window_is_stochastic():
    model, policy = tiny.generator()
    places = window_steps(4, 9, 3, 1)  # 4, 5, 6
    rollout = jax.jit(partial(sample_group, group_size=2, model=model))

    def latents(seed, schedule):
        key = jax.random.key(seed)
        trajectory = rollout(policy, key, jnp.array([4]), schedule=schedule)[1]
        return trajectory, np.asarray(trajectory.steps.z_next - trajectory.steps.z)

    windowed = stochastic_at(SCHEDULE, places)
    assert np.flatnonzero(windowed.ddim_std).tolist() == [3, 4, 5]  # 9 - place
    trajectory, _ = latents(0, windowed)
    inside = take_steps(trajectory, places)
    np.testing.assert_array_equal(inside.steps.index, [5, 4, 3])
    assert np.isfinite(inside.steps.log_prob).all()
    outside = np.delete(np.arange(9), places)
    assert not np.isfinite(trajectory.steps.log_prob[outside]).any()

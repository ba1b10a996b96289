"""compute_rewards by several devices, and what is an argument of it."""

from functools import partial

import jax
import numpy as np
from small_reward import assert_same, check_finite, random_crystals

from chemeleon_jax.data.crystals import take
from chemeleon_jax.devices.sharding import make_mesh
from chemeleon_jax.rewards import compute_rewards
from chemeleon_jax.rewards.creativity import CreativityStatus
from chemeleon_jax.rewards.recent import RecentCrystals

# Some come twice; 27 rows cannot be shared equally by four devices.
CRYSTALS = take(random_crystals(24, seed=5), [*range(24), 3, 7, 3])
score = jax.jit(partial(compute_rewards, group_size=27))


def test_four_devices_give_the_rewards_of_one(reward):
    recent = RecentCrystals(2, batch_size=8, max_atoms=6)
    recent.add(take(CRYSTALS, [0, 1, 2]))
    one = score(CRYSTALS, reward=reward, recent=recent.crystals)
    for fsdp in (1, 2):
        with jax.set_mesh(make_mesh(4, fsdp=fsdp)):
            four = score(CRYSTALS, reward=reward, recent=recent.crystals)
            again = score(CRYSTALS, reward=reward, recent=recent.crystals)
        assert_same(four, one, atol=1e-6)
        assert_same(four, again, rtol=0)
    check_finite(one)
    assert not one.unique[24:].any() and one.unique.sum() > 10


def test_recent_crystals_are_an_argument(reward):
    """What one call was given is forgotten in the next."""
    recent = RecentCrystals(2, batch_size=8, max_atoms=6)
    nothing = score(CRYSTALS, reward=reward, recent=recent.crystals)
    before = score._cache_size()
    recent.add(take(CRYSTALS, [0, 1, 2]))
    seen = score(CRYSTALS, reward=reward, recent=recent.crystals)
    recent.add(take(CRYSTALS, [4, 5]))
    recent.add(take(CRYSTALS, []))
    forgot = score(CRYSTALS, reward=reward, recent=recent.crystals)
    recent.add(take(CRYSTALS, []))
    empty = score(CRYSTALS, reward=reward, recent=recent.crystals)
    assert score._cache_size() == before
    assert (nothing.components["creativity"][:6] > 0.5).all()
    for output, rows in ((seen, [0, 1, 2]), (forgot, [4, 5])):
        code = CreativityStatus.SEEN_BEFORE
        status = np.asarray(output.status["creativity"])
        assert set(rows) <= set(np.flatnonzero(status == code)) <= {*rows, 24, 25, 26}
        assert (output.components["creativity"][np.array(rows)] == 0).all()
        np.testing.assert_array_equal(output.unique, nothing.unique)
        np.testing.assert_array_equal(output.novel, nothing.novel)
    assert_same(empty, nothing, rtol=0)
    assert_same(score(CRYSTALS, reward=reward), nothing, rtol=0)

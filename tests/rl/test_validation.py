"""The score that chooses the best policy."""

from functools import partial

import jax
import numpy as np
import pytest
from crystal_sets import salt

from chemeleon_jax.data.crystals import from_structures, take
from chemeleon_jax.data.dataset import load_dataset
from chemeleon_jax.rewards import compute_rewards, make_reward
from chemeleon_jax.rl.bulk import draw_prompts, sample_in_bulk
from chemeleon_jax.workers.pool import WorkerPool

SALTS = from_structures([salt("Cl", 4.12), salt("Br", 4.29), salt("I", 4.57)])
VALIDATION_KEY = jax.random.fold_in(jax.random.key(1), 1)  # of seed + 1


def kind(key) -> int:
    """Which salt a crystal's key makes it."""
    return int(jax.random.randint(key, (), 0, 3))


@pytest.fixture(scope="module")
def reward():
    """What is unique in its set is worth something."""
    components = {"creativity": {"weight": 1.0}}
    config = {"normalize_fn": "none", "eps": 1e-4, "components": components}
    config["reference_dataset"] = "salts"  # whose hull nobody asks for
    known = load_dataset("mp_mini").subset(np.arange(3))
    with WorkerPool(1) as pool:
        yield make_reward(config, dataset=known, pool=pool)


@pytest.mark.parametrize("groups, group_size", [(2, 2), (3, 4)])
def test_the_score_does_not_depend_on_the_training_batch(reward, groups, group_size):
    """Ten crystals of three kinds are one set, however many are sampled at once."""
    sizes = []

    def sample(params, prompts):
        sizes.append(len(prompts.keys))
        return take(SALTS, np.array([kind(key) for key in prompts.keys]))

    def draw(key, count):
        return np.full(count, 2), None

    crystals = sample_in_bulk(
        None,
        draw_prompts(draw, jax.random.key(1), 10),
        sample=sample,
        batch_size=groups * group_size,
    )
    score = partial(compute_rewards, group_size=10, with_energies=True)
    rewards = jax.jit(score)(crystals, reward=reward)
    assert set(sizes) == {groups * group_size}
    kinds = [kind(jax.random.fold_in(VALIDATION_KEY, i)) for i in range(10)]
    np.testing.assert_array_equal(crystals.atom_types, take(SALTS, kinds).atom_types)
    first = [k not in kinds[:i] for i, k in enumerate(kinds)]
    np.testing.assert_array_equal(rewards.unique, first)
    assert len(set(kinds)) == 3
    assert rewards.metrics["unique"] == pytest.approx(0.3)

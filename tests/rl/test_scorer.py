"""An iteration's crystals scored: within a budget, and over a stop."""

import numpy as np
import tiny
from small_reward import random_crystals

from chemeleon_jax.devices.sharding import make_mesh
from chemeleon_jax.rl.config import rl_config
from chemeleon_jax.rl.scorer import Scorer
from chemeleon_jax.runs.iteration_files import save_iteration

GROUPS, OF_EACH, BUDGET = 2, 4, 4


def scorer(reward, folder, start):
    config = rl_config("mini")
    config.data.batch_size, config.rl.num_group_samples = GROUPS, OF_EACH
    config.reward.budget_per_iteration = BUDGET
    config.reward.recent_iterations = 1
    model, _ = tiny.generator()
    return Scorer(config, reward, model, make_mesh(1), folder, start)


def test_a_budget_scores_some_of_each_group_and_goes_on_after_a_stop(reward, tmp_path):
    iterations = [random_crystals(GROUPS * OF_EACH, seed=i) for i in range(3)]
    whole = scorer(reward, tmp_path, 0)
    for i, sampled in enumerate(iterations[:2]):
        crystals, rewards, advantage, kept = whole(sampled, None)
        # The first half of each group, and an advantage for all.
        rows = [0, 1, 4, 5]
        np.testing.assert_array_equal(crystals.lengths, sampled.lengths[rows])
        assert rewards.total.shape == (BUDGET,) and advantage.shape == (8,)
        assert rewards.metrics["surrogate/calls"] == BUDGET
        weights = {term.name: term.weight for term in reward.terms}
        costly = sum(weights[x] * rewards.components[x] for x in ("energy", "custom"))
        np.testing.assert_allclose(kept["costly"], costly, rtol=1e-6)
        save_iteration(tmp_path, i, vars(crystals), vars(rewards), **kept)
    continued = scorer(reward, tmp_path, 2)
    expected = whole(iterations[2], None)
    found = continued(iterations[2], None)
    assert np.ptp(expected.advantage) > 0
    np.testing.assert_allclose(found.advantage, expected.advantage, rtol=1e-5)
    np.testing.assert_array_equal(found.rewards.total, expected.rewards.total)

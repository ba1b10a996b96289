import numpy as np

from chemeleon_jax.rewards.energy import energy_reward

ABOVE = np.array([-0.2, 0.0, 0.1, 0.9, 7.0, np.nan])  # eV/atom


def test_linear_within_the_limits():
    expected = [0.0, 0.0, -0.1, -0.9, -5.0, -5.0]
    np.testing.assert_allclose(energy_reward(ABOVE, 5.0), expected)


def test_with_a_decay_only_what_is_near_the_hull_earns_anything():
    found = energy_reward(ABOVE, 5.0, decay=0.3)
    # exp(-e / 0.3) - 1 for e of 0.1, 0.9 and 5 eV/atom
    expected = [0.0, 0.0, -0.2834687, -0.9502129, -1.0, -1.0]
    np.testing.assert_allclose(found, expected, atol=1e-6)

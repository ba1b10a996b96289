import numpy as np

from chemeleon_jax.rewards.energy import energy_reward

ABOVE = np.array([-0.2, 0.0, 0.1, 0.9, 7.0, np.nan])  # eV/atom


def test_linear_within_the_limits():
    expected = [0.0, 0.0, -0.1, -0.9, -5.0, -5.0]
    np.testing.assert_allclose(energy_reward(ABOVE, 5.0), expected)


def test_a_decay_levels_off_above_it_and_changes_nothing_at_the_hull():
    found = energy_reward(ABOVE, 5.0, decay=0.3)
    # 0.3 (1 - exp(-e / 0.3)) for e of 0.1, 0.9 and 5 eV/atom
    expected = [0.0, 0.0, -0.0850406, -0.2850639, -0.3, -0.3]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    nearly = energy_reward(np.array([0.0, 0.001, 0.002]), 5.0, decay=0.3)
    np.testing.assert_allclose(nearly, [0.0, -0.001, -0.002], atol=1e-5)
    linear = energy_reward(ABOVE, 5.0, decay=1e9)
    np.testing.assert_allclose(linear, energy_reward(ABOVE, 5.0), atol=1e-6)

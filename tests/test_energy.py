import numpy as np

from chemeleon_jax.rewards.energy import energy_reward

ABOVE = np.array([-0.2, 0.0, 0.1, 0.9, 7.0, np.nan])  # eV/atom


def test_linear_within_the_limits():
    expected = [0.0, 0.0, -0.1, -0.9, -5.0, -5.0]
    np.testing.assert_allclose(energy_reward(ABOVE, 5.0), expected)

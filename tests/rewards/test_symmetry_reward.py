"""The component `symmetry`."""

import numpy as np
from pymatgen.core import Lattice, Structure

from chemeleon_jax import compute_rewards
from chemeleon_jax.data.crystals import from_structures
from chemeleon_jax.data.dataset import load_dataset
from chemeleon_jax.rewards import make_reward


def test_order_of_the_point_group_counts_and_invalid_crystals_are_worth_nothing(pool):
    salt = Structure(Lattice.cubic(3.5), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    moved = Structure(salt.lattice, salt.species, [[0, 0, 0], [0.5, 0.5, 0.6]])
    overlapping = Structure(salt.lattice, salt.species, [[0, 0, 0], [0, 0, 0.01]])
    config = {
        "normalize_fn": "std",
        "eps": 1e-4,
        "components": {"symmetry": {"weight": 1.0, "tolerance": 0.1}},
    }
    known = load_dataset("mp_mini").subset(np.arange(3))
    reward = make_reward(config, dataset=known, pool=pool)
    crystals = from_structures([salt, moved, overlapping])
    found = compute_rewards(crystals, reward=reward, group_size=3)
    # Pm-3m has 48 operations, P4mm 8.
    expected = [1.0, np.log(8) / np.log(48), 0.0]
    np.testing.assert_allclose(found.components["symmetry"], expected, rtol=1e-6)

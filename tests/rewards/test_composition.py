"""What a conditional model is asked for."""

import jax.numpy as jnp
import numpy as np
from pymatgen.core import Lattice, Structure
from small_reward import KNOWN, random_crystals, score

from chemeleon_jax.data.crystals import from_structures
from chemeleon_jax.potentials.types import Potential
from chemeleon_jax.rewards import make_reward
from chemeleon_jax.rewards.composition import has_composition


def fractions(*rows):
    """[B, 100] of {atomic number: fraction}; None for what nobody asked."""
    found = np.zeros((len(rows), 100), np.float32)
    for row, amounts in zip(found, rows, strict=True):
        row[:] = np.nan if amounts is None else 0.0
        for z, amount in (amounts or {}).items():
            row[z] = amount
    return found


def structure(*types):
    places = np.arange(len(types))[:, None] * [0.2, 0.3, 0.4]
    return Structure(Lattice.cubic(6), types, places)


CRYSTALS = from_structures(
    [structure(3, 3, 8), structure(3, 8, 8), structure(3, 8), structure(3, 3, 8)]
)


def test_a_composition_is_right_whatever_its_multiple():
    asked = fractions({3: 2 / 3, 8: 1 / 3}, {3: 2 / 3, 8: 1 / 3}, None, {3: 1.0})
    right = has_composition(CRYSTALS, asked)
    assert right.tolist() == [True, False, True, False]
    assert has_composition(CRYSTALS, None).all()


def test_in_a_reward_by_crystal_and_each_kind_once(pool):
    energies = lambda x: (jnp.zeros(len(x.mask)), jnp.zeros(len(x.mask), int))  # noqa: E731
    reward = make_reward(
        {
            "normalize_fn": "std",
            "eps": 1e-4,
            "components": {
                "asked_composition": {"weight": 2.0},
                "uniqueness": {"weight": 1.0},
            },
        },
        dataset=KNOWN,
        potential=Potential("zero", "zero", energies),
        pool=pool,
    )
    asked = fractions(*[{3: 2 / 3, 8: 1 / 3}] * 4)
    output = score(CRYSTALS, reward=reward, group_size=4, asked=asked)
    assert output.components["asked_composition"].tolist() == [1, 0, 0, 1]
    assert output.components["uniqueness"].tolist() == [1, 1, 1, 0]  # 0 and 3 are one
    np.testing.assert_allclose(output.total, [3, 1, 1, 2])
    others = random_crystals(4, seed=1)
    assert (
        score(others, reward=reward, group_size=4).components["asked_composition"].all()
    )

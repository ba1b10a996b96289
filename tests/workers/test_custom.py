import re

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from chemeleon_jax.data.crystals import from_structures
from chemeleon_jax.errors import UserError
from chemeleon_jax.rewards.matches import to_cells
from chemeleon_jax.workers.custom import CustomReward, atomic_density
from chemeleon_jax.workers.outcome import Status
from chemeleon_jax.workers.pool import WorkerPool

SIZES = np.array([2, 3, 1, 4, 6, 5])
CELLS = to_cells(
    from_structures(
        [
            Structure(
                Lattice.cubic(10 - n), ["Fe"] * n, np.linspace([0] * 3, [0.9] * 3, n)
            )
            for n in SIZES
        ]
    )
)
VALID = np.array([True, True, True, False, True, True])


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(2, time_limit=1.0, memory_limit=2.0) as pool:
        yield pool


def call(name, pool):
    return CustomReward(f"custom_rewards:{name}", pool, time_limit=3.0)(CELLS, VALID)


def test_values_and_invalid_crystals(pool):
    values, status = call("num_sites", pool)
    assert values.tolist() == [2, 3, 1, 0, 6, 5]
    assert status.tolist() == [
        Status.OK,
        Status.OK,
        Status.OK,
        Status.INVALID,
        Status.OK,
        Status.OK,
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ScorerClass", "is a class, not a function"),
        ("asynchronous", "is asynchronous"),
        ("two_arguments", "no function of one list: missing a required argument"),
    ],
)
def test_what_cannot_be_a_reward_is_refused_at_start_up(name, message, pool):
    with pytest.raises(UserError, match=f"cannot be loaded: .*{message}"):
        call(name, pool)


def test_values_that_a_normalisation_would_lose_are_told_once(pool, caplog):
    reward = CustomReward("custom_rewards:huge", pool, time_limit=3.0)
    for _ in range(2):
        values, status = reward(CELLS, VALID)
        assert values[0] == 2e30 and status[0] == Status.OK
    assert caplog.text.count("beyond 1e+15") == 1


def test_complex_numbers_are_no_values(pool):
    _, status = call("complex_numbers", pool)
    assert set(status[VALID].tolist()) == {Status.RAISED}


def test_a_function_sees_the_whole_batch(pool):
    values, _ = call("ranks", pool)  # by volume, so larger for fewer atoms
    assert values.tolist() == [3, 2, 4, 0, 0, 1]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("raises_for_three_sites", Status.RAISED),
        ("nan_for_three_sites", Status.BAD_VALUE),
        ("overflows_for_three_sites", Status.BAD_VALUE),
        ("masked_for_three_sites", Status.BAD_VALUE),
        ("hangs_for_three_sites", Status.TIMED_OUT),
        ("dies_for_three_sites", Status.DIED),
        ("leaks_for_three_sites", Status.OUT_OF_MEMORY),
    ],
)
def test_only_the_culprit_has_no_value(name, reason, pool):
    values, status = call(name, pool)
    assert values.tolist() == [2, 0, 1, 0, 6, 5]
    assert status.tolist() == [
        Status.OK,
        reason,
        Status.OK,
        Status.INVALID,
        Status.OK,
        Status.OK,
    ]


@pytest.mark.parametrize(
    ("name", "reason", "message"),
    [
        ("raises", Status.RAISED, "no such phonon"),
        ("one_number", Status.RAISED, r"shape \(\) for 5 structures; expected \(5,\)"),
        ("hangs", Status.TIMED_OUT, "exceeded its time limit of 3 s"),
        ("exits", Status.RAISED, "SystemExit: 3"),
    ],
)
def test_a_function_that_never_works(name, reason, message, pool, caplog):
    values, status = call(name, pool)
    assert values.tolist() == [0] * 6
    assert status.tolist() == [reason] * 3 + [Status.INVALID] + [reason] * 2
    said = caplog.records[0].getMessage()
    assert f"custom_rewards:{name}" in said and re.search(message, said)


def test_it_says_so_once(pool, caplog):
    reward = CustomReward("custom_rewards:raises", pool, time_limit=3.0)
    for _ in range(3):
        reward(CELLS, VALID)
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("num_sites", "module:function"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("custom_rewards:num_site", "has no attribute 'num_site'"),
        ("custom_rewards:not_a_function", "not callable"),
    ],
)
def test_a_name_that_is_no_function(name, message, pool):
    with pytest.raises(UserError, match=f"'{name}'.*{message}"):
        CustomReward(name, pool, time_limit=3.0)


def test_no_valid_crystal(pool):
    reward = CustomReward("custom_rewards:raises", pool, time_limit=3.0)
    values, status = reward(CELLS, np.zeros(6, bool))
    assert values.tolist() == [0] * 6 and status.tolist() == [Status.INVALID] * 6


def test_atomic_density():
    cube = Structure(Lattice.cubic(2.0), ["Fe", "Fe"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert atomic_density([cube, cube]) == pytest.approx([0.25, 0.25])

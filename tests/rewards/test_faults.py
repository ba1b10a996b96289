"""A custom reward that fails for ten crystals in a row ends its run."""

from types import SimpleNamespace

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from small_reward import build

from chemeleon_jax.data.crystals import from_structures
from chemeleon_jax.errors import UserError
from chemeleon_jax.rewards.faults import FaultStreak
from chemeleon_jax.rewards.matches import to_cells
from chemeleon_jax.workers.outcome import Status
from chemeleon_jax.workers.pool import WorkerPool

SIZES = np.array([2, 3, 1, 4, 6, 5])
CRYSTALS = from_structures(
    [
        Structure(Lattice.cubic(10 - n), ["Fe"] * n, np.linspace([0] * 3, [0.9] * 3, n))
        for n in SIZES
    ]
)
VALID = np.array([True, True, True, False, True, True])


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(2, time_limit=1.0, memory_limit=2.0) as pool:
        yield pool


def run(name, pool, folder):
    """A streak, and a function that gives it one iteration: valid crystals -> status.

    Five crystals are valid in each.
    """
    fields = {"weight": 1.0, "function": f"custom_rewards:{name}", "time_limit": 3.0}
    reward = build(pool, {"mine": fields})
    (term,) = reward.terms
    streak, cells = FaultStreak(reward, folder), to_cells(CRYSTALS)

    def iterate(valid=VALID):
        analysis = SimpleNamespace(cells=cells, valid=valid)
        _, status = term.component.evaluate(analysis)
        streak.add(CRYSTALS, SimpleNamespace(status={"mine": status}))
        return status

    return iterate


def test_ten_failures_in_a_row_end_the_run(pool, tmp_path, caplog):
    iterate = run("raises", pool, tmp_path)
    status = iterate()
    assert (
        status.tolist() == [Status.RAISED] * 3 + [Status.INVALID] + [Status.RAISED] * 2
    )
    with pytest.raises(UserError, match=r"'mine' failed for 10.*no such phonon") as e:
        iterate()
    path = tmp_path / "fault_mine.cif"
    assert f"last (raised) for the one in {path}" in str(e.value)
    assert len(Structure.from_file(path)) == SIZES[5]
    said = caplog.records[-1].getMessage()
    assert "custom_rewards.py" in said
    assert said.endswith("RuntimeError: no such phonon\n")


def test_a_run_that_continues_starts_from_none(pool, tmp_path):
    for _ in range(3):
        run("raises", pool, tmp_path)()


@pytest.mark.parametrize("name", ["nan_for_three_sites", "raises_for_three_sites"])
def test_failures_between_successes_are_none(pool, tmp_path, name):
    """One crystal in five, also when it is never another: no fault of the function."""
    iterate = run(name, pool, tmp_path)
    for _ in range(11):
        iterate()
    lone = VALID & (SIZES == 3)
    iterate(VALID & (SIZES < 3))
    for _ in range(9):
        iterate(lone)
    with pytest.raises(UserError, match="10 crystals in a row"):
        iterate(lone)
    assert len(Structure.from_file(tmp_path / "fault_mine.cif")) == 3


def test_crystals_that_were_given_up_do_not_count(pool, tmp_path):
    """Twelve are tried, of which three hang; the twelve after them are not."""
    hung = np.full(24, Status.TIMED_OUT)
    hung[[0, 1, 2, 3, 4, 6, 8, 9, 11]] = Status.OK
    reward = build(pool, {"mine": {"weight": 1.0, "function": "custom_rewards:raises"}})
    streak = FaultStreak(reward, tmp_path)
    streak.add(None, SimpleNamespace(status={"mine": hung}))
    assert streak._in_a_row == {"mine": 0}

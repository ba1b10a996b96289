"""A custom reward that keeps failing ends its run."""

import logging
import os
from pathlib import Path

import numpy as np

from chemeleon_jax.data.crystals import take
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.devices import distributed
from chemeleon_jax.errors import UserError
from chemeleon_jax.rewards.matches import to_cells
from chemeleon_jax.rewards.reward import Reward, RewardOutput
from chemeleon_jax.workers.custom import MAX_FAULTS, CustomReward, count_tried
from chemeleon_jax.workers.matching import Cell, to_structure
from chemeleon_jax.workers.outcome import Status

logger = logging.getLogger(__name__)


class FaultStreak:
    """Counts the crystals in a row, over iterations, for which a custom reward failed.

    State of a run. A run that continues starts from 0: the user may have mended the
    function.
    """

    def __init__(self, reward: Reward, directory: str | os.PathLike):
        """`directory`: where the crystal that was too many is saved, as CIF."""
        self._custom = {
            term.name: term.component.custom
            for term in reward.terms
            if term.component.custom is not None
        }
        self._in_a_row = dict.fromkeys(self._custom, 0)
        self._directory = Path(directory)

    def add(self, crystals: CrystalBatch, rewards: RewardOutput) -> None:
        """Takes in an iteration, on every process.

        Raises:
          UserError: the tenth crystal in a row has failed. The traceback is logged.
        """
        for name, custom in self._custom.items():
            status = np.asarray(rewards.status[name])
            rows = np.flatnonzero(status != Status.INVALID)
            for row in rows[: count_tried(status[rows])]:
                failed = status[row] != Status.OK
                self._in_a_row[name] = self._in_a_row[name] + 1 if failed else 0
                if self._in_a_row[name] == MAX_FAULTS:
                    (cell,) = to_cells(take(crystals, np.array([row])))
                    self._end(name, custom, cell, Status(status[row]))

    def _end(self, name: str, custom: CustomReward, cell: Cell, status: Status):
        what = f"reward {name!r} failed for {MAX_FAULTS} crystals in a row"
        if not distributed.is_first():
            raise UserError(f"{what}: see what the first process says")
        path = self._directory / f"fault_{name}.cif"
        to_structure(cell).to(filename=str(path), fmt="cif")
        outcome = custom.call_alone(cell)
        if outcome.traceback:
            logger.error("reward %r:\n%s", name, outcome.traceback)
        reason = outcome.message or "called once more, alone, it gave a value"
        raise UserError(
            f"{what}, last ({status.name.lower()}) for the one in {path}: {reason}. "
            "Put it right and give the same command again"
        )

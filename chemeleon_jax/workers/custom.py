"""Rewards that users write: `f(structures: list[Structure]) -> array`.

`load_function` and `call_function` run in worker processes.
"""

import functools
import importlib.util
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from pymatgen.core import Structure

from chemeleon_jax.errors import UserError
from chemeleon_jax.workers.matching import Cell, to_structure
from chemeleon_jax.workers.outcome import Outcome, Status
from chemeleon_jax.workers.pool import Pool

logger = logging.getLogger(__name__)

BATCH_TIME_LIMIT = 60.0  # s, for a call with all crystals of a batch
_FIRST_BLOCK = 4  # crystals tried alone before more are
_MAX_TIMEOUTS = 3  # crystals that may hang before the rest is given up
MAX_FAULTS = 10  # crystals in a row without a value: the function itself is at fault


def atomic_density(structures: Sequence[Structure]) -> np.ndarray:
    """Atoms per Å^3. An example of a custom reward, and that of rl_atomic_density."""
    return np.array([len(s) / s.volume for s in structures])


def load_function(name: str) -> Callable:
    """The function called "module:function" or "FILE.py:function".

    A module is looked up as `import` does; a file is run once by each process.

    Raises:
      ValueError: the name has another form.
      ImportError: the module cannot be imported.
      OSError: there is no such file.
      AttributeError: the module has no such function.
      TypeError: it is no function.
    """
    module, colon, attribute = name.rpartition(":")
    if not (module and colon and attribute):
        raise ValueError(f"{name!r} does not have the form 'module:function'")
    load = _load_file if module.endswith(".py") else importlib.import_module
    function = getattr(load(module), attribute)
    if not callable(function):
        raise TypeError(f"{name!r} is not callable")
    return function


@functools.cache
def _load_file(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec and spec.loader  # there are, for any name that ends in .py
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_function(name: str) -> None:
    """Loads a function for what that raises; runs in a worker."""
    load_function(name)


def call_function(call: tuple[str, list[Cell]]) -> np.ndarray:
    """The function's values for crystals, [n] float64; runs in a worker.

    Raises:
      ValueError: the function did not return one number per crystal.
      Exception: whatever the function raises.
    """
    name, cells = call
    result = load_function(name)([to_structure(cell) for cell in cells])
    values = np.asarray(result, np.float64)
    if values.shape != (len(cells),):
        raise ValueError(
            f"returned an array of shape {values.shape} for {len(cells)} structures; "
            f"expected ({len(cells)},)"
        )
    return values


class Fault(NamedTuple):
    """The last of so many failures of a function that no more crystals are tried."""

    cell: Cell
    status: int  # a `Status`
    message: str
    traceback: str  # in the worker; empty if the function did not raise


class CustomReward:
    """A user's function, called so that nothing it does can end the program.

    After ten crystals in a row without a value, `fault` is the last of them, and the
    caller should stop.
    """

    def __init__(self, name: str, pool: Pool, *, time_limit: float):
        """Checks that the workers can import the function.

        Args:
          name: "module:function"; the current directory is searched first.
          pool: worker processes; its time limit is that of one crystal alone.
          time_limit: seconds for a call with all crystals of a batch.

        Raises:
          UserError: the function cannot be loaded.
        """
        self.name, self.pool, self.time_limit = name, pool, time_limit
        self.fault: Fault | None = None
        self._said: set[int] = set()
        self._in_a_row = 0
        outcome = pool.call(check_function, name, time_limit=time_limit)
        if outcome.status != Status.OK:
            raise UserError(
                f"custom reward {name!r} cannot be loaded: {outcome.message}. Give "
                "'module:function', importable from the current directory"
            )

    def __call__(
        self, cells: list[Cell], valid: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Values of B crystals.

        The function gets all valid crystals at once, so that it may compare them. Only
        if that fails is it called for each crystal alone, to find the culprits. Once
        three crystals have hung, those after them are given up too.

        Returns:
          [B] values, 0 where the status is not OK; [B] status.
        """
        rows = np.flatnonzero(valid)
        values = np.zeros(len(cells))
        status = np.where(valid, Status.OK, Status.INVALID)
        if not len(rows):
            return values, status
        item = (self.name, [cells[i] for i in rows])
        outcome = self.pool.call(
            call_function, item, time_limit=self.time_limit, retry=False
        )
        if outcome.status == Status.OK:
            for i, value in zip(rows, outcome.value, strict=True):
                values[i], status[i] = self._judge(cells[i], Outcome(Status.OK, value))
        else:
            self._say(outcome.status, f"a batch of {len(rows)}", outcome.message)
            self._call_alone(cells, rows, values, status)
        return values, status

    def _call_alone(self, cells, rows, values, status) -> None:
        """Fills `values` and `status` of `rows`, calling crystal by crystal."""
        size, timeouts = _FIRST_BLOCK, 0
        while len(rows) and timeouts < _MAX_TIMEOUTS and not self.fault:
            block, rows = rows[:size], rows[size:]
            items = [(self.name, [cells[i]]) for i in block]
            outcomes = self.pool.map(call_function, items, chunk_size=1)
            for i, outcome in zip(block, outcomes, strict=True):
                if outcome.status == Status.OK:
                    outcome = outcome._replace(value=outcome.value[0])
                values[i], status[i] = self._judge(cells[i], outcome)
            timeouts += sum(o.status == Status.TIMED_OUT for o in outcomes)
            size *= 2
        status[rows] = self.fault.status if self.fault else Status.TIMED_OUT

    def _judge(self, cell: Cell, outcome: Outcome) -> tuple[float, int]:
        """Value and status of a crystal; counts failures in a row."""
        if outcome.status == Status.OK and np.isfinite(outcome.value):
            self._in_a_row = 0
            return outcome.value, Status.OK
        if outcome.status == Status.OK:
            message = "returned a value that is not finite"
            outcome = Outcome(Status.BAD_VALUE, message=message)
        self._say(outcome.status, to_structure(cell).formula, outcome.message)
        self._in_a_row += 1
        if self._in_a_row >= MAX_FAULTS and not self.fault:
            status, _, message, traceback = outcome
            self.fault = Fault(cell, status, message, traceback)
        return 0.0, outcome.status

    def _say(self, status: int, crystal: str, message: str) -> None:
        """Logs the first failure of each kind; the metrics count them all."""
        if status in self._said:
            return
        self._said.add(status)
        logger.warning(
            "custom reward %r failed (%s) for %s: %s. Crystals without a value get the "
            "lowest value of their batch; more such failures are only counted",
            self.name,
            Status(status).name.lower(),
            crystal,
            message,
        )

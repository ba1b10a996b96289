"""Rewards that users write: `f(structures: list[Structure]) -> array`.

`load_function` and `call_function` run in worker processes.
"""

import functools
import importlib.util
import inspect
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

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
NOT_FINITE = "returned a value that is not finite in float32"
LARGEST = 1e38  # the difference of two is still a float32
LARGE = 1e15  # beyond, squares and sums of a batch overflow: normalised, all are alike
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
      TypeError: it is no function of one argument.
    """
    module, colon, attribute = name.rpartition(":")
    if not (module and colon and attribute):
        raise ValueError(f"{name!r} does not have the form 'module:function'")
    load = _load_file if module.endswith(".py") else importlib.import_module
    function = getattr(load(module), attribute)
    if not callable(function):
        raise TypeError(f"{name!r} is not callable")
    if isinstance(function, type):
        raise TypeError(f"{name!r} is a class, not a function of a list of structures")
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{name!r} is asynchronous; write it without async")
    try:
        inspect.signature(function).bind([])
    except ValueError:  # of functions in C, nothing is known
        pass
    except TypeError as error:
        raise TypeError(f"{name!r} is no function of one list: {error}") from error
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
    if np.iscomplexobj(result):
        raise ValueError("returned complex numbers")
    values = np.ma.filled(np.ma.asarray(result, np.float64), np.nan)  # masked: missing
    if values.shape != (len(cells),):
        raise ValueError(
            f"returned an array of shape {values.shape} for {len(cells)} structures; "
            f"expected ({len(cells)},)"
        )
    return values


def count_tried(status: np.ndarray) -> int:
    """How many of a batch's valid crystals a function was really called for.

    By their status, in order. `TIMED_OUT` is also that of crystals that were given up
    once three had hung.
    """
    size, tried, timeouts = _FIRST_BLOCK, 0, 0
    while tried < len(status) and timeouts < _MAX_TIMEOUTS:
        timeouts += np.sum(status[tried : tried + size] == Status.TIMED_OUT)
        tried, size = tried + size, 2 * size
    return min(tried, len(status))


class CustomReward:
    """A user's function, called so that nothing it does can end the program."""

    def __init__(self, name: str, pool: Pool, *, time_limit: float):
        """Checks that the workers can import the function "module:function".

        The current directory is searched first. A call with all crystals of a batch may
        take `time_limit` seconds, one with a single crystal what the pool allows.

        Raises:
          UserError: the function cannot be loaded.
        """
        self.name, self.pool, self.time_limit = name, pool, time_limit
        self._said: set[int] = set()
        self._said_large = False
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
        three crystals have hung, or ten in a row have no value, those after them are
        given up too.

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
                alone = self._check(Outcome(Status.OK, [value]))
                values[i], status[i] = self._judge(cells[i], alone)
        else:
            self._say(outcome.status, f"a batch of {len(rows)}", outcome.message)
            self._call_each(cells, rows, values, status)
        return values, status

    def call_alone(self, cell: Cell) -> Outcome:
        """What becomes of one crystal alone."""
        return self._check(self.pool.map(call_function, [(self.name, [cell])])[0])

    def _call_each(self, cells, rows, values, status) -> None:
        """Fills `values` and `status` of `rows`, calling crystal by crystal."""
        size, timeouts, in_a_row, given_up = _FIRST_BLOCK, 0, 0, Status.TIMED_OUT
        while len(rows) and timeouts < _MAX_TIMEOUTS and in_a_row < MAX_FAULTS:
            block, rows = rows[:size], rows[size:]
            items = [(self.name, [cells[i]]) for i in block]
            outcomes = self.pool.map(call_function, items, chunk_size=1)
            for i, outcome in zip(block, outcomes, strict=True):
                values[i], status[i] = self._judge(cells[i], self._check(outcome))
                in_a_row = in_a_row + 1 if status[i] != Status.OK else 0
            timeouts += sum(o.status == Status.TIMED_OUT for o in outcomes)
            size *= 2
            if in_a_row >= MAX_FAULTS:
                given_up = status[block[-1]]
        status[rows] = given_up

    @staticmethod
    def _check(outcome: Outcome) -> Outcome:
        """That of a crystal that was called alone: a number, if it is OK."""
        if outcome.status != Status.OK:
            return outcome
        (value,) = outcome.value
        if abs(value) <= LARGEST:
            return outcome._replace(value=value)
        return Outcome(Status.BAD_VALUE, message=NOT_FINITE)

    def _judge(self, cell: Cell, outcome: Outcome) -> tuple[float, int]:
        """Value and status of a crystal."""
        if outcome.status == Status.OK:
            if abs(outcome.value) > LARGE and not self._said_large:
                self._said_large = True
                logger.warning(
                    "custom reward %r gave %g for %s: beyond %g, normalised rewards of "
                    "a batch may come out as zeros; scale them down",
                    *(self.name, outcome.value, to_structure(cell).formula, LARGE),
                )
            return outcome.value, Status.OK
        self._say(outcome.status, to_structure(cell).formula, outcome.message)
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

"""What becomes of an item that a worker process is given.

This module imports neither NumPy nor JAX, as `pool.py`.
"""

from enum import IntEnum
from typing import Any, NamedTuple


class Status(IntEnum):
    """What became of an item. INVALID and BAD_VALUE are of rewards that use a pool."""

    OK = 0
    INVALID = 1
    RAISED = 2
    TIMED_OUT = 3
    DIED = 4
    BAD_VALUE = 5
    OUT_OF_MEMORY = 6


class Outcome(NamedTuple):
    """What a worker made of one item."""

    status: int  # a `Status`
    value: Any = None  # the function's result where the status is OK
    message: str = ""  # what went wrong otherwise
    traceback: str = ""  # where, if it raised


class Lost(NamedTuple):
    """A chunk without results."""

    outcome: Outcome  # of each item, unless another attempt does better
    innocent: bool = False  # another chunk's fault, as far as can be told

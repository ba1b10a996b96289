"""The table of a verification: recorded arrays against recomputed ones."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chemeleon_jax.runs.files import read_npz
from convert_checkpoints.records import CheckpointError

FORWARD = 2e-5  # relative to the array's largest magnitude
GRADIENT = 2e-4
TRAJECTORY = 1e-3


@dataclass
class Row:
    """One array of the recording."""

    key: str
    ok: bool
    note: str = ""
    max_abs: float | None = None  # largest difference; None where nothing was compared
    max_rel: float | None = None  # relative to the array's largest magnitude
    tolerance: float | None = None  # of max_rel

    def __str__(self) -> str:
        numbers = [
            f"{x:.1e}" if x is not None else "-"
            for x in (self.max_abs, self.max_rel, self.tolerance)
        ]
        columns = " ".join(f"{n:>8}" for n in numbers)
        return f"{self.key:<58} {columns}  {'ok' if self.ok else 'FAIL':<4} {self.note}"


HEADER = f"{'key':<58} {'abs':>8} {'rel':>8} {'tol':>8}  ok"


class Recording:
    """The arrays of `golden.npz`, and what became of each."""

    def __init__(self, path: Path):
        self.arrays = read_npz(path, "a recording")
        self.rows: dict[str, Row] = {}
        self.inputs: set[str] = set()

    def keys(self, prefix: str) -> list[str]:
        """Keys that begin with a prefix."""
        return [key for key in self.arrays if key.startswith(prefix)]

    def input(self, key: str) -> np.ndarray:
        """An array that the recomputation starts from.

        What is computed from it is compared, so a changed input shows there.
        """
        if key not in self.arrays:
            raise CheckpointError(f"golden.npz lacks {key!r}")
        array = self.arrays[key]
        self.inputs.add(key)
        if array.dtype.kind == "f" and array.dtype.itemsize == 8 and array.ndim:
            return array.astype(np.float32)
        return array

    def integers(self, key: str) -> np.ndarray:
        """An input of whole numbers, which a cast must not hide a change of."""
        array = self.input(key)
        if array.dtype.kind not in "iu":
            self.rows[key] = Row(key, False, "not integers")
        return array.astype(np.int32)

    def compare(
        self,
        key: str,
        actual,
        tolerance: float = FORWARD,
        note: str = "",
        *,
        wider: tuple[float, str] = (0.0, ""),
    ) -> None:
        """Compares a recorded array, if it is there, with the recomputed one.

        The tolerance is of the largest difference, relative to the recorded array's
        largest magnitude; a wider one, and why it may be, for where it is too strict.
        """
        if key not in self.arrays:
            return
        if key in self.rows and not self.rows[key].ok:
            return  # a failure stays one
        expected = np.asarray(self.arrays[key], np.float64)
        actual = np.asarray(actual, np.float64)
        finite = np.isfinite(expected)
        wrong = ""
        if expected.shape != actual.shape:
            wrong = f"shape {actual.shape}, recorded {expected.shape}"
        elif not np.array_equal(finite, np.isfinite(actual)):
            wrong = "not finite at other places than in the recording"
        if wrong:
            self.rows[key] = Row(key, False, wrong, tolerance=tolerance)
            return
        expected, actual = expected[finite], actual[finite]
        difference = float(np.abs(actual - expected).max(initial=0.0))
        scale = float(np.abs(expected).max(initial=0.0))
        relative = difference / scale if scale else (np.inf if difference else 0.0)
        if tolerance < relative <= wider[0]:
            tolerance, note = wider[0], "; ".join(filter(None, (note, wider[1])))
        ok = relative <= tolerance
        self.rows[key] = Row(key, ok, note, difference, relative, tolerance)

    def exact(self, key: str, actual, note: str = "") -> None:
        """Compare integers, masks and choices: no tolerance."""
        self.compare(key, actual, 0.0, note=note)

    def table(self) -> list[Row]:
        """One row per array, in the recording's order."""
        inputs = {
            key: Row(
                key,
                bool(np.isfinite(self.arrays[key]).all()),
                "input: compared through what is computed from it",
            )
            for key in self.inputs
        }
        rows = inputs | self.rows
        return [rows.get(key) or Row(key, False, "not compared") for key in self.arrays]

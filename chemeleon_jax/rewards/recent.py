"""The crystals of a run's last iterations, which are not creative any more."""

from pathlib import Path

import jax
import numpy as np

from chemeleon_jax.data.crystals import crystals_of, empty_batch, take, validity
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.runs.iteration_files import RELAXED, read_last


class RecentCrystals:
    """The valid crystals of the last iterations, an argument of `compute_rewards`."""

    def __init__(self, count: int, batch_size: int, max_atoms: int):
        """Of nothing yet; of the last `count` iterations of `batch_size` later."""
        self._shape = batch_size, max_atoms
        self._iterations = [empty_batch(*self._shape)] * count

    @property
    def crystals(self) -> CrystalBatch | None:
        """A batch [count * batch_size, max_atoms], empty rows included; None of none.

        Always of this shape, so that what it is an argument of compiles once.
        """
        if not self._iterations:
            return None
        return jax.tree.map(lambda *x: np.concatenate(x), *self._iterations)

    def add(self, crystals: CrystalBatch) -> None:
        """Adds the valid crystals (NumPy) of an iteration, and forgets the oldest."""
        if not self._iterations:
            return
        found = take(crystals, np.flatnonzero(validity(crystals) == 0))
        batch, (count, atoms) = empty_batch(*self._shape), found.mask.shape
        for name in ("atom_types", "frac_coords", "mask"):
            getattr(batch, name)[:count, :atoms] = getattr(found, name)
        batch.lengths[:count], batch.angles[:count] = found.lengths, found.angles
        self._iterations = [*self._iterations[1:], batch]


def load_recent(
    workdir: Path,
    count: int,
    start: int,
    *,
    batch_size: int,
    max_atoms: int,
    relaxed: bool = False,
) -> RecentCrystals:
    """The crystals of the last `count` iterations before `start`; as they relaxed.

    Those may have been larger than the `batch_size` of what follows.

    Raises:
      UserError: they are not all in the run's directory.
    """
    names = [f"relaxed_{k}" for k in RELAXED] if relaxed else []
    field = f"reward.recent_iterations = {count}"
    iterations = [*read_last(workdir, start, count, names, field)]
    largest = max([batch_size, *(len(arrays["mask"]) for arrays in iterations)])
    recent = RecentCrystals(count, largest, max_atoms)
    for arrays in iterations:
        if relaxed:
            arrays |= {k: arrays[f"relaxed_{k}"] for k in RELAXED}
        recent.add(crystals_of(arrays))
    return recent

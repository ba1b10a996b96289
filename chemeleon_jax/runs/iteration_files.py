"""The crystals of each iteration on disk, crystals/iteration_NNNNNN.npz of a run."""

import dataclasses
from pathlib import Path

import numpy as np

from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.devices import distributed
from chemeleon_jax.errors import UserError
from chemeleon_jax.rewards import RewardOutput
from chemeleon_jax.rewards.creativity import Recent
from chemeleon_jax.runs.files import read_npz

FIELDS = tuple(field.name for field in dataclasses.fields(CrystalBatch))
SCORES = ("total", "advantage", "valid", "unique", "novel", "e_above_hull")


def iteration_file(workdir: Path, iteration: int) -> Path:
    """Where an iteration's crystals are."""
    return workdir / "crystals" / f"iteration_{iteration:06d}.npz"


def last_iteration_file(workdir: Path) -> Path | None:
    """That of the last iteration, if there is any."""
    return max((workdir / "crystals").glob("iteration_*.npz"), default=None)


def save_iteration(
    workdir: Path, iteration: int, crystals: CrystalBatch, rewards: RewardOutput
) -> None:
    """Writes an iteration's crystals and what they were worth."""
    if not distributed.is_first():
        return
    scores = {f"component_{k}": v for k, v in rewards.components.items()}
    scores |= {k: v for k in SCORES if (v := getattr(rewards, k)) is not None}
    file = iteration_file(workdir, iteration)
    file.parent.mkdir(exist_ok=True)
    np.savez_compressed(file, **vars(crystals), **scores)


def read_iteration(file: Path) -> tuple[CrystalBatch, dict[str, np.ndarray]]:
    """Crystals, and what they were worth, by name.

    Raises:
      UserError: the file cannot be read.
    """
    known = read_npz(file, "an iteration's crystals", FIELDS)
    return CrystalBatch(**{name: known.pop(name) for name in FIELDS}), known


def recall(workdir: Path, count: int, start: int) -> Recent:
    """The crystals of the last `count` iterations before `start`.

    Raises:
      UserError: they are not all in the run's directory.
    """
    recent = Recent(count)
    for iteration in range(max(start - count, 0), start):
        try:
            recent.remember(read_iteration(iteration_file(workdir, iteration))[0])
        except UserError as error:
            raise UserError(
                f"{error}, and config.reward.recent_iterations = {count} needs it; "
                "0 does without"
            ) from error
    return recent

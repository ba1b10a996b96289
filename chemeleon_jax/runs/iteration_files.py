"""The crystals of each iteration on disk, crystals/iteration_NNNNNN.npz of a run."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chemeleon_jax.devices import distributed
from chemeleon_jax.errors import UserError
from chemeleon_jax.runs.files import read_npz, replacing, sync

CRYSTALS = ("atom_types", "frac_coords", "lengths", "angles", "mask")
RELAXED = ("frac_coords", "lengths", "angles")  # that relaxation changes
SCORES = ("total", "advantage", "valid", "unique", "novel", "e_above_hull")


def iteration_file(workdir: Path, iteration: int) -> Path:
    """Where an iteration's crystals are."""
    return workdir / "crystals" / f"iteration_{iteration:06d}.npz"


def last_iteration_file(workdir: Path) -> Path | None:
    """That of the last iteration, if there is any."""
    return max((workdir / "crystals").glob("iteration_*.npz"), default=None)


def save_iteration(
    workdir: Path,
    iteration: int,
    crystals: Mapping,
    rewards: Mapping[str, Any],
    **more: np.ndarray,
) -> None:
    """Writes an iteration's crystals and what they were worth.

    They are the fields of a `CrystalBatch` and of a `RewardOutput`. More arrays [B,
    ...] are kept by their name: what replay or a surrogate needs to continue.
    """
    if not distributed.is_first():
        return
    scores = {f"component_{k}": v for k, v in rewards["components"].items()}
    scores |= {k: v for k in SCORES if (v := rewards[k]) is not None}
    scores |= {f"e_above_hull_{k}": v for k, v in rewards.get("opinions", {}).items()}
    if rewards.get("relaxed") is not None:
        relaxed = vars(rewards["relaxed"])
        scores |= {f"relaxed_{k}": relaxed[k] for k in RELAXED}
        scores["rmsd"] = rewards["rmsd"]
    scores |= more
    file = iteration_file(workdir, iteration)
    with replacing(file) as scratch:
        np.savez_compressed(scratch, **crystals, **scores)
    for path in (file, file.parent):  # a state counts when this is on the disk
        sync(path)


def read_last(
    workdir: Path, start: int, count: int, names: Sequence[str], needed_by: str
) -> Iterator[dict[str, np.ndarray]]:
    """The last `count` iterations before `start`, oldest first.

    Raises:
      UserError: one is missing, or cannot be read. It names the field that needs it.
    """
    for iteration in range(max(start - count, 0), start):
        try:
            yield read_iteration(iteration_file(workdir, iteration), names)
        except UserError as error:
            raise UserError(
                f"{error}, and config.{needed_by} needs it; 0 does without"
            ) from error


def read_iteration(file: Path, more: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """What `save_iteration` wrote, by name; arrays of the names `more` too.

    Raises:
      UserError: the file cannot be read, or lacks an array.
    """
    return read_npz(file, "an iteration's crystals", (*CRYSTALS, "total", *more))

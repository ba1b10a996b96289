"""Space groups of a data set's crystals, as labels."""

import contextlib
import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pymatgen.symmetry.groups import SpaceGroup

from chemeleon_jax.data.crystals import to_structures
from chemeleon_jax.data.dataset import Dataset
from chemeleon_jax.runs.cached_arrays import cached_arrays
from chemeleon_jax.workers.matching import cell_of
from chemeleon_jax.workers.outcome import Status
from chemeleon_jax.workers.pool import WorkerPool
from chemeleon_jax.workers.symmetry import (
    SYMMETRY_TOLERANCE,
    space_group_number,
    whole_group_number,
)

# The last space group of each crystal system, by number.
CRYSTAL_SYSTEMS = {
    "triclinic": 2,
    "monoclinic": 15,
    "orthorhombic": 74,
    "tetragonal": 142,
    "trigonal": 167,
    "hexagonal": 194,
    "cubic": 230,
}
TIME_LIMIT = 30.0  # s, of a crystal


def read_space_group(name: str | int) -> int:
    """The number of a space group, from its symbol or number: "P21/c", "P2_1/c", 14.

    Raises:
      ValueError: there is none of this name.
    """
    name = str(name).strip()
    if name.isdecimal() and 1 <= int(name) <= 230:
        return int(name)
    # Of other settings too, and with the screw axes as people write them.
    for symbol in (name, re.sub(r"([2346])([1-5])", r"\1_\2", name)):
        with contextlib.suppress(ValueError):
            return SpaceGroup(symbol).int_number
    raise ValueError(
        "a space group is an international symbol, such as Fm-3m, or a number from 1 "
        "to 230"
    )


def read_crystal_system(name: str) -> int:
    """Index into `CRYSTAL_SYSTEMS`.

    Raises:
      ValueError: there is none of this name.
    """
    if name not in CRYSTAL_SYSTEMS:
        raise ValueError(f"the systems are {', '.join(CRYSTAL_SYSTEMS)}")
    return list(CRYSTAL_SYSTEMS).index(name)


def with_symmetry_labels(
    dataset: Dataset, specs: Sequence[Mapping[str, Any]]
) -> Dataset:
    """A data set that also has what conditions on symmetry ask for, as class indices.

    Of conditions see `models.condition.preprocess`. Without one on symmetry the data
    set is returned as it is; else spglib looks at every crystal, once.
    """
    if not any(spec["kind"] in ("space_group", "crystal_system") for spec in specs):
        return dataset
    numbers = space_group_numbers(dataset)
    classes = {"space_group": numbers - 1, "crystal_system": crystal_systems(numbers)}
    found = {s["name"]: classes[s["kind"]] for s in specs if s["kind"] in classes}
    return dataclasses.replace(dataset, labels=dataset.labels | found)


def space_group_numbers(dataset: Dataset, *, whole: bool = False) -> np.ndarray:
    """By spglib within 0.1 Å, in worker processes, and cached.

    [M] from 1 to 230, float32; NaN where spglib finds none. If they are to be `whole`,
    NaN also for supercells that some of the operations take to others.
    """
    find = whole_group_number if whole else space_group_number

    def compute():
        print(
            f"finding the space groups of {len(dataset)} crystals, once",
            file=sys.stderr,
            flush=True,
        )
        structures = to_structures(dataset.crystals)
        usable = [i for i, s in enumerate(structures) if s is not None]
        with WorkerPool(time_limit=TIME_LIMIT) as pool:
            cells = [cell_of(structures[i]) for i in usable]
            outcomes = pool.map(find, cells)
        numbers = np.full(len(structures), np.nan, np.float32)
        for i, outcome in zip(usable, outcomes, strict=True):
            if outcome.status == Status.OK:
                numbers[i] = outcome.value
        return [numbers]

    key = f"{SYMMETRY_TOLERANCE} {dataset.digest}{' whole' if whole else ''}"
    return cached_arrays("space_groups", key, compute)[0]


def crystal_systems(numbers: np.ndarray) -> np.ndarray:
    """Index into `CRYSTAL_SYSTEMS` of space groups by number; NaN stays."""
    last = np.array(list(CRYSTAL_SYSTEMS.values()))
    found = np.searchsorted(last, numbers).astype(np.float32)
    return np.where(np.isnan(numbers), np.nan, found)

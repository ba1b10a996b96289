"""Data sets on disk -> padded arrays -> batches; augmentation.

A data set is NumPy on the host. Only `augment` and `corrupt` are JAX, meant for jit.
"""

import csv
import hashlib
import logging
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from multiprocessing import get_context
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from pymatgen.core import Structure

from chemeleon_jax.crystals import (
    chemical_system,
    empty_batch,
    from_structures,
    niggli_reduce,
    take,
)
from chemeleon_jax.lattice import lattice_matrix
from chemeleon_jax.types import CrystalBatch

logger = logging.getLogger(__name__)

ASSETS = Path(__file__).parent / "assets"
MP_MINI_SHA256 = "a2b883ed05ffbe07610a1727ca4874ad8906e3783884a374c87fdea63ddd40ea"

SPLITS = ("train", "validation", "test")
SPLIT_SHARES = (0.90, 0.05, 0.05)

# How many crystals of MP-20 have 1, 2, ..., 20 atoms, as a share of all.
_MP20 = (
    (0.00217423, 0.02107901, 0.01982606, 0.15271226, 0.04713296)
    + (0.08464770, 0.02107901, 0.07808815, 0.03434552, 0.09728774)
    + (0.01330336, 0.09669811, 0.02155808, 0.06522701, 0.01437205)
    + (0.06703278, 0.00972877, 0.05317659, 0.01057636, 0.08995430)
)
MP20_ATOM_COUNTS = np.array(_MP20) / sum(_MP20)  # [20], entry i for i + 1 atoms

CSV_READER_VERSION = 1  # raise when the reader's result changes: caches go stale
POOL_THRESHOLD = 2000  # rows from which worker processes pay off


@dataclass(frozen=True)
class SkippedRow:
    """A row of a CSV file that gave no crystal."""

    row: int  # 1 is the first row below the header
    material_id: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """Crystals with labels, on the host. M crystals, padded to N atoms."""

    crystals: CrystalBatch  # NumPy arrays, [M, N] and so on
    labels: dict[str, np.ndarray]  # [M] float32, NaN where missing
    material_ids: np.ndarray  # [M] str
    split: np.ndarray  # [M] int8, index into SPLITS
    skipped: tuple[SkippedRow, ...] = ()

    def __len__(self) -> int:
        return len(self.material_ids)

    def subset(self, indices) -> "Dataset":
        """The crystals at `indices` (integers, or a Boolean mask)."""
        return Dataset(
            take(self.crystals, indices),
            {name: values[indices] for name, values in self.labels.items()},
            self.material_ids[indices],
            self.split[indices],
            self.skipped,
        )

    def select(self, split: str) -> "Dataset":
        """The crystals of one split: "train", "validation" or "test"."""
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: choose one of {SPLITS}")
        return self.subset(self.split == SPLITS.index(split))

    @cached_property
    def atom_count_histogram(self) -> np.ndarray:
        """Share of crystals with 1, 2, ..., N atoms, [N]; entry i for i + 1 atoms."""
        num_atoms = self.crystals.mask.sum(-1)
        width = self.crystals.mask.shape[1]
        return np.bincount(num_atoms, minlength=width + 1)[1:] / max(len(self), 1)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the crystals, a name for caches of what was computed from them."""
        parts = jax.tree.leaves(self.crystals)
        return hashlib.sha256(
            b"".join(np.ascontiguousarray(p).tobytes() for p in parts)
        ).hexdigest()


def load_dataset(
    source: str | os.PathLike, *, max_atoms: int = 20, cache_dir: str | None = None
) -> Dataset:
    """Loads a data set.

    Args:
      source: "mp_mini" (embedded), or the path of a CSV or npz file.
      max_atoms: CSV only: crystals with more atoms are skipped.
      cache_dir: CSV only: where the parsed crystals are kept; by default beside the
        file or, where that cannot be written, under ~/.cache/chemeleon_jax.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is no data set (says what is missing), or the embedded file
        was altered.
    """
    if source == "mp_mini":
        return _load_embedded()
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(
            f"data set {str(path)!r} not found: give 'mp_mini' (embedded), "
            "or the path of a .csv or .npz file"
        )
    if path.suffix == ".npz":
        return load_npz(path)
    return load_csv(path, max_atoms=max_atoms, cache_dir=cache_dir)


@lru_cache(maxsize=1)
def _load_embedded() -> Dataset:
    path = ASSETS / "mp_mini.npz"
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != MP_MINI_SHA256:
        raise ValueError(
            f"{path} was altered: its SHA-256 is {found}, not {MP_MINI_SHA256}. "
            "Install the package again, or rebuild it with tools/build_assets.py"
        )
    return load_npz(path)


def split_by_chemical_system(atom_types: np.ndarray) -> np.ndarray:
    """Split of each crystal, [M] int8, drawn by a hash of its chemical system.

    A chemical system is in one split only, so that no polymorph or off-stoichiometric
    neighbour of a test crystal was trained on; and a crystal's split does not depend on
    what else is in the file.
    """
    systems = [chemical_system(types) for types in atom_types]
    hashes = [hashlib.sha256(s.encode()).digest()[:8] for s in systems]
    uniform = np.array([int.from_bytes(h, "big") / 2**64 for h in hashes])
    return np.searchsorted(np.cumsum(SPLIT_SHARES)[:-1], uniform, "right").astype("i1")


# --- npz --------------------------------------------------------------------------

FRAC_UNIT = 2**16  # quantised coordinates count this part of a cell: error < 1e-5
LABEL_PREFIX = "label_"


def save_npz(path: str | os.PathLike, dataset: Dataset, *, quantise: bool) -> None:
    """Writes a data set without its padding.

    With `quantise`, fractional coordinates are rounded to 2^-16, half the size.
    """
    crystals = dataset.crystals
    frac = crystals.frac_coords[crystals.mask]
    if quantise:
        frac = (np.round(frac * FRAC_UNIT) % FRAC_UNIT).astype(np.uint16)
    np.savez_compressed(
        path,
        num_atoms=crystals.mask.sum(-1).astype(np.uint16),
        atom_types=crystals.atom_types[crystals.mask].astype(np.uint8),
        frac_coords=frac,
        lengths=crystals.lengths.astype(np.float32),
        angles=crystals.angles.astype(np.float32),
        max_atoms=crystals.mask.shape[1],
        material_ids=np.char.encode(dataset.material_ids.astype(str), "utf-8"),
        split=dataset.split.astype(np.int8),
        **{LABEL_PREFIX + k: v.astype(np.float32) for k, v in dataset.labels.items()},
    )


def load_npz(path: str | os.PathLike) -> Dataset:
    """Reads what `save_npz` wrote.

    Raises:
      ValueError: an array is missing.
    """
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    needed = {"num_atoms", "atom_types", "frac_coords", "lengths", "angles"}
    needed |= {"max_atoms", "material_ids", "split"}
    if missing := sorted(needed - arrays.keys()):
        raise ValueError(f"{path} is no data set: it lacks {', '.join(missing)}")
    crystals = empty_batch(len(arrays["num_atoms"]), int(arrays["max_atoms"]))
    crystals.mask[:] = (
        np.arange(crystals.mask.shape[1]) < arrays["num_atoms"][:, None]
    )
    frac = arrays["frac_coords"]
    if frac.dtype == np.uint16:
        frac = frac / np.float32(FRAC_UNIT)
    crystals.atom_types[crystals.mask] = arrays["atom_types"]
    crystals.frac_coords[crystals.mask] = frac
    crystals.lengths[:] = arrays["lengths"]
    crystals.angles[:] = arrays["angles"]
    labels = {
        k.removeprefix(LABEL_PREFIX): v
        for k, v in arrays.items()
        if k.startswith(LABEL_PREFIX)
    }
    ids = np.char.decode(arrays["material_ids"], "utf-8")
    return Dataset(crystals, labels, ids, arrays["split"])

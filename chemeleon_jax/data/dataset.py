"""Data sets: crystals with labels, from CSV or npz files. NumPy on the host."""

import hashlib
import logging
import os
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import jax
import numpy as np

from chemeleon_jax.data.crystals import (
    chemical_system,
    empty_batch,
    from_structures,
    take,
)
from chemeleon_jax.data.csv import SPLITS, SkippedRow, Table, read_table
from chemeleon_jax.data.readers.content import read_content, stem_of
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.errors import UserError
from chemeleon_jax.runs.files import (
    cache_folder,
    from_cache,
    read_npz,
    read_packaged,
    to_cache,
    user_path,
)

logger = logging.getLogger(__name__)

ASSETS = Path(__file__).parents[1] / "assets"
MP_MINI_SHA256 = "283c10a15f6f696d03881f8dfa4a2768c27ebdd10a2503718b2ab60a166af455"

SPLIT_SHARES = (0.90, 0.05, 0.05)

# How many crystals of MP-20 have 1, 2, ..., 20 atoms, as a share of all.
_MP20 = (
    (0.00217423, 0.02107901, 0.01982606, 0.15271226, 0.04713296)
    + (0.08464770, 0.02107901, 0.07808815, 0.03434552, 0.09728774)
    + (0.01330336, 0.09669811, 0.02155808, 0.06522701, 0.01437205)
    + (0.06703278, 0.00972877, 0.05317659, 0.01057636, 0.08995430)
)
MAX_ATOMS = 20  # N: the most that data sets here have
MP20_ATOM_COUNTS = np.array(_MP20) / sum(_MP20)  # [20], entry i for i + 1 atoms


@dataclass(frozen=True)
class Dataset:
    """Crystals with labels, on the host. M crystals, padded to N atoms."""

    crystals: CrystalBatch  # NumPy arrays, [M, N] and so on
    labels: dict[str, np.ndarray]  # [M] float32, NaN where missing
    material_ids: np.ndarray  # [M] str
    split: np.ndarray  # [M] int8, index into SPLITS
    skipped: tuple[SkippedRow, ...] = ()
    bad_labels: dict[str, str] = field(default_factory=dict)  # what is no number

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
            self.bad_labels,
        )

    def label(self, name: str, asked: str) -> np.ndarray:
        """Values of a label, [M] float32, NaN where missing.

        Args:
          name: of the label.
          asked: what asks for it, for the message: "config.targets".

        Raises:
          UserError: there is none, or one of its values is no finite number.
        """
        if name in self.bad_labels:
            raise UserError(
                f"{asked}: label {name!r}, {self.bad_labels[name]} is no finite number "
                "(write 0.5, 1e-3, or nothing where it is unknown)"
            )
        if name not in self.labels:
            there = ", ".join(sorted(self.labels)) or "none"
            raise UserError(
                f"{asked}: the data set has no label {name!r}; it has {there}"
            )
        values = self.labels[name]
        if np.isinf(values).any():
            row = int(np.flatnonzero(np.isinf(values))[0])
            raise UserError(
                f"{asked}: label {name!r} of {self.material_ids[row]} is infinite"
            )
        return values

    def select(self, split: str) -> "Dataset":
        """The crystals of one split: "train", "validation" or "test"."""
        if split not in SPLITS:
            raise UserError(f"unknown split {split!r}: choose one of {SPLITS}")
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
      source: "mp_mini" (embedded), or the path of an npz file or a table: CSV, also
        packed by gzip, bzip2, xz or ZIP, or Parquet.
      max_atoms: CSV only: crystals with more atoms are skipped.
      cache_dir: CSV only: where the parsed crystals are kept; by default beside the
        file or, where that cannot be written, under ~/.cache/chemeleon_jax.

    Raises:
      UserError: there is no such file, it is no data set (the message says what is
        missing), or the embedded file was altered.
    """
    if source == "mp_mini":
        return _load_embedded()
    path = user_path(source)
    if not path.is_file():
        raise UserError(
            f"data set {str(path)!r} not found: give 'mp_mini' (embedded), "
            "or the path of a .csv or .npz file"
        )
    if path.suffix.lower() == ".npz":
        return load_npz(path)
    return load_csv(path, max_atoms=max_atoms, cache_dir=cache_dir)


@lru_cache(maxsize=1)
def _load_embedded() -> Dataset:
    return load_npz(read_packaged(ASSETS / "mp_mini.npz", MP_MINI_SHA256))


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


# --- CSV --------------------------------------------------------------------------

CSV_READER_VERSION = 2  # raise when the reader's result changes: caches go stale


def load_csv(
    path: str | os.PathLike, *, max_atoms: int = 20, cache_dir: str | None = None
) -> Dataset:
    """Reads a Chemeleon2-style CSV: `material_id`, `cif`, numeric property columns.

    Every crystal is Niggli-reduced and rebuilt from its cell parameters. An optional
    `split` column holds "train", "validation" (or "val") or "test"; without it the
    split is drawn by chemical system. A missing `material_id` column is replaced by row
    numbers. A row that gives no crystal is skipped, counted and named in
    `Dataset.skipped` and in a warning. The cache is keyed by the file's content; for
    `max_atoms` and `cache_dir` see `load_dataset`.

    Raises:
      UserError: there is no `cif` column, or no row gives a crystal.
    """
    path = Path(path)
    content = read_content(path)
    version = f"{CSV_READER_VERSION} {max_atoms} ".encode()
    key = hashlib.sha256(version + content).hexdigest()[:16]
    cache = _cache_folder(path, cache_dir) / f"{stem_of(path)}-{key}.npz"
    dataset = from_cache(cache, load_npz)
    if dataset is None:
        dataset = _from_table(read_table(path, content, max_atoms), max_atoms)
        to_cache(cache, lambda temporary: save_npz(temporary, dataset))
    if dataset.skipped:
        first = "; ".join(
            f"row {s.row} ({s.material_id}): {s.reason}" for s in dataset.skipped[:5]
        )
        total = len(dataset) + len(dataset.skipped)
        logger.warning(
            "%s: skipped %d of %d rows: %s%s",
            *(path, len(dataset.skipped), total, first),
            "; ..." if len(dataset.skipped) > 5 else "",
        )
    return dataset


def _from_table(table: Table, max_atoms: int) -> Dataset:
    crystals = from_structures(table.structures, max_atoms)
    split = (
        split_by_chemical_system(crystals.atom_types)
        if table.split is None
        else np.array(table.split, np.int8)
    )
    ids = np.array(table.material_ids)
    return Dataset(crystals, table.labels, ids, split, table.skipped, table.bad_labels)


def _cache_folder(path: Path, cache_dir: str | None) -> Path:
    if cache_dir is not None:
        return Path(cache_dir)
    if os.access(path.parent, os.W_OK):
        return path.parent
    return cache_folder()


# --- npz --------------------------------------------------------------------------

FRAC_UNIT = 2**16  # quantised coordinates count this part of a cell: error < 1e-5
LABEL_PREFIX = "label_"


def save_npz(path, dataset: Dataset, *, quantise: bool = False) -> None:
    """Writes a data set, without its padding, to a path or open file.

    With `quantise`, fractional coordinates are rounded to 2^-16, half the size.
    """
    crystals = dataset.crystals
    frac = crystals.frac_coords[crystals.mask]
    if quantise:
        frac = (np.round(frac * FRAC_UNIT) % FRAC_UNIT).astype(np.uint16)
    labels = {LABEL_PREFIX + k: v.astype("f4") for k, v in dataset.labels.items()}
    arrays = dict(
        num_atoms=crystals.mask.sum(-1).astype(np.uint16),
        atom_types=crystals.atom_types[crystals.mask].astype(np.uint8),
        frac_coords=frac,
        lengths=crystals.lengths.astype(np.float32),
        angles=crystals.angles.astype(np.float32),
        max_atoms=crystals.mask.shape[1],
        material_ids=_encode(dataset.material_ids),
        split=dataset.split.astype(np.int8),
        skipped_row=np.array([s.row for s in dataset.skipped], np.int32),
        skipped_id=_encode([s.material_id for s in dataset.skipped]),
        skipped_reason=_encode([s.reason for s in dataset.skipped]),
        bad_labels=_encode([list(pair) for pair in dataset.bad_labels.items()]),
    )
    np.savez_compressed(path, **arrays, **labels)


def _encode(strings) -> np.ndarray:
    return np.char.encode(np.array(strings, dtype=str), "utf-8")


_ARRAYS = (
    "num_atoms atom_types frac_coords lengths angles max_atoms material_ids split "
    "skipped_row skipped_id skipped_reason"
).split()


def load_npz(source) -> Dataset:
    """Reads what `save_npz` wrote, from a path or the bytes of a file.

    Raises:
      UserError: the file is damaged, or an array is missing or does not fit.
    """
    arrays = read_npz(source, "a data set", _ARRAYS)
    try:
        return _from_arrays(arrays)
    except (ValueError, TypeError, IndexError) as error:
        raise UserError(f"{source} is not a data set: {error}") from error


def _from_arrays(arrays: dict[str, np.ndarray]) -> Dataset:
    crystals = empty_batch(len(arrays["num_atoms"]), int(arrays["max_atoms"]))
    crystals.mask[:] = np.arange(crystals.mask.shape[1]) < arrays["num_atoms"][:, None]
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
    skipped = zip(
        arrays["skipped_row"].tolist(),
        np.char.decode(arrays["skipped_id"], "utf-8").tolist(),
        np.char.decode(arrays["skipped_reason"], "utf-8").tolist(),
        strict=True,
    )
    # Files of before version 2 of the CSV reader have none.
    bad_labels = np.char.decode(arrays.get("bad_labels", np.zeros(0, "S1")), "utf-8")
    return Dataset(
        crystals,
        labels,
        np.char.decode(arrays["material_ids"], "utf-8"),
        arrays["split"],
        tuple(SkippedRow(*row) for row in skipped),
        dict(bad_labels.reshape(-1, 2).tolist()),
    )

"""Data sets on disk -> padded arrays -> batches; augmentation.

A data set is NumPy on the host. Only `augment` and `corrupt` are JAX, meant for jit.
"""

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from chemeleon_jax.data.crystals import chemical_system, empty_batch, take
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.errors import UserError
from chemeleon_jax.runs.files import read_npz, read_packaged

ASSETS = Path(__file__).parents[1] / "assets"
MP_MINI_SHA256 = "283c10a15f6f696d03881f8dfa4a2768c27ebdd10a2503718b2ab60a166af455"

SPLITS = ("train", "validation", "test")
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
      source: "mp_mini" (embedded), or the path of a CSV or npz file.
      max_atoms: CSV only: crystals with more atoms are skipped.
      cache_dir: CSV only: where the parsed crystals are kept; by default beside the
        file or, where that cannot be written, under ~/.cache/chemeleon_jax.

    Raises:
      UserError: there is no such file, it is no data set (the message says what is
        missing), or the embedded file was altered.
    """
    if source == "mp_mini":
        return _load_embedded()
    path = Path(source)
    if not path.is_file():
        raise UserError(
            f"data set {str(path)!r} not found: give 'mp_mini' (embedded), "
            "or the path of a .csv or .npz file"
        )
    if path.suffix == ".npz":
        return load_npz(path)
    from chemeleon_jax.data.csv import load_csv  # which builds on this module

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
    return Dataset(
        crystals,
        labels,
        np.char.decode(arrays["material_ids"], "utf-8"),
        arrays["split"],
        tuple(SkippedRow(*row) for row in skipped),
    )


# --- batches ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class BucketedBatches:
    """Training batches of fixed shapes, random access by step.

    Crystals of similar size share a batch, padded to the bucket's width, and a bucket's
    batches all have one shape: training compiles once per bucket. In every epoch each
    crystal comes once; the last batch is filled up with crystals drawn at random.
    """

    dataset: Dataset
    atoms_per_batch: int = 2048  # padding included, at most
    crystals_per_batch: int = 512  # at most
    seed: int = 0
    multiple_of: int = 8  # crystals per batch: a multiple of the number of devices
    bucket_multiple: int = 4  # widths are multiples of this

    def __post_init__(self):
        if not len(self.dataset):
            raise UserError("no crystals to make batches of: the data set is empty")

    @cached_property
    def batches_per_epoch(self) -> int:
        """Batches that show every crystal once."""
        return len(_deal(self, 0))

    def at(self, step: int) -> tuple[CrystalBatch, dict[str, np.ndarray]]:
        """Crystals and labels of training step `step`, a function of the step alone."""
        epoch, position = divmod(step, self.batches_per_epoch)
        width, indices = _deal(self, epoch)[position]
        batch = self.dataset.subset(indices)
        crystals = batch.crystals.replace(
            atom_types=batch.crystals.atom_types[:, :width],
            frac_coords=batch.crystals.frac_coords[:, :width],
            mask=batch.crystals.mask[:, :width],
        )
        return crystals, batch.labels


@lru_cache(maxsize=8)
def _deal(batches: BucketedBatches, epoch: int) -> list[tuple[int, np.ndarray]]:
    """One epoch's batches in order: their width and the crystals in them."""
    rng = np.random.default_rng([batches.seed, epoch])
    mask, multiple = batches.dataset.crystals.mask, batches.bucket_multiple
    widths = np.minimum(-(-mask.sum(-1) // multiple) * multiple, mask.shape[1])
    dealt, rest, size = [], np.zeros(0, int), 1
    for width in np.unique(widths).tolist():
        # What is left of a narrow bucket goes into the next, wider one.
        pool = np.concatenate([rest, rng.permutation(np.flatnonzero(widths == width))])
        per_batch = min(batches.atoms_per_batch // width, batches.crystals_per_batch)
        size = max(per_batch // batches.multiple_of, 1) * batches.multiple_of
        full = len(pool) // size * size
        dealt += [(width, part) for part in pool[:full].reshape(-1, size)]
        rest = pool[full:]
    if len(rest):
        fill = np.resize(rng.permutation(len(widths)), size - len(rest))
        dealt.append((width, np.concatenate([rest, fill])))
    return [dealt[i] for i in rng.permutation(len(dealt))]


# --- augmentation -----------------------------------------------------------------


def augment(
    key: jax.Array, crystals: CrystalBatch, *, translate=True, rotate=True
) -> tuple[CrystalBatch, jax.Array]:
    """The same crystals from another origin and in another orientation.

    Every crystal gets its own uniform translation (coordinates wrapped into [0, 1)) and
    its own uniform proper rotation.

    Returns:
      The crystals, and their lattice vectors as rows [B, 3, 3] in Å, which the rotation
      has taken out of the canonical orientation.
    """
    shift_key, rotation_key = jax.random.split(key)
    lattice = crystals.lattice
    if translate:
        shift = jax.random.uniform(shift_key, (len(lattice), 1, 3))
        crystals = _set_coords(crystals, crystals.frac_coords + shift)
    if rotate:
        lattice = lattice @ random_rotations(rotation_key, len(lattice))
    return crystals, lattice


def corrupt(
    key: jax.Array,
    crystals: CrystalBatch,
    lattice: jax.Array,
    *,
    type_rate: float = 0.0,
    jitter: float = 0.0,
) -> CrystalBatch:
    """Noisy input for a denoising VAE, whose target stays the clean crystal.

    Args:
      key: random key.
      crystals: crystals.
      lattice: [B, 3, 3] their lattice vectors in any orientation, Å.
      type_rate: probability that an atom's type is hidden (set to 0).
      jitter: standard deviation of Cartesian noise, Å.
    """
    type_key, jitter_key = jax.random.split(key)
    hidden = jax.random.bernoulli(type_key, type_rate, crystals.mask.shape)
    noise = jitter * jax.random.normal(jitter_key, crystals.frac_coords.shape)
    frac_coords = crystals.frac_coords + noise @ jnp.linalg.inv(lattice)
    return _set_coords(crystals, frac_coords).replace(
        atom_types=jnp.where(hidden, 0, crystals.atom_types)
    )


def _set_coords(crystals: CrystalBatch, frac_coords: jax.Array) -> CrystalBatch:
    wrapped = frac_coords - jnp.floor(frac_coords)
    wrapped = jnp.where(wrapped >= 1, 0.0, wrapped)  # 1 - 1e-9 rounds up to 1
    return crystals.replace(
        frac_coords=jnp.where(crystals.mask[..., None], wrapped, 0.0)
    )


def random_rotations(key: jax.Array, size: int) -> jax.Array:
    """Proper rotations drawn uniformly, [size, 3, 3], from unit quaternions."""
    q = jax.random.normal(key, (size, 4))
    w, x, y, z = (q / jnp.linalg.norm(q, axis=-1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)

"""Training batches of fixed shapes; augmentation.

`BucketedBatches` is NumPy on the host; `augment` and `corrupt` are JAX, meant for jit.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import chex
import jax
import jax.numpy as jnp
import numpy as np

from chemeleon_jax.data.dataset import Dataset
from chemeleon_jax.data.lattice import inverse
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.errors import UserError


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
        width, indices, _ = _deal(self, epoch)[position]
        batch = self.dataset.subset(indices)
        crystals = batch.crystals.replace(
            atom_types=batch.crystals.atom_types[:, :width],
            frac_coords=batch.crystals.frac_coords[:, :width],
            mask=batch.crystals.mask[:, :width],
        )
        return crystals, batch.labels

    def counted(self, step: int) -> np.ndarray:
        """Which crystals of `at(step)` are not there to fill it up, [B] bool."""
        epoch, position = divmod(step, self.batches_per_epoch)
        _, indices, new = _deal(self, epoch)[position]
        return np.arange(len(indices)) < new


@lru_cache(maxsize=8)
def _deal(batches: BucketedBatches, epoch: int) -> list[tuple[int, np.ndarray, int]]:
    """One epoch's batches in order: their width, and the crystals in them.

    Then how many of these, from the first, are not there to fill the batch up.
    """
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
        dealt += [(width, part, size) for part in pool[:full].reshape(-1, size)]
        rest = pool[full:]
    if len(rest):
        fill = np.resize(rng.permutation(len(widths)), size - len(rest))
        dealt.append((width, np.concatenate([rest, fill]), len(rest)))
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
    crystals.assert_shapes()
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

    An atom's type is hidden (set to 0) with probability `type_rate`; `jitter` is the
    standard deviation of Cartesian noise, Å. The lattice vectors [B, 3, 3], Å, may have
    any orientation.
    """
    crystals.assert_shapes()
    chex.assert_shape(lattice, (len(crystals.mask), 3, 3))
    type_key, jitter_key = jax.random.split(key)
    hidden = jax.random.bernoulli(type_key, type_rate, crystals.mask.shape)
    noise = jitter * jax.random.normal(jitter_key, crystals.frac_coords.shape)
    frac_coords = crystals.frac_coords + noise @ inverse(lattice)
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

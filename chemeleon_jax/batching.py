"""Training batches: crystals of like size together, any step at hand; augmentation."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from chemeleon_jax.crystals import take
from chemeleon_jax.data import Dataset
from chemeleon_jax.types import CrystalBatch

BUCKET_WIDTH = 4  # padded sizes are multiples of it, so that few shapes are compiled


class BucketedBatches:
    """The batches of a training, addressed by step: epoch after epoch, shuffled.

    Crystals are padded to the next multiple of 4 atoms and share a batch with crystals
    of that size; batches hold about the same number of padded atoms. A bucket's last
    batch is filled up from its own crystals, so shapes never vary.
    """

    def __init__(
        self, dataset: Dataset, atoms_per_batch: int, *, seed: int, multiple_of: int = 1
    ):
        """Plan the buckets.

        Args:
          dataset: M crystals.
          atoms_per_batch: padded atoms per batch, about.
          seed: of the shuffles.
          multiple_of: what the number of crystals in a batch is to be divisible by.
        """
        self._dataset = dataset
        self._seed = seed
        num_atoms = dataset.crystals.mask.sum(-1)
        padded = -(-num_atoms // BUCKET_WIDTH) * BUCKET_WIDTH
        self._buckets = []  # padded atoms, crystals per batch, members
        for width in np.unique(padded):
            crystals = max(atoms_per_batch // width // multiple_of, 1) * multiple_of
            self._buckets.append((width, crystals, np.flatnonzero(padded == width)))
        self.batches_per_epoch = sum(
            -(-len(members) // crystals) for _, crystals, members in self._buckets
        )
        self._epoch = lru_cache(maxsize=2)(self._plan_epoch)

    def at(self, step: int) -> tuple[CrystalBatch, dict[str, np.ndarray]]:
        """The batch of a step: crystals [B, N] and labels {name: [B]}."""
        epoch, i = divmod(step, self.batches_per_epoch)
        width, members = self._epoch(epoch)[i]
        crystals = take(self._dataset.crystals, members)
        crystals = crystals.replace(
            atom_types=crystals.atom_types[:, :width],
            frac_coords=crystals.frac_coords[:, :width],
            mask=crystals.mask[:, :width],
        )
        return crystals, {k: v[members] for k, v in self._dataset.labels.items()}

    def _plan_epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        rng = np.random.default_rng((self._seed, epoch))
        plan = []
        for width, crystals, members in self._buckets:
            count = -(-len(members) // crystals) * crystals
            order = np.resize(rng.permutation(members), count)
            plan += [(width, chunk) for chunk in order.reshape(-1, crystals)]
        return [plan[i] for i in rng.permutation(len(plan))]


def augment(key: jax.Array, crystals: CrystalBatch) -> tuple[CrystalBatch, jax.Array]:
    """The same crystals, otherwise placed: each translated and rotated at random.

    Args:
      key: of the draw.
      crystals: B crystals.

    Returns:
      Crystals with coordinates shifted by a uniform vector and wrapped into [0, 1), and
      lattice vectors [B, 3, 3] turned by a rotation uniform over SO(3).
    """
    shift_key, rotation_key = jax.random.split(key)
    size = len(crystals.lengths)
    shift = jax.random.uniform(shift_key, (size, 1, 3))
    frac_coords = (crystals.frac_coords + shift) % 1.0 * crystals.mask[..., None]
    quaternion = jax.random.normal(rotation_key, (size, 4))
    lattice = crystals.lattice @ rotation_matrix(quaternion)
    return crystals.replace(frac_coords=frac_coords), lattice


def rotation_matrix(quaternion: jax.Array) -> jax.Array:
    """Rotation matrices of quaternions [..., 4] of any length -> [..., 3, 3]."""
    norm = jnp.linalg.norm(quaternion, axis=-1, keepdims=True)
    w, x, y, z = jnp.moveaxis(quaternion / norm, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)

"""The best crystals of earlier iterations, which are trained on again."""

from collections import Counter, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from chemeleon_jax.data.crystals import formula_keys
from chemeleon_jax.data.types import Trajectory
from chemeleon_jax.devices.sharding import CRYSTALS, device_order, over_devices
from chemeleon_jax.errors import UserError
from chemeleon_jax.rl.sampler import crystal_keys
from chemeleon_jax.runs.iteration_files import read_last

# What of an iteration's file it needs.
FIELDS = ("latents", "mask", "atom_types", "total", "advantage", "valid", "unique")


class Replayed(NamedTuple):
    """Crystals that are trained on again."""

    latents: jax.Array  # [R, N, L]  clean
    mask: jax.Array  # [R, N]
    advantage: jax.Array  # [R]
    index: jax.Array  # [R]  numbers of the crystals, which their noise depends on


class Replay:
    """The best crystals of a run's last iterations, on the host.

    Of each iteration those that are valid, unique and better than their group, a share
    of all at most, by their total reward; of one formula the newest few. They are kept
    as the latents that were decoded: the encoder's of the same crystals are others, and
    to train on those costs what a model knows of geometry.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        crystals: int,
        iterations: int,
        share: float,
        per_formula: int,
    ):
        """Of nothing yet; `shape`: of latents, [N, L]; the rest: `config.rl.replay`."""
        self._shape = shape
        self._count, self._share, self._per_formula = crystals, share, per_formula
        self._kept: deque[dict[str, np.ndarray]] = deque(maxlen=iterations)

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Adds an iteration's best, and forgets the oldest.

        `arrays` has `FIELDS`, [B, ...]: what `read_iteration` gives.
        """
        good = arrays["valid"] & arrays["unique"] & (arrays["advantage"] > 0)
        best = np.argsort(-arrays["total"], kind="stable")
        best = best[good[best]][: round(self._share * len(good))]
        self._kept.append({name: arrays[name][best] for name in FIELDS})

    def draw(self, key: jax.Array) -> Replayed:
        """Some of them, each at most once as long as there are enough; NumPy.

        Which ones depends on the key and on what is kept. Where nothing is, rows
        without an advantage fill.
        """
        index, rows = np.arange(self._count), self._allowed()
        if not len(rows):
            latents = np.zeros((self._count, *self._shape), np.float32)
            mask, advantage = np.ones(latents.shape[:2], bool), latents[:, 0, 0]
            return Replayed(latents, mask, advantage, index)
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        picked = np.resize(rng.permutation(rows), self._count)
        newest_first = [*reversed(self._kept)]
        latents, mask, advantage = (
            np.concatenate([kept[name] for kept in newest_first])[picked]
            for name in ("latents", "mask", "advantage")
        )
        return Replayed(latents, mask, advantage, index)

    def _allowed(self) -> np.ndarray:
        """Rows of all that is kept, newest first, of one formula the first few."""
        seen: Counter = Counter()
        rows, start = [], 0
        for kept in reversed(self._kept):
            types = np.where(kept["mask"], kept["atom_types"], 0)
            for i, formula in enumerate(formula_keys(types)):
                seen[formula] += 1
                if seen[formula] <= self._per_formula:
                    rows.append(start + i)
            start += len(types)
        return np.array(rows, int)


def load_replay(
    workdir: Path,
    settings: Any,
    start: int,
    *,
    shape: tuple[int, int],
    conditional: bool,
) -> Replay | None:
    """What a run that continues at iteration `start` had kept, from its `crystals/`.

    Args:
      workdir: of the run.
      settings: `config.rl.replay`; None is returned where it asks for no crystal.
      start: 0 for a run that begins.
      shape: of latents, [N, L].
      conditional: the model takes conditions, and what a crystal was asked for is not
        in these files.

    Raises:
      UserError: a file that counts is missing, or cannot be read; the model is
        conditional.
    """
    if not settings.crystals:
        return None
    asked = f"rl.replay.crystals = {settings.crystals}"
    if conditional:
        raise UserError(
            f"config.{asked}: must be 0 where the model of config.ldm_ckpt_path takes "
            "conditions"
        )
    replay = Replay(shape, **settings)
    for arrays in read_last(workdir, start, settings.iterations, FIELDS, asked):
        replay.add(arrays)
    return replay


def to_trajectory(replayed: Replayed, key: jax.Array) -> Trajectory:
    """As if a policy without conditions had just made them, without their steps."""
    latents = replayed.latents * replayed.mask[..., None]
    keys = crystal_keys(key, replayed.index)
    return Trajectory(None, replayed.mask, latents=latents, keys=keys)


def join_minibatches(first: Any, second: Any, num_minibatches: int) -> Any:
    """Arrays [B + R, ...] of [B, ...] and [R, ...]: of each minibatch both shares.

    Under a mesh each device joins its own rows, see `sharding.device_order`.
    """

    def join(x, y):
        parts = (v.reshape(num_minibatches, -1, *v.shape[1:]) for v in (x, y))
        return jnp.concatenate([*parts], 1).reshape(-1, *x.shape[1:])

    def own(first, second):
        return jax.tree.map(join, first, second)

    return over_devices(own, in_specs=CRYSTALS, out_specs=CRYSTALS)(first, second)


def gather_latents(
    trajectory: Trajectory, num_minibatches: int, mesh: Mesh
) -> np.ndarray:
    """A trajectory's latents in the order of its crystals, on every process."""
    back = np.argsort(device_order(len(trajectory.mask), num_minibatches, mesh.size))
    everywhere = jax.jit(lambda x: x[back], out_shardings=NamedSharding(mesh, P()))
    return np.asarray(everywhere(trajectory.latents))

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
from chemeleon_jax.rl.sampler import Condition, crystal_keys
from chemeleon_jax.runs.iteration_files import read_last

# What of an iteration's file it needs.
FIELDS = ("latents", "mask", "atom_types", "total", "advantage", "valid", "unique")
_ASKED = "asked_"


class Replayed(NamedTuple):
    """Crystals that are trained on again."""

    latents: jax.Array  # [R, N, L]  clean
    mask: jax.Array  # [R, N]
    advantage: jax.Array  # [R]
    index: jax.Array  # [R]  numbers of the crystals, which their noise depends on
    condition: Condition = None  # {name: [R, in]}  what they were asked for


class Replay:
    """The best crystals of a run's last iterations, on the host.

    Of each iteration those that are valid, unique and better than their group, a share
    of all at most, by their total reward; of one formula the best few, of equal ones
    the newest. They are kept as the latents that were decoded: the encoder's of the
    same crystals are others, and to train on those costs what a model knows of
    geometry.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        condition: Condition = None,
        *,
        crystals: int,
        iterations: int,
        share: float,
        per_formula: int,
    ):
        """Of nothing yet; the rest: `config.rl.replay`.

        Args:
          shape: of latents, [N, L].
          condition: {name: [any, in]}, of which the shapes count.
          crystals: R.
          iterations: that are looked back.
          share: of an iteration's crystals.
          per_formula: of all that are kept.
        """
        self._count, self._share, self._per_formula = crystals, share, per_formula
        self._kept: deque[dict[str, np.ndarray]] = deque(maxlen=iterations)
        asked = {
            k: x[:1].repeat(crystals, 0) for k, x in asked_arrays(condition).items()
        }
        self.fields = (*FIELDS, *asked)  # of an iteration's file, that it needs
        self._nothing = asked | {
            "latents": np.zeros((crystals, *shape), np.float32),
            "mask": np.ones((crystals, shape[0]), bool),
            "advantage": np.zeros(crystals, np.float32),
        }

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Adds an iteration's best, and forgets the oldest.

        `arrays` has `FIELDS` and `asked_arrays`, [B, ...]: what `read_iteration` gives.
        """
        good = arrays["valid"] & arrays["unique"] & (arrays["advantage"] > 0)
        best = np.argsort(-arrays["total"], kind="stable")
        best = best[good[best]][: round(self._share * len(good))]
        self._kept.append({name: arrays[name][best] for name in self.fields})

    def draw(self, key: jax.Array) -> Replayed:
        """Some of them, each at most once as long as there are enough; NumPy.

        Which ones depends on the key and on what is kept. Where nothing is, rows
        without an advantage fill.
        """
        arrays, rows = self._nothing, self._allowed()
        if len(rows):
            rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
            picked = np.resize(rng.permutation(rows), self._count)
            newest_first = [*reversed(self._kept)]
            arrays = {
                name: np.concatenate([kept[name] for kept in newest_first])[picked]
                for name in arrays
            }
        asked = {
            name.removeprefix(_ASKED): array
            for name, array in arrays.items()
            if name.startswith(_ASKED)
        }
        latents, mask, advantage = (arrays[k] for k in ("latents", "mask", "advantage"))
        index = np.arange(self._count)
        return Replayed(latents, mask, advantage, index, asked or None)

    def _allowed(self) -> np.ndarray:
        """Rows of all that is kept, newest first: of one formula the best few."""
        formulas, totals = [], []
        for kept in reversed(self._kept):
            types = np.where(kept["mask"], kept["atom_types"], 0)
            formulas.extend(formula_keys(types))
            totals.extend(kept["total"])
        seen: Counter = Counter()
        rows = []
        for row in np.argsort(-np.array(totals), kind="stable"):
            seen[formulas[row]] += 1
            if seen[formulas[row]] <= self._per_formula:
                rows.append(row)
        return np.array(rows, int)


def asked_arrays(condition: Condition) -> dict[str, np.ndarray]:
    """What crystals were asked for, as arrays of an iteration's file."""
    return {_ASKED + name: np.asarray(x) for name, x in (condition or {}).items()}


def load_replay(
    workdir: Path,
    settings: Any,
    start: int,
    *,
    shape: tuple[int, int],
    condition: Condition,
) -> Replay | None:
    """What a run that continues at iteration `start` had kept, from its `crystals/`.

    Args:
      workdir: of the run.
      settings: `config.rl.replay`; None is returned where it asks for no crystal.
      start: 0 for a run that begins.
      shape: of latents, [N, L].
      condition: what crystals are asked for, {name: [any, in]}.

    Raises:
      UserError: a file that counts is missing, or cannot be read.
    """
    if not settings.crystals:
        return None
    asked = f"rl.replay.crystals = {settings.crystals}"
    replay = Replay(shape, condition, **settings)
    for arrays in read_last(workdir, start, settings.iterations, replay.fields, asked):
        replay.add(arrays)
    return replay


def to_trajectory(replayed: Replayed, key: jax.Array) -> Trajectory:
    """As if a policy had just made them, without their steps."""
    latents = replayed.latents * replayed.mask[..., None]
    keys = crystal_keys(key, replayed.index)
    return Trajectory(None, replayed.mask, replayed.condition, latents, keys)


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

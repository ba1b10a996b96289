"""The best crystals of earlier iterations, which are trained on again."""

from collections import Counter, deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from chemeleon_jax.data.crystals import crystals_of, formula_keys, take
from chemeleon_jax.data.types import CrystalBatch, Trajectory
from chemeleon_jax.devices.sharding import CRYSTALS, over_devices
from chemeleon_jax.errors import UserError
from chemeleon_jax.models.generator import Generator
from chemeleon_jax.rl.sampler import crystal_keys
from chemeleon_jax.runs.iteration_files import RELAXED, iteration_file, read_iteration


class Replayed(NamedTuple):
    """Crystals that are trained on again."""

    crystals: CrystalBatch  # R
    advantage: jax.Array  # [R]
    index: jax.Array  # [R]  numbers of the crystals, which their noise depends on
    key: jax.Array  # of their noise


class Replay:
    """The best crystals of a run's last iterations, on the host.

    Of each iteration those that are valid, unique and better than their group, a share
    of all at most, by their total reward; of one formula the newest few. As they relax
    where the reward sees them so: the policy learns to put atoms where they stay.
    """

    def __init__(
        self, *, crystals: int, iterations: int, share: float, per_formula: int
    ):
        """Of nothing yet; arguments as in `config.rl.replay`."""
        self._count, self._share, self._per_formula = crystals, share, per_formula
        self._kept: deque[tuple[CrystalBatch, np.ndarray]] = deque(maxlen=iterations)

    def add(self, crystals: CrystalBatch, rewards: Any) -> None:
        """Adds an iteration's best (NumPy), and forgets the oldest.

        `rewards` has the fields `total`, `advantage`, `valid` and `unique`, [B].
        """
        good = rewards.valid & rewards.unique & (rewards.advantage > 0)
        best = np.argsort(-rewards.total, kind="stable")
        best = best[good[best]][: round(self._share * len(good))]
        self._kept.append((take(crystals, best), rewards.advantage[best]))

    def draw(self, key: jax.Array, otherwise: CrystalBatch) -> Replayed:
        """Some of them, each at most once as long as there are enough; NumPy.

        Which ones depends on the key and on what is kept. Where nothing is, they are
        the first of `otherwise`, and have no advantage.
        """
        batches = [*reversed(self._kept)]  # newest first
        index, rows = np.arange(self._count), self._allowed(batches)
        if not len(rows):
            crystals = take(otherwise, index % len(otherwise.mask))
            return Replayed(crystals, np.zeros(self._count, np.float32), index, key)
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        picked = np.resize(rng.permutation(rows), self._count)
        crystals = jax.tree.map(lambda *x: np.concatenate(x), *(b for b, _ in batches))
        advantage = np.concatenate([a for _, a in batches])
        return Replayed(take(crystals, picked), advantage[picked], index, key)

    def _allowed(self, batches) -> np.ndarray:
        """Rows of all that is kept, of one formula the first few."""
        seen: Counter = Counter()
        rows, start = [], 0
        for crystals, _ in batches:
            types = np.where(crystals.mask, crystals.atom_types, 0)
            for i, key in enumerate(formula_keys(types)):
                seen[key] += 1
                if seen[key] <= self._per_formula:
                    rows.append(start + i)
            start += len(types)
        return np.array(rows, int)


def load_replay(
    workdir: Path, settings: Any, start: int, *, relaxed: bool, conditional: bool
) -> Replay:
    """What a run that continues at iteration `start` had kept, from its `crystals/`.

    Args:
      workdir: of the run.
      settings: `config.rl.replay`.
      start: 0 for a run that begins.
      relaxed: crystals count as they relaxed.
      conditional: the model takes conditions, and what a crystal was asked for is not
        in these files.

    Raises:
      UserError: a file that counts is missing, or cannot be read; the model is
        conditional.
    """
    replay = Replay(**settings)
    if not settings.crystals:
        return replay
    if conditional:
        raise UserError(
            f"config.rl.replay.crystals = {settings.crystals}: must be 0 where the "
            "model of config.ldm_ckpt_path takes conditions"
        )
    names = [f"relaxed_{k}" for k in RELAXED] if relaxed else []
    for iteration in range(max(start - settings.iterations, 0), start):
        try:
            scores = "advantage", "valid", "unique"
            arrays = read_iteration(
                iteration_file(workdir, iteration), [*scores, *names]
            )
        except UserError as error:
            raise UserError(
                f"{error}, and config.rl.replay.crystals = {settings.crystals} needs "
                "it; 0 does without"
            ) from error
        if relaxed:
            arrays |= {k: arrays[f"relaxed_{k}"] for k in RELAXED}
        rewards = SimpleNamespace(**{k: arrays[k] for k in ("total", *scores)})
        replay.add(crystals_of(arrays), rewards)
    return replay


def to_trajectory(replayed: Replayed, model: Generator) -> Trajectory:
    """As if a policy without conditions had made the crystals, without their steps.

    Their latents are the means of the VAE's posterior.
    """
    mask = replayed.crystals.mask
    encode = over_devices(model.encode, in_specs=CRYSTALS, out_specs=CRYSTALS)
    latents = encode(replayed.crystals) * mask[..., None]
    keys = crystal_keys(replayed.key, replayed.index)
    return Trajectory(None, mask, latents=latents, keys=keys)


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

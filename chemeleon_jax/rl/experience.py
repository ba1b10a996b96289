"""What a policy learns from: crystals that it makes, and what they are worth."""

import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from chemeleon_jax.data.types import CrystalBatch, Trajectory
from chemeleon_jax.devices.sharding import (
    device_order,
    everywhere,
    over_devices,
    replicate,
)
from chemeleon_jax.models.buckets import choose_parts
from chemeleon_jax.models.diffusion import make_schedule
from chemeleon_jax.models.generator import Generator
from chemeleon_jax.rewards import Reward, RewardOutput, compute_rewards
from chemeleon_jax.rewards.config import active_components
from chemeleon_jax.rewards.recent import RecentCrystals
from chemeleon_jax.rl.objective import OWN_TRAJECTORY
from chemeleon_jax.rl.sampler import crystal_keys, sample_group
from chemeleon_jax.rl.timesteps import stochastic_at

# Of matrix products, as JAX names it; sums are float32 in each. The default is what is
# fast on the device: float32 on a CPU, TF32 on a GPU.
PRECISIONS = {"default": None, "float32": "float32", "bfloat16": "BF16_BF16_F32"}


class Batch(NamedTuple):
    """Crystals that were sampled and scored."""

    crystals: CrystalBatch  # on the host
    trajectory: Trajectory  # on the mesh, in `crystal_order`
    rewards: RewardOutput  # on the host
    seconds: dict[str, float]


class Prompts(NamedTuple):
    """What B crystals start from."""

    keys: jax.Array  # [B]
    num_atoms: jax.Array  # [B]
    condition: dict[str, jax.Array] | None  # {name: [B, in]}


def take_prompts(prompts: Prompts, rows) -> Prompts:
    """Those of some crystals."""
    return jax.tree.map(lambda x: x[rows], prompts)


def batch_size(config) -> int:
    """B, crystals of an iteration."""
    return config.data.batch_size * config.rl.num_group_samples


def crystal_order(config, mesh: Mesh) -> np.ndarray:
    """Which crystal is in each row of what is on the mesh, [B]."""
    parts = max(config.rl.num_inner_batch, config.rl.rollout_parts)
    return device_order(batch_size(config), parts, mesh.size)


def matmul_precision(config) -> contextlib.AbstractContextManager:
    """Inside, rollout and update are compiled with the config's precision."""
    return jax.default_matmul_precision(PRECISIONS[config.precision])


def sampling_settings(config, model: Generator) -> dict[str, Any]:
    """What rollout and update have in common, the model on the mesh."""
    name, steps = config.sampling.sampler, config.sampling.sampling_steps
    return {
        "model": model,
        "schedule": make_schedule(name, steps),
        "eta": config.sampling.eta,
        "cfg_scale": model.guidance(config.sampling.cfg_scale),
    }


class Rollout:
    """Sampling, compiled: crystals on the host, their trajectory on the mesh."""

    def __init__(self, config, sampling: dict, mesh: Mesh):
        """`sampling`: see `sampling_settings`."""
        self._config, self._sampling, self._mesh = config, sampling, mesh
        self._size = batch_size(config) // config.rl.rollout_parts
        steps_in_part = max(config.rl.num_inner_batch // config.rl.rollout_parts, 1)
        on_mesh = partial(jax.tree.map, partial(NamedSharding, mesh))
        self._sample = jax.jit(
            partial(
                sample_in_order,
                order=device_order(self._size, steps_in_part, mesh.size),
                parts=choose_parts(
                    self._size, sampling["model"], config.rl.memory_budget, mesh.size
                ),
            ),
            out_shardings=on_mesh((P(), OWN_TRAJECTORY)),
        )
        self._join = jax.jit(join_trajectories, out_shardings=on_mesh(OWN_TRAJECTORY))

    def __call__(
        self,
        params,
        prompts: Prompts,
        *,
        window: jax.Array | None = None,
        see: Callable[[CrystalBatch], Any] = lambda crystals: None,
    ) -> tuple[CrystalBatch, Trajectory, list]:
        """Samples crystals, part after part.

        Args:
          params: of the policy.
          prompts: of B crystals.
          window: the steps that have noise; all by default.
          see: what the host does with a part's crystals while the next is sampled.

        Returns:
          Crystals; their trajectory; what `see` returned, by part.
        """
        settings = self._sampling
        if window is not None:
            schedule = stochastic_at(settings["schedule"], window)
            settings = settings | {"schedule": schedule}
        with jax.set_mesh(self._mesh), matmul_precision(self._config):
            # Calls return before the device is done.
            sampled = [
                self._sample(params, take_prompts(prompts, rows), **settings)
                for rows in self._rows()
            ]
            trajectory = self._join([trajectory for _, trajectory in sampled])
        parts, seen = [], []
        for crystals, _ in sampled:
            parts.append(jax.device_get(crystals))
            seen.append(see(parts[-1]))
        crystals = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        return crystals, trajectory, seen

    def trajectory_shapes(self, params, prompts: Prompts) -> Trajectory:
        """Shapes and places of what a call would record. Nothing is sampled."""
        with jax.set_mesh(self._mesh), matmul_precision(self._config):
            first = take_prompts(prompts, self._rows()[0])
            _, part = self._sample.trace(params, first, **self._sampling).out_info
            return self._join.trace([part] * len(self._rows())).out_info

    def _rows(self) -> list[slice]:
        starts = range(0, batch_size(self._config), self._size)
        return [slice(start, start + self._size) for start in starts]


def join_trajectories(parts: list[Trajectory]) -> Trajectory:
    """One trajectory of all parts' crystals; each device joins its own."""

    def join(parts):
        def along(axis, trees):
            return jax.tree.map(lambda *x: jnp.concatenate(x, axis), *trees)

        steps = along(1, [part.steps.replace(index=None) for part in parts])
        rest = along(0, [part.replace(steps=None) for part in parts])
        return rest.replace(steps=steps.replace(index=parts[0].steps.index))

    own = [OWN_TRAJECTORY] * len(parts)
    return over_devices(join, in_specs=(own,), out_specs=OWN_TRAJECTORY)(parts)


def sample_in_order(
    params, prompts: Prompts, *, order: np.ndarray, **settings
) -> tuple[CrystalBatch, Trajectory]:
    """Crystals in their own order, on every device; trajectories as devices hold them.

    Args:
      params: of the policy.
      prompts: of B crystals.
      order: see `sharding.device_order`.
      **settings: of `sample_group`.
    """
    keys, num_atoms, condition = take_prompts(prompts, order)
    crystals, trajectory = sample_group(
        params, keys, num_atoms, group_size=1, condition=condition, **settings
    )
    back = np.argsort(order)
    return jax.tree.map(lambda x: x[back], everywhere(crystals)), trajectory


def draw_groups(config, draw_prompts: Callable, key: jax.Array) -> Prompts:
    """What an iteration's crystals start from; those of a group have the same.

    Groups are laid out here and go in as groups of one, so that validation, where every
    crystal has an atom count of its own, is the same program.
    """
    drawn = draw_prompts(jax.random.fold_in(key, 0), config.data.batch_size)
    num_atoms, condition = jax.tree.map(
        lambda x: jnp.repeat(x, config.rl.num_group_samples, 0), drawn
    )
    keys = crystal_keys(jax.random.fold_in(key, 1), jnp.arange(len(num_atoms)))
    return Prompts(keys, num_atoms, condition)


def make_score(reward: Reward, mesh: Mesh, **settings) -> Callable[..., RewardOutput]:
    """`compute_rewards` of NumPy crystals by all devices; all processes call it."""
    score = jax.jit(partial(compute_rewards, **settings))
    reward = reward.replace(params=replicate(reward.params, mesh))

    def call(crystals: CrystalBatch, recent: CrystalBatch | None = None):
        with jax.set_mesh(mesh):
            return jax.device_get(score(crystals, reward=reward, recent=recent))

    return call


def make_sample_and_score(
    config, reward: Reward, rollout: Rollout, recent: RecentCrystals, mesh: Mesh
) -> Callable[..., Batch]:
    """Compiles the first half of an iteration, on the devices and the host.

    `recent` takes in the crystals of each call.
    """
    group_size = config.rl.num_group_samples
    score = make_score(
        reward,
        mesh,
        group_size=group_size if config.rl.group_reward_norm else batch_size(config),
        component_group_size=group_size if config.reward.normalize_in_group else None,
        with_energies="energy" in active_components(config),
    )

    def sample_and_score(params, prompts: Prompts, window=None) -> Batch:
        began = time.perf_counter()
        crystals, trajectory, _ = rollout(params, prompts, window=window)
        sampled = time.perf_counter()
        rewards = score(crystals, recent.crystals)
        recent.add(crystals)
        seconds = {
            "sample": sampled - began,
            "reward": time.perf_counter() - sampled,
        }
        return Batch(crystals, trajectory, rewards, seconds)

    return sample_and_score


def make_validate(
    config, draw_prompts: Callable, reward: Reward, rollout: Rollout, mesh: Mesh
) -> Callable[[Any], tuple[CrystalBatch, RewardOutput]]:
    """Compiles validation: `validation_samples` crystals that nobody trains on.

    They always come from the same noise and are scored as one set. Their score depends
    neither on the training batch nor on how many are sampled at once.
    """
    count, size = config.validation_samples, batch_size(config)
    key = jax.random.key(config.seed + 1)
    num_atoms, condition = draw_prompts(jax.random.fold_in(key, 0), count)
    keys = crystal_keys(jax.random.fold_in(key, 1), jnp.arange(count))
    prompts = Prompts(keys, num_atoms, condition)
    score = make_score(reward, mesh, group_size=count, with_energies=True)
    # The last batch is filled up with crystals of the first.
    batches = [np.arange(i, i + size) % count for i in range(0, count, size)]

    def validate(params):
        found = [rollout(params, take_prompts(prompts, rows))[0] for rows in batches]
        crystals = jax.tree.map(lambda *x: np.concatenate(x)[:count], *found)
        return crystals, score(crystals)

    return validate

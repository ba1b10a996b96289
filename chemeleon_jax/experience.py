"""What a policy learns from: crystals that it makes, and what they are worth."""

import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from chemeleon_jax.buckets import choose_parts
from chemeleon_jax.config import active_components
from chemeleon_jax.diffusion import make_schedule
from chemeleon_jax.models.generator import Generator
from chemeleon_jax.objective import OWN_TRAJECTORY
from chemeleon_jax.rewards import Reward, RewardOutput
from chemeleon_jax.rewards.processes import make_score
from chemeleon_jax.rollout import crystal_keys, sample_group
from chemeleon_jax.sharding import device_order, everywhere
from chemeleon_jax.step_choice import stochastic_at
from chemeleon_jax.types import CrystalBatch, Trajectory

# Of matrix products, as JAX names it; sums are float32 in each. The default is what is
# fast on the device: float32 on a CPU, TF32 on a GPU.
PRECISIONS = {"default": None, "float32": "float32", "bfloat16": "BF16_BF16_F32"}


class Batch(NamedTuple):
    """Crystals that were sampled and scored."""

    crystals: CrystalBatch  # on the host
    trajectory: Trajectory  # on the mesh, in `sharding.device_order`
    rewards: RewardOutput  # on the host
    seconds: dict[str, float]


def batch_size(config) -> int:
    """B, crystals of an iteration."""
    return config.data.batch_size * config.rl.num_group_samples


def matmul_precision(config) -> contextlib.AbstractContextManager:
    """Inside, rollout and update are compiled with the config's precision."""
    return jax.default_matmul_precision(PRECISIONS[config.precision])


def guidance(scale: float, model: Generator) -> float | None:
    """The guidance scale, or None where guidance would change nothing and cost half."""
    return scale if model.condition and scale != 1.0 else None


def sampling_settings(config, model: Generator) -> dict[str, Any]:
    """What rollout and update have in common, the model on the mesh."""
    name, steps = config.sampling.sampler, config.sampling.sampling_steps
    return {
        "model": model,
        "schedule": make_schedule(name, steps),
        "eta": config.sampling.eta,
        "cfg_scale": guidance(config.sampling.cfg_scale, model),
    }


class Rollout:
    """Sampling, compiled: crystals on the host, their trajectory on the mesh."""

    def __init__(self, config, sampling: dict, mesh: Mesh):
        """`sampling`: see `sampling_settings`."""
        self._config, self._sampling, self._mesh = config, sampling, mesh
        size = batch_size(config)
        self._compiled = jax.jit(
            functools.partial(
                sample_in_order,
                order=device_order(size, config.rl.num_inner_batch, mesh.size),
                parts=choose_parts(
                    size, sampling["model"], config.rl.memory_budget, mesh.size
                ),
            ),
            out_shardings=jax.tree.map(
                lambda spec: NamedSharding(mesh, spec), (P(), OWN_TRAJECTORY)
            ),
        )

    def __call__(
        self, params, keys, num_atoms, condition, window=None
    ) -> tuple[CrystalBatch, Trajectory]:
        """Samples crystals [B]; noise only in the steps of `window`, by default all."""
        settings = self._sampling
        if window is not None:
            schedule = stochastic_at(settings["schedule"], window)
            settings = settings | {"schedule": schedule}
        with jax.set_mesh(self._mesh), matmul_precision(self._config):
            crystals, trajectory = self._compiled(
                params, keys, num_atoms, condition=condition, **settings
            )
        return jax.device_get(crystals), trajectory

    def trajectory_shapes(self, params, draw_prompts: Callable) -> Trajectory:
        """Shapes and places of what will be recorded. Nothing is sampled."""
        key, size = jax.random.key(0), batch_size(self._config)
        num_atoms, condition = draw_prompts(key, size)
        keys = crystal_keys(key, jnp.arange(size))
        with jax.set_mesh(self._mesh), matmul_precision(self._config):
            traced = self._compiled.trace(
                params, keys, num_atoms, condition=condition, **self._sampling
            )
        return traced.out_info[1]


def sample_in_order(
    params, keys, num_atoms, *, condition, order: np.ndarray, **settings
) -> tuple[CrystalBatch, Trajectory]:
    """Crystals in their own order, on every device; trajectories as devices hold them.

    Args:
      params: of the policy.
      keys: [B].
      num_atoms: [B].
      condition: {name: [B, in]} or None.
      order: see `sharding.device_order`.
      **settings: of `sample_group`.
    """
    keys, num_atoms, condition = jax.tree.map(
        lambda x: x[order], (keys, num_atoms, condition)
    )
    crystals, trajectory = sample_group(
        params, keys, num_atoms, group_size=1, condition=condition, **settings
    )
    back = np.argsort(order)
    return jax.tree.map(lambda x: x[back], everywhere(crystals)), trajectory


def make_sample_and_score(
    config, draw_prompts: Callable, reward: Reward, rollout: Rollout
) -> Callable[..., Batch]:
    """Compiles the first half of an iteration, on the devices and the host."""
    num_groups, group_size = config.data.batch_size, config.rl.num_group_samples
    score = make_score(
        reward,
        group_size=group_size if config.rl.group_reward_norm else batch_size(config),
        component_group_size=group_size if config.reward.normalize_in_group else None,
        with_energies="energy" in active_components(config),
    )

    def sample_and_score(params, key, window=None):
        began = time.perf_counter()
        prompts = draw_prompts(jax.random.fold_in(key, 0), num_groups)
        # Groups are laid out here and go in as groups of one, so that validation,
        # where every crystal has an atom count of its own, is the same program.
        num_atoms, condition = jax.tree.map(
            lambda x: jnp.repeat(x, group_size, 0), prompts
        )
        keys = crystal_keys(jax.random.fold_in(key, 1), jnp.arange(len(num_atoms)))
        crystals, trajectory = rollout(params, keys, num_atoms, condition, window)
        sampled = time.perf_counter()
        rewards = score(crystals)
        seconds = {
            "sample": sampled - began,
            "reward": time.perf_counter() - sampled,
        }
        return Batch(crystals, trajectory, rewards, seconds)

    return sample_and_score


def make_validate(
    config, draw_prompts: Callable, reward: Reward, rollout: Rollout
) -> Callable[[Any], tuple[CrystalBatch, RewardOutput]]:
    """Compiles validation: `validation_samples` crystals that nobody trains on.

    They always come from the same noise and are scored as one set. Their score depends
    neither on the training batch nor on how many are sampled at once.
    """
    count, size = config.validation_samples, batch_size(config)
    key = jax.random.key(config.seed + 1)
    num_atoms, condition = draw_prompts(jax.random.fold_in(key, 0), count)
    keys = crystal_keys(jax.random.fold_in(key, 1), jnp.arange(count))
    score = make_score(reward, group_size=count, with_energies=True)

    def sample(params, rows):
        prompts = jax.tree.map(lambda x: x[rows], (keys, num_atoms, condition))
        return rollout(params, *prompts)[0]

    def validate(params):
        found = [
            # The last batch is filled up with crystals of the first.
            sample(params, np.arange(start, start + size) % count)
            for start in range(0, count, size)
        ]
        crystals = jax.tree.map(lambda *x: np.concatenate(x)[:count], *found)
        return crystals, score(crystals)

    return validate

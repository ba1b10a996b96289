"""Crystals in bulk: any number, batch by batch, on all devices."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from chemeleon_jax.data.types import CrystalBatch, SymmetryTemplate, Trajectory
from chemeleon_jax.devices import distributed
from chemeleon_jax.devices.compilation import on_mesh
from chemeleon_jax.devices.sharding import device_order, replicate_in_jit, shard_batch
from chemeleon_jax.models.generator import Generator
from chemeleon_jax.rl.objective import OWN_TRAJECTORY
from chemeleon_jax.rl.sampler import (
    Condition,
    Sampler,
    crystal_keys,
    repeat_condition,
    sample_group,
)

# Crystals per device. More keep neither busier, and small batches pad less.
MAX_BATCH, CPU_BATCH = 512, 32


class Prompts(NamedTuple):
    """What B crystals start from."""

    keys: jax.Array  # [B]
    num_atoms: jax.Array  # [B]
    condition: Condition  # {name: [B, in]}
    template: SymmetryTemplate | None = None  # of B crystals

    def at(self, rows: np.ndarray) -> "Prompts":
        """Those of some crystals."""
        return jax.tree.map(lambda x: x[rows], self)


def group_prompts(
    key: jax.Array, num_atoms: jax.Array, condition: Condition, group_size: int = 1
) -> Prompts:
    """Prompts of groups of K = `group_size` crystals, which differ in their keys alone.

    Of atom counts [G] and conditions {name: [G, in]}; crystal b has `fold_in(key, b)`.
    Groups are laid out here and go in as groups of one, so that validation, where every
    crystal has an atom count of its own, is the same program.
    """
    num_atoms = jnp.repeat(num_atoms, group_size)
    keys = crystal_keys(key, jnp.arange(len(num_atoms)))
    return Prompts(keys, num_atoms, repeat_condition(condition, group_size))


def draw_prompts(
    draw: Callable, key: jax.Array, num_groups: int, group_size: int = 1
) -> Prompts:
    """Prompts of G groups whose atom counts and conditions are drawn.

    `draw`: (key, groups) -> num_atoms, condition; see `make_prompts`.
    """
    num_atoms, condition = draw(jax.random.fold_in(key, 0), num_groups)
    return group_prompts(jax.random.fold_in(key, 1), num_atoms, condition, group_size)


def sample_on_mesh(
    params: Any,
    prompts: Prompts,
    *,
    sampler: Sampler,
    num_minibatches: int = 1,
    num_microbatches: int = 1,
    num_devices: int = 1,
    record: bool = True,
) -> tuple[CrystalBatch, Trajectory]:
    """Crystals in their own order, on every device; trajectories as devices hold them.

    Each of the `num_devices` of the mesh holds an equal share of each minibatch, see
    `device_order`. For the rest, see `sample_group`.
    """
    order = device_order(len(prompts.num_atoms), num_minibatches, num_devices)
    prompts = prompts.at(order)
    crystals, trajectory = sample_group(
        params,
        prompts.keys,
        prompts.num_atoms,
        sampler=sampler,
        group_size=1,
        condition=prompts.condition,
        template=prompts.template,
        num_microbatches=num_microbatches,
        record=record,
    )
    back = np.argsort(order)
    return jax.tree.map(lambda x: x[back], replicate_in_jit(crystals)), trajectory


def jit_rollout(
    mesh: Mesh, num_minibatches: int, num_microbatches: int, record: bool = True
) -> Any:
    """`sample_on_mesh` of a mesh, jitted: (params, prompts, sampler=...) -> its own."""
    function = partial(
        sample_on_mesh,
        num_minibatches=num_minibatches,
        num_microbatches=num_microbatches,
        num_devices=mesh.size,
        record=record,
    )
    own = OWN_TRAJECTORY if record else OWN_TRAJECTORY.replace(steps=None)
    places = jax.tree.map(partial(NamedSharding, mesh), (P(), own))
    return jax.jit(function, out_shardings=places)


def shard_as_trajectory(x: np.ndarray, num_minibatches: int, mesh: Mesh) -> jax.Array:
    """Values of crystals [B], each where `sample_on_mesh` puts its crystal."""
    return shard_batch(x[device_order(len(x), num_minibatches, mesh.size)], mesh)


def compile_sampling(
    sampler: Sampler, mesh: Mesh, precision: str = "default"
) -> Callable[[Any, Prompts], CrystalBatch]:
    """`sample_on_mesh` without its trajectory, which takes no memory then."""

    def sample(params, prompts, sampler):
        crystals, _ = sample_on_mesh(params, prompts, sampler=sampler, record=False)
        return crystals

    compiled = jax.jit(sample, out_shardings=NamedSharding(mesh, P()))
    return on_mesh(partial(compiled, sampler=sampler), mesh, precision)


def sample_in_bulk(
    params: Any,
    prompts: Prompts,
    *,
    sample: Callable[[Any, Prompts], CrystalBatch],
    batch_size: int,
    progress: bool = False,
    remember: Callable[[int, Callable[[], CrystalBatch]], CrystalBatch] | None = None,
) -> CrystalBatch:
    """Samples any number of crystals, batch by batch.

    A crystal draws from its own key: up to rounding, it depends neither on the batch
    that it is in nor on the number of devices.

    Args:
      params: of the policy.
      prompts: of n crystals.
      sample: of `batch_size` crystals; `compile_sampling`, for one.
      batch_size: a multiple of the devices.
      progress: shows a bar, on the first process.
      remember: number of a batch and what computes it -> the batch; by default always
        computed. Every process must compute the same batches.

    Returns:
      n crystals as NumPy arrays, in the order of their prompts, on every process.
    """
    count, found = len(prompts.num_atoms), []
    batches = list(similar_sizes(np.asarray(prompts.num_atoms), batch_size))
    silent = not (progress and distributed.is_first())
    with tqdm(total=count, unit=" crystals", disable=silent) as bar:
        for i, rows in enumerate(batches):

            def compute(rows=rows):
                filled = np.resize(rows, batch_size)  # one shape, compiled once
                return jax.device_get(sample(params, prompts.at(filled)))

            found.append(remember(i, compute) if remember else compute())
            bar.update(len(rows))
    back = np.argsort(np.concatenate(batches))
    return jax.tree.map(lambda *x: np.concatenate(x)[:count][back], *found)


def similar_sizes(num_atoms: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Rows of each batch, crystals of similar size together; the last may be smaller.

    Large crystals come first: a batch that memory has no room for fails at once.
    """
    rows = np.argsort(-num_atoms, kind="stable")
    return (rows[i : i + batch_size] for i in range(0, len(rows), batch_size))


def even_batch_size(count: int, largest: int, num_devices: int) -> int:
    """Size of as few equal batches of `count` crystals as may have `largest` each.

    At most `largest`, but one crystal per device; a multiple of the devices.
    """
    largest = max(largest // num_devices, 1) * num_devices
    batches = -(-count // largest)
    return -(-count // (batches * num_devices)) * num_devices


def fitting_batch(model: Generator, guided: bool, num_devices: int) -> int:
    """Crystals at once: what a CPU is busy with, or what an accelerator has room for.

    Counts the widest activations of a block of the denoiser: queries, keys, values, the
    hidden layer of the MLP, attention scores; and takes half of what is free.
    """
    dit, atoms = model.dit, model.max_atoms
    per_atom = (8 + 2 * dit.mlp_ratio) * dit.width + 3 * dit.heads * atoms
    per_crystal = 4 * atoms * per_atom * (2 if guided else 1)
    each = MAX_BATCH
    for device in jax.local_devices():
        stats = device.memory_stats()
        if not stats:
            each = min(each, CPU_BATCH)
        else:
            free = stats["bytes_limit"] - stats["bytes_in_use"]
            each = min(each, max(free // 2 // per_crystal, 1))
    least = -distributed.max_over_processes(-each)
    return least * num_devices

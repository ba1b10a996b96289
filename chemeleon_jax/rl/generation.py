"""Crystals in bulk: any number, on all devices.

Sorted by atom count, so that batches are little padded: `sample_group` computes each at
the smallest width that holds it (see `buckets`).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from chemeleon_jax.data.crystals import empty_batch
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.devices import distributed
from chemeleon_jax.devices.sharding import replicate
from chemeleon_jax.models.diffusion import Schedule
from chemeleon_jax.models.generator import Generator
from chemeleon_jax.rl.sampler import crystal_keys, sample_group

# Crystals per device. More keep neither busier, and small batches pad less.
MAX_BATCH, CPU_BATCH = 512, 32


def generate(
    params: Any,
    key: jax.Array,
    num_atoms: np.ndarray,
    *,
    model: Generator,
    schedule: Schedule,
    mesh: Mesh,
    eta: float = 1.0,
    cfg_scale: float | None = None,
    decoder_scale: float | None = None,
    condition: dict[str, np.ndarray] | None = None,
    batch_size: int | None = None,
) -> CrystalBatch:
    """Samples crystals, batch by batch, with a progress bar.

    Crystal i draws from its own key: up to rounding, it depends neither on the batch
    that it is in nor on the number of devices.

    Args:
      params: of the policy (the DiT).
      key: of this set of crystals.
      num_atoms: [n], at most `model.max_atoms`.
      model: everything else.
      schedule: names the sampler.
      mesh: the devices that share each batch.
      eta: noise of the DDIM sampler.
      cfg_scale: classifier-free guidance scale; None for none.
      decoder_scale: of guidance by the decoder; None for none.
      condition: preprocessed conditions of all crystals, {name: [1, in]}.
      batch_size: crystals sampled at once; by default, as many as fit.

    Returns:
      n crystals as NumPy arrays, padded to `model.max_atoms`, on every process.
    """
    params, model = replicate((params, model), mesh)
    crystals = empty_batch(len(num_atoms), model.max_atoms)
    everywhere = NamedSharding(mesh, PartitionSpec())
    rollout = jax.jit(partial(_sample, eta=eta), out_shardings=everywhere)
    largest = batch_size or fitting_batch(model, cfg_scale is not None, mesh.size)
    silent = None if distributed.is_first() else True
    with tqdm(total=len(num_atoms), unit=" crystals", disable=silent) as progress:
        for part, size in batches(num_atoms, largest, mesh.size):
            filled = np.resize(part, size)  # one shape, compiled once
            with jax.set_mesh(mesh):
                found = rollout(
                    params,
                    key,
                    jnp.asarray(filled),
                    jnp.asarray(num_atoms[filled]),
                    model=model,
                    schedule=schedule,
                    cfg_scale=cfg_scale,
                    decoder_scale=decoder_scale,
                    condition=condition,
                )
            for name, values in vars(jax.device_get(found)).items():
                getattr(crystals, name)[part] = values[: len(part)]
            progress.update(len(part))
    return crystals


def _sample(params, key, index, num_atoms, *, condition, **kwargs) -> CrystalBatch:
    """Crystals number `index` [B] of `num_atoms` [B]; their trajectory is dropped."""
    if condition is not None:
        condition = {
            name: jnp.broadcast_to(v, (len(index), v.shape[1]))
            for name, v in condition.items()
        }
    keys = crystal_keys(key, index)
    crystals, _ = sample_group(
        params, keys, num_atoms, group_size=1, condition=condition, **kwargs
    )
    return crystals


def batches(num_atoms: np.ndarray, largest: int, num_devices: int):
    """Rows of each batch and the size of all, crystals of similar size together.

    Large crystals come first: a batch that memory has no room for fails at once. The
    size is at most `largest` (but one crystal per device), a multiple of the devices.
    """
    rows = np.argsort(-num_atoms, kind="stable")
    largest = max(largest // num_devices, 1) * num_devices
    parts = -(-len(rows) // largest)
    size = -(-len(rows) // (parts * num_devices)) * num_devices
    for start in range(0, len(rows), size):
        yield rows[start : start + size], size


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
    return -distributed.greatest(-each) * num_devices  # the least that any process has

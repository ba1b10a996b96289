"""Crystals in bulk: any number, on all devices, bucketed by atom count."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from chemeleon_jax.crystals import empty_batch
from chemeleon_jax.diffusion import Schedule
from chemeleon_jax.models.generator import Generator
from chemeleon_jax.rollout import sample_group
from chemeleon_jax.sharding import replicate
from chemeleon_jax.types import CrystalBatch

BUCKET = 4  # atoms: widths that crystals are padded to are multiples of it
CPU_MEMORY = 1 << 30  # bytes that a batch may take where the device does not say
MAX_BATCH = 512  # crystals per device; more are not faster


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
      condition: preprocessed conditions of all crystals, {name: [1, in]}.
      batch_size: crystals sampled at once; by default, as many as fit.

    Returns:
      n crystals as NumPy arrays, padded to `model.max_atoms`.
    """
    params, model = replicate((params, model), mesh)
    crystals = empty_batch(len(num_atoms), model.max_atoms)
    rollout = jax.jit(partial(_sample, eta=eta))
    with tqdm(total=len(num_atoms), unit=" crystals", disable=None) as progress:
        for width, rows in buckets(num_atoms, widths(model, schedule)):
            narrow = model.replace(max_atoms=width)
            largest = batch_size or fitting_batch(narrow, cfg_scale is not None)
            size = even_batch(len(rows), largest, mesh.size)
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                filled = np.resize(part, size)  # one shape for each bucket
                with jax.set_mesh(mesh):
                    found = rollout(
                        params,
                        key,
                        jnp.asarray(filled),
                        jnp.asarray(num_atoms[filled]),
                        model=narrow,
                        schedule=schedule,
                        cfg_scale=cfg_scale,
                        condition=condition,
                    )
                put(crystals, part, jax.device_get(found))
                progress.update(len(part))
    return crystals


def _sample(params, key, index, num_atoms, *, condition, **kwargs) -> CrystalBatch:
    """Crystals number `index` [B] of `num_atoms` [B]; their trajectory is dropped."""
    if condition is not None:
        condition = {
            name: jnp.broadcast_to(v, (len(index), v.shape[1]))
            for name, v in condition.items()
        }
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    crystals, _ = sample_group(
        params, keys, num_atoms, group_size=1, condition=condition, **kwargs
    )
    return crystals


def widths(model: Generator, schedule: Schedule) -> list[int]:
    """What crystals are padded to, ascending.

    The learned variances of released models depend on the padded length, and DDPM draws
    from them: there, all crystals have one.
    """
    if schedule.sampler == "ddpm" and model.dit.learn_sigma:
        return [model.max_atoms]
    return [*range(BUCKET, model.max_atoms, BUCKET), model.max_atoms]


def buckets(num_atoms: np.ndarray, widths: list[int]):
    """The narrowest width of each crystal: pairs of width and rows, wide ones first.

    A batch too large for the device fails at once, not after the small crystals.
    """
    bucket = np.searchsorted(widths, num_atoms)
    for i in reversed(range(len(widths))):
        rows = np.flatnonzero(bucket == i)
        if len(rows):
            yield widths[i], rows


def even_batch(count: int, largest: int, num_devices: int) -> int:
    """Size of the equal batches that `count` crystals are cut into.

    At most `largest` (but one crystal per device), a multiple of the devices.
    """
    largest = max(largest // num_devices, 1) * num_devices
    parts = -(-count // largest)
    return -(-count // (parts * num_devices)) * num_devices


def fitting_batch(model: Generator, guided: bool) -> int:
    """Crystals that the memory of the devices has room for.

    Counts the widest activations of a block of the denoiser: queries, keys, values, the
    hidden layer of the MLP, attention scores; and takes half of what is free.
    """
    free = []
    for device in jax.local_devices():
        stats = device.memory_stats() or {}
        limit = stats.get("bytes_limit", CPU_MEMORY)
        free.append((limit - stats.get("bytes_in_use", 0)) // 2)
    dit, atoms = model.dit, model.max_atoms
    per_atom = (8 + 2 * dit.mlp_ratio) * dit.width + 3 * dit.heads * atoms
    per_crystal = 4 * atoms * per_atom * (2 if guided else 1)
    each = min(max(min(free) // per_crystal, 1), MAX_BATCH)
    return each * len(free)


def put(crystals: CrystalBatch, rows: np.ndarray, found: CrystalBatch) -> None:
    """Writes the first len(rows) crystals of a narrower batch into rows of another."""
    width = found.mask.shape[1]
    for name in ("atom_types", "frac_coords", "mask"):
        getattr(crystals, name)[rows, :width] = getattr(found, name)[: len(rows)]
    for name in ("lengths", "angles"):
        getattr(crystals, name)[rows] = getattr(found, name)[: len(rows)]

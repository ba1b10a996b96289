"""`sample_group`: the policy at work."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from chemeleon_jax.data.types import CrystalBatch, Step, Trajectory
from chemeleon_jax.devices.sharding import (
    CRYSTALS,
    gather_params,
    over_devices,
    param_specs,
)
from chemeleon_jax.models.buckets import at_width, map_parts, network_widths, pad_atoms
from chemeleon_jax.models.diffusion import (
    Denoiser,
    Schedule,
    denoise_step,
    gaussian_log_prob,
)
from chemeleon_jax.models.generator import Generator


def crystal_noise(
    keys: jax.Array, draw: jax.Array | int, mask: jax.Array, channels: int
):
    """Standard normal noise on real atoms, zero on padding, [B, N, L].

    Every crystal has its own key and every atom its own counter in it, so that a
    crystal does not depend on the batch it is in, on the padding or on the number of
    devices.

    Args:
      keys: [B] one key per crystal.
      draw: number of the draw in the trajectory.
      mask: [B, N].
      channels: L.
    """
    shape = (mask.shape[1], channels)
    noise = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, draw), shape))
    return noise(keys) * mask[..., None]


def crystal_keys(key: jax.Array, index: jax.Array) -> jax.Array:
    """The keys of crystals number `index` [B] of a rollout, [B]."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def sample_group(
    params: Any,
    key: jax.Array,
    num_atoms: jax.Array,
    *,
    model: Generator,
    schedule: Schedule,
    group_size: int,
    eta: float = 1.0,
    cfg_scale: float | None = None,
    decoder_scale: float | None = None,
    condition: dict[str, jax.Array] | None = None,
    parts: int = 1,
) -> tuple[CrystalBatch, Trajectory]:
    """Sample groups of crystals, and remember how.

    Args:
      params: of the policy (the DiT).
      key: of this rollout, whose crystal b draws from `fold_in(key, b)`; or [B] keys,
        one for each crystal.
      num_atoms: [G] atoms of each group's crystals, at most `model.max_atoms`.
      model: everything that is not trained here.
      schedule: with T steps, names the sampler.
      group_size: K.
      eta: noise of the DDIM sampler; 1 in RL.
      cfg_scale: classifier-free guidance scale; None for none.
      decoder_scale: of guidance by the decoder; None, as in RL, for none.
      condition: preprocessed conditions of each group, {name: [G, in]}.
      parts: that a device's crystals are sampled in, one after another; see `buckets`.
        Crystals do not depend on it.

    Returns:
      B = G * K crystals, groups contiguous, and their trajectory. The last step of DDIM
      is taken but not part of it: without noise it has no log-probability. Under a mesh
      each device has its rows of both; B must be a multiple of the devices.
    """
    counts = jnp.repeat(num_atoms, group_size)
    keys = key if key.ndim else crystal_keys(key, jnp.arange(len(counts)))
    condition = repeat_condition(condition, group_size)

    specs = param_specs(params)
    widths = network_widths(model, schedule)

    def sample_part(params, part):
        keys, counts, condition = part
        mask = jnp.arange(model.max_atoms)[None] < counts[:, None]
        # Noise and decoder are the same at every width, and cost little beside T steps
        # of the network: outside of the branches, they are compiled once.
        noise = lax.map(
            lambda draw: crystal_noise(keys, draw, mask, model.dit.latent_channels),
            jnp.arange(schedule.num_steps + 1),
        )

        def sample(width):
            narrow = mask[:, :width]
            z, steps = roll_out(
                model.denoiser(params, narrow, condition, cfg_scale, decoder_scale),
                noise[-1, :, :width],
                lambda draw: noise[draw, :, :width],
                narrow,
                schedule=schedule,
                eta=eta,
            )
            z_past, z_next = (
                pad_atoms(jnp.moveaxis(x, 0, 1), model.max_atoms, axis=2)
                for x in (steps.z, steps.z_next)
            )
            return pad_atoms(z, model.max_atoms), z_past, z_next, steps.log_prob.T

        z, *steps = at_width(sample, counts, widths)
        return model.decode(z, mask), *steps

    def sample_own(params, crystals):
        params = gather_params(params, specs)
        return map_parts(partial(sample_part, params), crystals, crystals[1], parts)

    crystals, z, z_next, log_prob = over_devices(
        sample_own, in_specs=(specs, CRYSTALS), out_specs=CRYSTALS
    )(params, (keys, counts, condition))
    z, z_next, log_prob = (jnp.moveaxis(x, 1, 0) for x in (z, z_next, log_prob))
    index = jnp.arange(schedule.num_steps)[::-1][: schedule.num_recorded]
    steps = Step(index, z, z_next, log_prob)
    return crystals, Trajectory(steps, crystals.mask, condition)


def roll_out(
    denoiser: Denoiser,
    z: jax.Array,
    noise: Callable[[jax.Array], jax.Array],
    mask: jax.Array,
    *,
    schedule: Schedule,
    eta: float = 1.0,
) -> tuple[jax.Array, Step]:
    """Take all T steps from a given latent.

    Args:
      denoiser: see `Generator.denoiser`.
      z: [B, N, L] initial latent, zero on padding.
      noise: index of a step [] -> [B, N, L], zero on padding.
      mask: [B, N].
      schedule: with T steps.
      eta: noise of the DDIM sampler.

    Returns:
      The final latent, and the steps that have a density, stacked in sampling order.
    """

    def take_step(z, index):
        mean, std = denoise_step(denoiser, z, index, schedule=schedule, eta=eta)
        z_next = mean + std * noise(index) * (index > 0)  # step 0 draws no noise
        log_prob = gaussian_log_prob(z_next, mean, std, mask)
        return z_next, Step(index, z, z_next, log_prob)

    z, steps = lax.scan(take_step, z, jnp.arange(schedule.num_steps)[::-1])
    return z, jax.tree.map(lambda x: x[: schedule.num_recorded], steps)


def repeat_condition(condition, group_size: int):
    """Conditions of groups {name: [G, in]} as those of crystals {name: [B, in]}."""
    if condition is None:
        return None
    return {name: jnp.repeat(v, group_size, 0) for name, v in condition.items()}

"""`sample_group`: the policy at work."""

from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from chemeleon_jax.data.types import (
    CrystalBatch,
    Step,
    SymmetryTemplate,
    Trajectory,
)
from chemeleon_jax.devices.sharding import (
    CRYSTALS,
    gather_params,
    over_devices,
    param_specs,
)
from chemeleon_jax.models.buckets import (
    at_width,
    map_microbatches,
    network_widths,
    pad_atoms,
)
from chemeleon_jax.models.diffusion import (
    Gaussian,
    Schedule,
    denoise_step,
    make_schedule,
)
from chemeleon_jax.models.generator import Generator

Condition = dict[str, jax.Array] | None  # preprocessed conditions, {name: [B, in]}


@struct.dataclass
class Sampler:
    """How latents become crystals, but for the policy's own parameters.

    A pytree: an argument of jitted functions, whose arrays are no constants in them.
    """

    model: Generator  # everything that RL does not train
    schedule: Schedule  # of T timesteps; names DDIM or DDPM
    eta: jax.Array | float = 1.0  # noise of DDIM; GRPO needs it above 0
    cfg_scale: jax.Array | float | None = None  # classifier-free guidance; None: none
    decoder_scale: jax.Array | float | None = None  # guidance by the decoder; likewise

    def step(
        self,
        params: Any,
        z: jax.Array,
        timestep: jax.Array,
        mask: jax.Array,
        condition: Condition = None,
        template: SymmetryTemplate | None = None,
    ) -> Gaussian:
        """What one reverse step draws from. Rollout and loss both call this.

        Args:
          params: of the policy.
          z: [B, N, L] latents before the step.
          timestep: [] of the schedule, T-1 .. 0.
          mask: [B, N].
          condition: preprocessed conditions of each crystal, {name: [B, in]}.
          template: the symmetry of each crystal; None for any.
        """
        chex.assert_equal_shape_prefix([z, mask], 2)
        denoiser = self.model.denoiser(
            params, mask, condition, self.cfg_scale, self.decoder_scale, template
        )
        return denoise_step(denoiser, z, timestep, schedule=self.schedule, eta=self.eta)

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths that crystals may be padded to; see `buckets`."""
        return network_widths(self.model, self.schedule)


def make_sampler(
    model: Generator,
    *,
    sampler: str = "ddim",
    sampling_steps: int = 50,
    eta: float = 1.0,
    cfg_scale: float | None = None,
    decoder_guidance: float | None = None,
) -> Sampler:
    """A sampler from what the `sampling` section of a config says.

    Raises:
      UserError: there is no such sampler, or it cannot take that many steps.
    """
    return Sampler(
        model,
        make_schedule(sampler, sampling_steps),
        eta,
        model.effective_cfg_scale(cfg_scale),
        decoder_guidance or None,
    )


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
    chex.assert_equal_shape_prefix([keys, mask], 1)
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
    sampler: Sampler,
    group_size: int,
    condition: Condition = None,
    template: SymmetryTemplate | None = None,
    num_microbatches: int = 1,
    record: bool = True,
) -> tuple[CrystalBatch, Trajectory]:
    """Sample groups of crystals, and remember how.

    Args:
      params: of the policy (the DiT).
      key: of this rollout, whose crystal b draws from `fold_in(key, b)`; or [B] keys,
        one for each crystal.
      num_atoms: [G] atoms of each group's crystals, at most `sampler.model.max_atoms`.
      sampler: everything that is not trained here.
      group_size: K.
      condition: preprocessed conditions of each group, {name: [G, in]}.
      template: the symmetry that each of the B crystals should have; None for any. What
        the policy then draws from is not the policy alone: nothing to learn from.
      num_microbatches: that a device's crystals are sampled in, one after another; see
        `buckets`. Crystals do not depend on it.
      record: keeps the steps; objectives that need none save their memory.

    Returns:
      B = G * K crystals, groups contiguous, and their trajectory. The last step of DDIM
      is taken but not part of it: without noise it has no log-probability. Under a mesh
      each device has its rows of both; B must be a multiple of the devices.
    """
    chex.assert_shape(num_atoms, (None,), custom_message="num_atoms [G]")
    for vectors in (condition or {}).values():
        chex.assert_rank(vectors, 2, custom_message="condition [G, in]")
        chex.assert_equal_shape_prefix([num_atoms, vectors], 1)
    counts = jnp.repeat(num_atoms, group_size)
    keys = key if key.ndim else crystal_keys(key, jnp.arange(len(counts)))
    chex.assert_equal_shape([keys, counts])
    condition = repeat_condition(condition, group_size)

    specs = param_specs(params)
    model, schedule = sampler.model, sampler.schedule

    def sample_some(params, some):
        keys, counts, condition, template = some
        mask = jnp.arange(model.max_atoms)[None] < counts[:, None]
        # Noise and decoder are the same at every width, and cost little beside T steps
        # of the network: outside of the branches, they are compiled once.
        noise = lax.map(
            lambda draw: crystal_noise(keys, draw, mask, model.dit.latent_channels),
            jnp.arange(schedule.num_steps + 1),
        )

        def sample(width):
            z, steps = roll_out(
                params,
                noise[-1, :, :width],
                lambda timestep: noise[timestep, :, :width],
                mask[:, :width],
                sampler=sampler,
                condition=condition,
                template=template and template.at_width(width),
            )
            z_past, z_next = (
                pad_atoms(jnp.moveaxis(x, 0, 1), model.max_atoms, axis=2)
                for x in (steps.z, steps.z_next)
            )
            z = pad_atoms(z, model.max_atoms)
            return z, *((z_past, z_next, steps.log_prob.T) if record else ())

        z, *steps = at_width(sample, counts, sampler.widths)
        return model.decode(z, mask, template), z, *steps

    def sample_own(params, crystals):
        params = gather_params(params, specs)
        return map_microbatches(
            partial(sample_some, params), crystals, crystals[1], num_microbatches
        )

    crystals, latents, *steps = over_devices(
        sample_own, in_specs=(specs, CRYSTALS), out_specs=CRYSTALS
    )(params, (keys, counts, condition, template))
    timesteps = jnp.arange(schedule.num_steps)[::-1][: schedule.num_recorded]
    if record:
        steps = Step(timesteps, *(jnp.moveaxis(x, 1, 0) for x in steps))
    return crystals, Trajectory(
        steps or None, crystals.mask, condition, latents=latents, keys=keys
    )


def roll_out(
    params: Any,
    z: jax.Array,
    noise: Callable[[jax.Array], jax.Array],
    mask: jax.Array,
    *,
    sampler: Sampler,
    condition: Condition = None,
    template: SymmetryTemplate | None = None,
) -> tuple[jax.Array, Step]:
    """Take all T steps from a given latent.

    Args:
      params: of the policy.
      z: [B, N, L] initial latent, zero on padding.
      noise: timestep [] -> [B, N, L], zero on padding.
      mask: [B, N].
      sampler: with T steps.
      condition: of each crystal, {name: [B, in]}.
      template: of each crystal, for atoms up to N.

    Returns:
      The final latent, and the steps that have a density, stacked in sampling order.
    """
    chex.assert_rank([z, mask], [3, 2], custom_message="z [B, N, L], mask [B, N]")

    def take_step(z, timestep):
        gaussian = sampler.step(params, z, timestep, mask, condition, template)
        z_next = gaussian.sample(noise(timestep), timestep > 0)  # none at the last
        return z_next, Step(timestep, z, z_next, gaussian.log_prob(z_next, mask))

    schedule = sampler.schedule
    z, steps = lax.scan(take_step, z, jnp.arange(schedule.num_steps)[::-1])
    return z, jax.tree.map(lambda x: x[: schedule.num_recorded], steps)


def repeat_condition(condition: Condition, group_size: int) -> Condition:
    """Conditions of groups {name: [G, in]} as those of crystals {name: [B, in]}."""
    if condition is None:
        return None
    return {name: jnp.repeat(v, group_size, 0) for name, v in condition.items()}

"""Objectives that need crystals alone, not the steps that made them.

A scored crystal's latent is noised anew, as in pretraining, and the policy is moved
towards or away from it: any sampler will do, and few copies of a crystal cost less than
its trajectory. Crystals that guidance has made are learnt without it.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import lax

from chemeleon_jax.data.types import NoisyLatents, Step, Trajectory
from chemeleon_jax.models.diffusion import (
    NUM_TIMESTEPS,
    TIMESTEP_QUANTILES,
    coordinate_mean,
    denoising_errors,
    make_schedule,
    split_output,
)
from chemeleon_jax.rl.config import GRPOConfig
from chemeleon_jax.rl.sampler import Condition, Sampler, crystal_noise

# Of a crystal's key: draws that no rollout comes to.
_COPIES, _MEASURED = NUM_TIMESTEPS + 1, 2 * NUM_TIMESTEPS


def noise_latents(trajectory: Trajectory, config: GRPOConfig) -> Trajectory:
    """Copies of each crystal's latent, at timesteps and with noise of their own.

    The M = `config.timesteps_per_crystal` timesteps of a crystal follow the density of
    `config.timesteps`, one from each M-th of it. They and the noise depend on the
    crystal's key alone, and so neither on the batch nor on the devices.

    Returns:
      The trajectory with M copies as its steps.
    """
    latents, mask, count = trajectory.latents, trajectory.mask, _COPIES
    quantile = TIMESTEP_QUANTILES[config.timesteps]
    copies = jnp.arange(config.timesteps_per_crystal)

    def draw(copy):
        keys = jax.vmap(jax.random.fold_in, (0, None))(trajectory.keys, count + copy)
        uniform = jax.vmap(lambda key: jax.random.uniform(key))(keys)
        share = quantile(
            (copy + uniform) / len(copies), config.timestep_mean, config.timestep_std
        )
        timestep = jnp.minimum((share * NUM_TIMESTEPS).astype(int), NUM_TIMESTEPS - 1)
        noise = crystal_noise(keys, 0, mask, latents.shape[-1])
        return NoisyLatents(timestep, latents, noise)

    return trajectory.replace(steps=lax.map(draw, copies))


def noise_to_steps(
    trajectory: Trajectory, sampler: Sampler, num_steps: int
) -> Trajectory:
    """The latents noised to timesteps of the sampler, as steps to be taken from there.

    For `reference_kl` where no steps were recorded; these have no `z_next` and no
    log-probability.
    """
    latents, schedule = trajectory.latents, sampler.schedule
    spread = (2 * jnp.arange(num_steps) + 1) * schedule.num_recorded // (2 * num_steps)
    timesteps = schedule.num_steps - 1 - spread

    def step(timestep):
        draw = _MEASURED + timestep
        noise = crystal_noise(trajectory.keys, draw, trajectory.mask, latents.shape[-1])
        z = schedule.add_noise(latents, noise, timestep)
        return Step(timestep, z, z, jnp.zeros(len(z)))

    return trajectory.replace(steps=lax.map(step, timesteps))


def awm_loss(
    params: Any,
    copy: NoisyLatents,
    advantage: jax.Array,
    mask: jax.Array,
    *,
    sampler: Sampler,
    config: GRPOConfig,
    old_params: Any,
    on_policy: jax.Array | bool = False,
    condition: Condition = None,
    reference_params: Any = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Advantage weighted matching (arXiv:2509.25050) of one copy of each crystal.

    Minus the training loss of the denoiser stands for the log-probability of a crystal:
    with l that loss, the ratio of two policies is exp(l_old - l), and is clipped as in
    PPO. At ratio 1 and advantage 1 the gradient is that of pretraining.

    The policy is held to the one that sampled, or to the original one, by the squared
    distance of their noise predictions: for an optimal denoiser, how much larger l is
    in expectation for the other.

    Args:
      params: of the policy.
      copy: latents, noise and timesteps.
      advantage: [B].
      mask: [B, N].
      sampler: whose model it is. Guidance plays no part.
      config: clip ratio, weight of the distance, and the error up to which a bad copy
        is pushed.
      old_params: of the policy that sampled.
      on_policy: [] that one is `params`, and need not be asked.
      condition: preprocessed conditions of each crystal, {name: [B, in]}.
      reference_params: of the original policy, if the distance is to that.

    Returns:
      The loss, [], and means over the batch of ratio, distance and the shares of copies
      that are clipped and that are not pushed further.
    """
    schedule, outputs = _predictions(
        copy, mask, sampler, condition, params, old_params, on_policy, reference_params
    )
    own, old = (
        denoising_errors(
            output, copy.z, copy.noise, copy.timestep, mask, schedule=schedule
        )
        for output in outputs[:2]
    )
    ratio = jnp.exp(old["loss"] - own["loss"])
    clipped = jnp.clip(ratio, 1 - config.clip_ratio, 1 + config.clip_ratio)
    held = _held(advantage, old["mse"], config)
    surrogate = jnp.minimum(ratio * held, clipped * held)
    distance = _distance(outputs[0], outputs[-1], mask)
    is_held = advantage != held
    metrics = _metrics(own["loss"], old["loss"], ratio, clipped, distance, is_held)
    loss = -surrogate + config.kl_weight * distance
    return loss.mean(), metrics | {"surrogate": surrogate.mean()}


def nft_loss(
    params: Any,
    copy: NoisyLatents,
    advantage: jax.Array,
    mask: jax.Array,
    *,
    sampler: Sampler,
    config: GRPOConfig,
    old_params: Any,
    on_policy: jax.Array | bool = False,
    condition: Condition = None,
    reference_params: Any = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """DiffusionNFT (arXiv:2509.16117) of one copy of each crystal.

    With r = 1/2 + clip(A / c, -1, 1) / 2, the policy's noise prediction e and the old
    one e', what is better than the old one lies at e' + b (e - e'), what is worse at
    e' - b (e - e'):

        c / b (r |e' + b (e - e') - noise|^2 + (1 - r) |e' - b (e - e') - noise|^2),

    each square over the mean distance of that prediction from the noise, which has no
    gradient here. c is `config.advantage_clip`, b `config.nft_beta`. A variance that is
    learned follows the good crystals, by r times its term of the training loss.

    Arguments and results as in `awm_loss`; no ratio is clipped, A / c is.
    """
    schedule, outputs = _predictions(
        copy, mask, sampler, condition, params, old_params, on_policy, reference_params
    )
    own, old = (
        denoising_errors(
            output, copy.z, copy.noise, copy.timestep, mask, schedule=schedule
        )
        for output in outputs[:2]
    )
    eps, eps_old = (split_output(x, mask.shape[1])[0] for x in outputs[:2])
    move = config.nft_beta * (eps - eps_old)

    def error(prediction):
        far = coordinate_mean(jnp.abs(prediction - copy.noise), mask)
        square = coordinate_mean((prediction - copy.noise) ** 2, mask)
        return square / lax.stop_gradient(jnp.maximum(far, 1e-5))

    held = _held(advantage, old["mse"], config)
    good = 0.5 + 0.5 * jnp.clip(held / config.advantage_clip, -1, 1)
    errors = good * error(eps_old + move) + (1 - good) * error(eps_old - move)
    distance = _distance(outputs[0], outputs[-1], mask)
    ratio = jnp.exp(old["loss"] - own["loss"])
    is_held = advantage != held
    metrics = _metrics(own["loss"], old["loss"], ratio, ratio, distance, is_held)
    loss = config.advantage_clip / config.nft_beta * errors + good * own["vb"]
    loss += config.kl_weight * distance
    return loss.mean(), metrics


def _predictions(copy, mask, sampler, condition, params, old, on_policy, reference):
    """The schedule, and what policy, old policy and, if any, original one predict."""
    chex.assert_rank(
        [copy.z, copy.timestep, mask],
        [3, 1, 2],
        custom_message="z [B, N, L], timestep [B], mask [B, N]",
    )
    schedule = make_schedule("ddpm", NUM_TIMESTEPS)
    z_noisy = schedule.add_noise(copy.z, copy.noise, copy.timestep)

    def predict(params):
        denoiser = sampler.model.denoiser(params, mask, condition)
        return denoiser(z_noisy, schedule.model_timesteps[copy.timestep])

    output = predict(params)
    own = lax.stop_gradient(output)
    outputs = output, lax.cond(on_policy, lambda: own, lambda: predict(old))
    if reference is not None:
        outputs = *outputs, predict(reference)
    return schedule, outputs


def _held(advantage: jax.Array, error: jax.Array, config: GRPOConfig) -> jax.Array:
    """Advantages, but 0 for bad copies whose error is above `config.error_limit`.

    Nothing else bounds the error of a bad crystal: a few that lie far from all others
    are pushed on in every iteration, until the policy makes no other.
    """
    bad = (advantage < 0) & (error > config.error_limit)
    return jnp.where(bad, 0.0, advantage)


def _distance(output, other, mask) -> jax.Array:
    """Mean squared difference of two noise predictions, [B]."""
    first, second = (split_output(x, mask.shape[1])[0] for x in (output, other))
    return coordinate_mean((first - second) ** 2, mask)


def _metrics(own, old, ratio, clipped, distance, is_held) -> dict[str, jax.Array]:
    return {
        "ratio": ratio.mean(),
        "log_ratio": (old - own).mean(),
        "ratio_max": ratio.max(),
        "ratio_min": ratio.min(),
        "clip_fraction": (ratio != clipped).mean(),
        "denoising_error": own.mean(),
        "distance": distance.mean(),
        "held_fraction": is_held.mean(),
    }

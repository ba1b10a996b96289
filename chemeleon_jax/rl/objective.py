"""`grpo_loss` of one timestep, and the KL of a policy from the original one.

GRPO is Shao et al. (arXiv:2402.03300); its use on diffusion trajectories follows
Flow-GRPO and DanceGRPO: every denoising step is an action with a Gaussian density.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from chemeleon_jax.data.types import Step, Trajectory
from chemeleon_jax.devices.sharding import (
    CRYSTALS,
    device_mean,
    gather_params,
    over_devices,
    param_specs,
)
from chemeleon_jax.models.buckets import at_width, microbatches_by_size
from chemeleon_jax.models.diffusion import Schedule
from chemeleon_jax.rl.config import GRPOConfig
from chemeleon_jax.rl.sampler import Condition, Sampler

# How a trajectory lies on the mesh: each device has its own crystals.
_STEPS = P(None, *CRYSTALS)
OWN_TRAJECTORY = Trajectory(
    Step(P(), _STEPS, _STEPS, _STEPS), CRYSTALS, CRYSTALS, CRYSTALS, CRYSTALS
)
OWN_COPIES = OWN_TRAJECTORY.replace(steps=_STEPS)  # of `NoisyLatents`


def grpo_loss(
    params: Any,
    step: Step,
    advantage: jax.Array,
    mask: jax.Array,
    *,
    sampler: Sampler,
    config: GRPOConfig,
    condition: Condition = None,
    reference_params: Any = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Clipped policy-gradient loss of one timestep (GRPO, eq. 3).

    The KL is by default Schulman's k3 estimate to the policy that sampled
    (http://joschu.net/blog/kl-approx.html), which is what the original does; its
    gradient is zero as long as the ratio is 1. With `reference_params` it is the closed
    form between the two Gaussians, the policy's first. The entropy is estimated by
    minus the log-probability of the one action.

    Args:
      params: of the policy.
      step: what the sampling policy did, and its log-probability.
      advantage: [B].
      mask: [B, N].
      sampler: that of the rollout.
      config: clip ratio, and the weights of KL and entropy.
      condition: preprocessed conditions of each crystal, {name: [B, in]}.
      reference_params: of the frozen original policy.

    Returns:
      The loss, [], and means over the batch of ratio, KLs and the clipped share.
    """
    chex.assert_rank(
        [step.z, mask, advantage, step.log_prob, step.timestep],
        [3, 2, 1, 1, 0],
        custom_message="z [B, N, L], mask [B, N], advantage and log_prob [B]",
    )
    chex.assert_equal_shape([step.z, step.z_next])
    chex.assert_equal_shape_prefix([step.z, mask], 2)
    chex.assert_equal_shape_prefix([mask, advantage, step.log_prob], 1)

    def policy(params):
        return sampler.step(params, step.z, step.timestep, mask, condition)

    gaussian = policy(params)
    log_prob = gaussian.log_prob(step.z_next, mask)
    log_ratio = log_prob - step.log_prob
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1 - config.clip_ratio, 1 + config.clip_ratio)
    surrogate = jnp.minimum(ratio * advantage, clipped * advantage)
    kl_old = jnp.exp(-log_ratio) - 1 + log_ratio
    metrics = {
        "ratio": ratio.mean(),
        "log_ratio": log_ratio.mean(),
        "ratio_max": ratio.max(),
        "ratio_min": ratio.min(),
        "kl_old": kl_old.mean(),
        "surrogate": surrogate.mean(),
        "neg_log_prob": -log_prob.mean(),
        "clip_fraction": (ratio != clipped).mean(),
    }
    kl, entropy = kl_old, -log_prob
    if reference_params is not None:
        kl = gaussian.kl(policy(reference_params), mask)
        metrics["kl_div"] = kl.mean()
    loss = -surrogate + config.kl_weight * kl - config.entropy_weight * entropy
    return loss.mean(), metrics


def noise_level_weights(schedule: Schedule) -> jax.Array:
    """Weights of a trajectory's timesteps in the policy gradient, [T], mean 1.

    The gradient of a step's log-probability grows with one over its std, so that the
    last steps, which change least, would drown all others. The weight is the std
    (TempFlow-GRPO, arXiv:2508.04324).
    """
    std = jnp.exp(0.5 * schedule.posterior_log_variance)
    if schedule.sampler == "ddim":
        std = schedule.ddim_std
    return std * schedule.num_recorded / std[-schedule.num_recorded :].sum()


def reference_kl(
    params: Any,
    reference_params: Any,
    trajectory: Trajectory,
    *,
    sampler: Sampler,
    num_steps: int,
    num_microbatches: int = 1,
) -> jax.Array:
    """KL of the policy from the original one, nats per coordinate and step, [].

    The closed form between the two Gaussians of a step, averaged over crystals and over
    `num_steps` steps of the trajectory at equal distances: two denoiser calls a step,
    so a few steps cost little beside the update's T. At least `num_microbatches` (see
    `buckets`): with replay the update's need not divide these crystals.
    """
    total = len(trajectory.steps.timestep)
    picked = jnp.asarray(
        [(2 * i + 1) * total // (2 * num_steps) for i in range(num_steps)]
    )
    specs = param_specs(params)

    def own_kl(params, reference, trajectory):
        both = (gather_params(p, specs) for p in (params, reference))
        steps = jax.tree.map(lambda x: x[picked], trajectory.steps)
        rows = len(trajectory.mask)
        least = min(num_microbatches, rows)
        kl = _trajectory_kl(
            jax.tree.map(lambda *x: jnp.stack(x), *both),
            trajectory.replace(steps=steps),
            sampler,
            next(n for n in range(least, rows + 1) if rows % n == 0),
        )
        return device_mean(kl)

    return over_devices(own_kl, in_specs=(specs, specs, OWN_TRAJECTORY), out_specs=P())(
        params, reference_params, trajectory
    )


def _trajectory_kl(both, trajectory: Trajectory, sampler: Sampler, num_microbatches):
    """Mean over crystals and steps; `both`: the two policies, stacked."""
    num_atoms = trajectory.mask.sum(-1)

    def kl_of(rows):
        def kl_at(width):
            some = trajectory.crystals(rows, width)

            def kl(step):
                # Both policies by the same compiled code.
                policies = lax.map(
                    lambda params: sampler.step(
                        params, step.z, step.timestep, some.mask, some.condition
                    ),
                    both,
                )
                first, second = (
                    jax.tree.map(lambda x, i=i: x[i], policies) for i in (0, 1)
                )
                return first.kl(second, some.mask).mean()

            return lax.map(kl, some.steps)

        return at_width(kl_at, num_atoms[rows], widths)

    # Every second width: a few steps cost less than what they take to compile.
    widths = sampler.widths[::-2][::-1]
    return lax.map(kl_of, microbatches_by_size(num_atoms, num_microbatches)).mean()

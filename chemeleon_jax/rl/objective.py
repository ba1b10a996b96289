"""`grpo_loss` and `update`: what turns rewards into a better policy.

GRPO is Shao et al. (arXiv:2402.03300); its use on diffusion trajectories follows
Flow-GRPO and DanceGRPO: every denoising step is an action with a Gaussian density.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import PartitionSpec as P

from chemeleon_jax.data.types import Step, Trajectory
from chemeleon_jax.devices.sharding import (
    CRYSTALS,
    device_extremes,
    device_mean,
    gather_params,
    mean_gradient,
    over_devices,
    param_specs,
)
from chemeleon_jax.models.buckets import at_width, network_widths, parts_by_size
from chemeleon_jax.models.diffusion import (
    Schedule,
    denoise_step,
    gaussian_kl,
    gaussian_log_prob,
    noise_level_weights,
)
from chemeleon_jax.models.generator import Generator

# How a trajectory lies on the mesh: each device has its own crystals.
_STEPS = P(None, *CRYSTALS)
OWN_TRAJECTORY = Trajectory(Step(P(), _STEPS, _STEPS, _STEPS), CRYSTALS, CRYSTALS)


def grpo_loss(
    params: Any,
    step: Step,
    advantage: jax.Array,
    mask: jax.Array,
    *,
    model: Generator,
    schedule: Schedule,
    clip_ratio: float,
    kl_weight: float,
    entropy_weight: float,
    eta: float = 1.0,
    cfg_scale: float | None = None,
    condition: dict[str, jax.Array] | None = None,
    reference_params: Any = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Clipped policy-gradient loss of one timestep (GRPO, eq. 3).

    Args:
      params: of the policy.
      step: what the sampling policy did, and its log-probability.
      advantage: [B].
      mask: [B, N].
      model: everything that is not trained here.
      schedule: as in the rollout.
      clip_ratio: the ratio of policies counts within 1 -+ this.
      kl_weight: of the KL. Without `reference_params` it is Schulman's k3 estimate to
        the policy that sampled (http://joschu.net/blog/kl-approx.html), which is what
        the original does; its gradient is zero as long as the ratio is 1.
      entropy_weight: of minus the log-probability of the action, a one-sample estimate
        of the entropy.
      eta: as in the rollout.
      cfg_scale: as in the rollout.
      condition: preprocessed conditions of each crystal, {name: [B, in]}.
      reference_params: of the frozen original policy; with them the KL is the closed
        form between the two Gaussians, the policy's first.

    Returns:
      The loss, [], and means over the batch of ratio, KLs and the clipped share.
    """

    def gaussian(policy_params):
        denoiser = model.denoiser(policy_params, mask, condition, cfg_scale)
        return denoise_step(denoiser, step.z, step.index, schedule=schedule, eta=eta)

    mean, std = gaussian(params)
    log_prob = gaussian_log_prob(step.z_next, mean, std, mask)
    log_ratio = log_prob - step.log_prob
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1 - clip_ratio, 1 + clip_ratio)
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
    kl = kl_old
    if reference_params is not None:
        kl = gaussian_kl(mean, std, *gaussian(reference_params), mask)
        metrics["kl_div"] = kl.mean()
    entropy = -log_prob
    return (-surrogate + kl_weight * kl - entropy_weight * entropy).mean(), metrics


def trajectory_gradient(
    params: Any,
    trajectory: Trajectory,
    advantage: jax.Array,
    *,
    model: Generator,
    schedule: Schedule,
    grad_accum: int = 1,
    step_weight: str = "none",
    **loss_kwargs,
) -> tuple[Any, dict[str, jax.Array]]:
    """Gradient of the loss over a trajectory, in memory that does not grow with it.

    Differentiating inside the scan keeps one step's activations alive; differentiating
    the scan itself would keep all of them. The loss is summed over the steps and
    divided by T, the length of the schedule; where the trajectory holds a choice of the
    S steps (`step_choice`), these count for all. `step_weight` is in the loss too.

    Args:
      params: of the policy.
      trajectory: of B crystals.
      advantage: [B].
      model: everything that is not trained here.
      schedule: as in the rollout.
      grad_accum: parts that the crystals are scored in, one after another; the gradient
        is the same, the memory that much smaller, and so is the padding (`buckets`).
      step_weight: "none", or "std": see `noise_level_weights`.
      **loss_kwargs: of `grpo_loss`.

    Returns:
      The gradient; the loss, and means of the metrics over steps (extremes for
      `ratio_min` and `ratio_max`).
    """
    loss_and_grad = jax.value_and_grad(grpo_loss, has_aux=True)
    widths = network_widths(model, schedule)
    weights = jnp.ones(schedule.num_steps)
    if step_weight == "std":
        weights = noise_level_weights(schedule)
    num_atoms = trajectory.mask.sum(-1)

    def add_part(total, rows):
        def add_steps(width):
            part = take_crystals(trajectory, rows, width)

            def add_step(total, step):
                (loss, metrics), grad = loss_and_grad(
                    params,
                    step,
                    advantage[rows],
                    part.mask,
                    model=model,
                    schedule=schedule,
                    condition=part.condition,
                    **loss_kwargs,
                )
                weight = weights[step.index]
                total = jax.tree.map(lambda t, g: t + weight * g, total, grad)
                return total, metrics | {"loss": weight * loss}

            return lax.scan(add_step, total, part.steps)

        return at_width(add_steps, num_atoms[rows], widths)

    parts = parts_by_size(num_atoms, grad_accum)
    total, metrics = lax.scan(add_part, jax.tree.map(jnp.zeros_like, params), parts)
    chosen = len(trajectory.steps.index) / schedule.num_recorded
    scale = 1 / (schedule.num_steps * chosen * grad_accum)
    gradient = jax.tree.map(lambda g: g * scale, total)
    loss = metrics.pop("loss").sum() * scale
    extremes = {
        "ratio_max": metrics.pop("ratio_max").max(),
        "ratio_min": metrics.pop("ratio_min").min(),
    }
    means = {name: value.mean() for name, value in metrics.items()}
    return gradient, means | extremes | {"loss": loss}


def make_gradient(
    params: Any, num_parts: int, *, reference_params: Any = None, **kwargs
) -> Callable[..., tuple[Any, dict[str, jax.Array]]]:
    """The gradient of one part of the crystals, each device's own, then their mean.

    Args:
      params: of the policy, or their shapes.
      num_parts: that the crystals of each device are cut into, in order.
      reference_params: of the original policy; see `grpo_loss`.
      **kwargs: of `trajectory_gradient`.

    Returns:
      (params, trajectory, advantage, number of the part) -> gradient, metrics.
    """
    specs = param_specs(params)

    def own_gradient(params, reference, trajectory, advantage, part):
        rows = jnp.arange(len(advantage)).reshape(num_parts, -1)[part]
        params, reference = (
            None if p is None else gather_params(p, specs) for p in (params, reference)
        )
        gradient, metrics = trajectory_gradient(
            params,
            take_crystals(trajectory, rows),
            advantage[rows],
            reference_params=reference,
            **kwargs,
        )
        extremes = metrics.pop("ratio_min"), metrics.pop("ratio_max")
        extremes = device_extremes(*extremes)
        metrics = device_mean(metrics)
        metrics |= {"ratio_min": extremes[0], "ratio_max": extremes[1]}
        return mean_gradient(gradient, specs), metrics

    compute = over_devices(
        own_gradient,
        in_specs=(
            specs,
            None if reference_params is None else specs,
            OWN_TRAJECTORY,
            CRYSTALS,
            P(),
        ),
        out_specs=(specs, P()),
    )
    return lambda params, *rest: compute(params, reference_params, *rest)


def take_crystals(
    trajectory: Trajectory, rows: jax.Array, width: int | None = None
) -> Trajectory:
    """The trajectory of some crystals, of which none has more than `width` atoms."""
    steps = trajectory.steps
    z, z_next = (x[:, rows, :width] for x in (steps.z, steps.z_next))
    steps = Step(steps.index, z, z_next, steps.log_prob[:, rows])
    condition = jax.tree.map(lambda x: x[rows], trajectory.condition)
    return Trajectory(steps, trajectory.mask[rows, :width], condition)


def update(
    params: Any,
    opt_state: Any,
    trajectory: Trajectory,
    advantage: jax.Array,
    *,
    optimizer: optax.GradientTransformation,
    num_inner_batch: int = 1,
    **gradient_kwargs,
) -> tuple[Any, Any, dict[str, jax.Array]]:
    """One iteration's optimiser steps.

    The crystals are split into `num_inner_batch` equal parts, in order, and each part
    is one step, so the later parts see a policy that has already moved. Under a mesh
    each device splits its own (`sharding.device_order` makes the parts the same), and
    the devices exchange one gradient per step. A step whose loss or gradient is not
    finite is skipped: it changes neither parameters nor the optimiser's state.

    Args:
      params: of the policy.
      opt_state: of the optimizer.
      trajectory: of B crystals.
      advantage: [B].
      optimizer: see `make_optimizer`.
      num_inner_batch: steps; divides B.
      **gradient_kwargs: of `trajectory_gradient`.

    Returns:
      New parameters and optimiser state; means of the metrics over the inner batches,
      and `skipped_updates`, how many were skipped.
    """
    gradient_of_part = make_gradient(params, num_inner_batch, **gradient_kwargs)

    def inner_step(carry, part):
        params, opt_state = carry
        gradient, metrics = gradient_of_part(params, trajectory, advantage, part)
        metrics["grad_norm"] = optax.global_norm(gradient)
        updates, new_opt_state = optimizer.update(gradient, opt_state, params)
        new = optax.apply_updates(params, updates), new_opt_state
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        metrics["skipped_updates"] = ~finite
        carry = jax.tree.map(functools.partial(jnp.where, finite), new, carry)
        return carry, metrics

    (params, opt_state), metrics = lax.scan(
        inner_step, (params, opt_state), jnp.arange(num_inner_batch)
    )
    first_ratio = metrics["ratio"][0]
    means = {name: value.mean() for name, value in metrics.items()}
    means["ratio_max"] = metrics["ratio_max"].max()
    means["ratio_min"] = metrics["ratio_min"].min()
    means["skipped_updates"] = metrics["skipped_updates"].sum()
    return params, opt_state, means | {"ratio_first": first_ratio}


def make_optimizer(
    lr: float,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    warmup_steps: int = 0,
) -> optax.GradientTransformation:
    """AdamW behind a clip of the gradient's global norm.

    The learning rate rises linearly over `warmup_steps`: AdamW's first steps move every
    parameter by the whole of it, whatever the gradient, and undo some of what a policy
    could do.
    """
    warmup = optax.linear_schedule(lr / (warmup_steps + 1), lr, warmup_steps)
    return optax.chain(
        optax.clip_by_global_norm(max_grad_norm),
        optax.adamw(warmup, weight_decay=weight_decay),
    )


def reference_kl(
    params: Any,
    reference_params: Any,
    trajectory: Trajectory,
    *,
    model: Generator,
    schedule: Schedule,
    num_steps: int,
    eta: float = 1.0,
    cfg_scale: float | None = None,
    parts: int = 1,
) -> jax.Array:
    """KL of the policy from the original one, nats per coordinate and step, [].

    The closed form between the two Gaussians of a step, averaged over crystals and over
    `num_steps` steps of the trajectory at equal distances: two denoiser calls a step,
    so a few steps cost little beside the update's T. `parts`: see `buckets`.
    """
    total = len(trajectory.steps.index)
    picked = jnp.asarray(
        [(2 * i + 1) * total // (2 * num_steps) for i in range(num_steps)]
    )
    specs = param_specs(params)

    def own_kl(params, reference, trajectory):
        both = (gather_params(p, specs) for p in (params, reference))
        steps = jax.tree.map(lambda x: x[picked], trajectory.steps)
        kl = _trajectory_kl(
            jax.tree.map(lambda *x: jnp.stack(x), *both),
            trajectory.replace(steps=steps),
            parts,
            model=model,
            schedule=schedule,
            eta=eta,
            cfg_scale=cfg_scale,
        )
        return device_mean(kl)

    return over_devices(own_kl, in_specs=(specs, specs, OWN_TRAJECTORY), out_specs=P())(
        params, reference_params, trajectory
    )


def _trajectory_kl(both, trajectory, parts, *, model, schedule, eta, cfg_scale):
    """Mean over crystals and steps; `both`: the two policies, stacked."""
    num_atoms = trajectory.mask.sum(-1)

    def part_kl(rows):
        def kl_at(width):
            part = take_crystals(trajectory, rows, width)

            def kl(step):
                def gaussian(policy_params):
                    denoiser = model.denoiser(
                        policy_params, part.mask, part.condition, cfg_scale
                    )
                    return denoise_step(
                        denoiser, step.z, step.index, schedule=schedule, eta=eta
                    )

                # Both policies by the same compiled code.
                mean, std = lax.map(gaussian, both)
                return gaussian_kl(mean[0], std[0], mean[1], std[1], part.mask).mean()

            return lax.map(kl, part.steps)

        return at_width(kl_at, num_atoms[rows], widths)

    # Every second width: a few steps cost less than what they take to compile.
    widths = network_widths(model, schedule)[::-2][::-1]
    return lax.map(part_kl, parts_by_size(num_atoms, parts)).mean()

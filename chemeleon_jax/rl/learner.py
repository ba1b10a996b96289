"""`train_step`: what turns rewards into a better policy."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from chemeleon_jax.data.types import TrainState, Trajectory
from chemeleon_jax.devices.sharding import (
    CRYSTALS,
    device_extremes,
    device_mean,
    gather_params,
    mean_gradient,
    over_devices,
    param_specs,
)
from chemeleon_jax.models.buckets import at_width, microbatches_by_size
from chemeleon_jax.models.optimizer import apply_gradient, moving_average
from chemeleon_jax.rl.config import GRPOConfig
from chemeleon_jax.rl.forward_process import (
    awm_loss,
    nft_loss,
    noise_latents,
    noise_to_steps,
)
from chemeleon_jax.rl.objective import (
    OWN_COPIES,
    OWN_TRAJECTORY,
    grpo_loss,
    noise_level_weights,
    reference_kl,
)
from chemeleon_jax.rl.replay import Replayed, join_minibatches, to_trajectory
from chemeleon_jax.rl.sampler import Sampler

KL_EVERY = 12  # steps of a trajectory per one at which the KL to the original is taken


def init_state(policy: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first iteration."""
    return TrainState(
        iteration=jnp.array(0),
        params=policy,
        opt_state=optimizer.init(policy),
        ema_params=jax.tree.map(jnp.array, policy),
        skipped=jnp.array(0),
    )


def compile_train_step(
    state: TrainState,
    trajectory: Trajectory,
    advantage: jax.Array,
    *,
    config: GRPOConfig,
    optimizer: optax.GradientTransformation,
    **inputs,
) -> jax.stages.Compiled:
    """`train_step` of these inputs' shapes, compiled; takes 20 s where they are large.

    The state is in its place on the mesh that is set, and the step leaves it there. It
    is not donated: a signal during the step saves it. Trajectory and advantage may be
    their shapes and places. `config` and `optimizer` are no arguments of the compiled
    step; the other keywords (`inputs`) are.
    """
    mesh = jax.sharding.get_mesh()
    places = jax.tree.map(lambda x: x.sharding, state), NamedSharding(mesh, P())
    step = functools.partial(train_step, config=config, optimizer=optimizer)
    jitted = jax.jit(step, out_shardings=places)
    return jitted.lower(state, trajectory, advantage, **inputs).compile()


def train_step(
    state: TrainState,
    trajectory: Trajectory,
    advantage: jax.Array,
    *,
    sampler: Sampler,
    config: GRPOConfig,
    optimizer: optax.GradientTransformation,
    reference_params: Any,
    timesteps: jax.Array | None = None,
    replayed: tuple[Replayed, jax.Array] | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One iteration's updates, the average of policies, and the KL from the original.

    The metric `kl_div` is the loss's own where GRPO needs it. Else it is that of the
    policy before it, at a twelfth of the trajectory's steps, which is cheap.

    Args:
      state: before the iteration.
      trajectory: of B crystals.
      advantage: [B].
      sampler: that of the rollout.
      config: see `GRPOConfig`.
      optimizer: see `make_optimizer`.
      reference_params: of the original policy.
      timesteps: those that are trained on [M], descending; all by default.
      replayed: crystals that are trained on too, and the key of their noise.

    Returns:
      The state after it, and metrics: see `update`, and `skipped_in_a_row`, iterations
      in a row with an update that was skipped.
    """
    if timesteps is not None:
        trajectory = trajectory.at(timesteps)
    in_loss, grpo = config.kl_target == "reference", config.objective == "grpo"
    measured = {}
    if not (in_loss and grpo):
        measured["kl_div"] = original_kl(
            state.params, reference_params, trajectory, sampler=sampler, config=config
        )
    if replayed is not None:
        trajectory, advantage = join_minibatches(
            (trajectory, advantage),
            (to_trajectory(*replayed), replayed[0].advantage),
            config.num_inner_batch,
        )
    old = state.ema_params if config.sample_average else state.params
    params, opt_state, metrics = update(
        state.params,
        state.opt_state,
        trajectory if grpo else noise_latents(trajectory, config),
        advantage,
        sampler=sampler,
        config=config,
        optimizer=optimizer,
        old_params=None if grpo else old,
        reference_params=reference_params if in_loss else None,
    )
    state = state.replace(
        iteration=state.iteration + 1,
        params=params,
        opt_state=opt_state,
        # A short run's average is then not just the policy that it started from.
        ema_params=moving_average(
            state.ema_params, params, state.iteration, config.ema_decay, warmup=2
        ),
        skipped=jnp.where(metrics["skipped_updates"] > 0, state.skipped + 1, 0),
    )
    return state, metrics | measured | {"skipped_in_a_row": state.skipped}


def original_kl(
    params: Any,
    reference_params: Any,
    trajectory: Trajectory,
    *,
    sampler: Sampler,
    config: GRPOConfig,
) -> jax.Array:
    """`reference_kl` at a twelfth of the steps; of noised latents, if there are none.

    In the second case with all noise that a step can draw: without any, no policy but
    the original one would have a finite KL.
    """
    recorded = config.objective == "grpo"
    taken = trajectory.steps.timestep if recorded else sampler.schedule.model_timesteps
    num_steps = max(len(taken) // KL_EVERY, 1)
    if not recorded:
        sampler = sampler.replace(eta=1.0, decoder_scale=None)
        trajectory = noise_to_steps(trajectory, sampler, num_steps)
    return reference_kl(
        params,
        reference_params,
        trajectory,
        sampler=sampler,
        num_steps=num_steps,
        num_microbatches=config.num_inner_batch * config.grad_accum,
    )


def update(
    params: Any,
    opt_state: Any,
    trajectory: Trajectory,
    advantage: jax.Array,
    *,
    sampler: Sampler,
    config: GRPOConfig,
    optimizer: optax.GradientTransformation,
    old_params: Any = None,
    reference_params: Any = None,
) -> tuple[Any, Any, dict[str, jax.Array]]:
    """One iteration's optimiser steps.

    The crystals are split into `config.num_inner_batch` equal minibatches, in order,
    and each is one step, so the later ones see a policy that has already moved. Under a
    mesh each device splits its own (`sharding.device_order` makes the minibatches the
    same), and the devices exchange one gradient per step. A step whose loss or gradient
    is not finite is skipped: it changes neither parameters nor the moments of AdamW.

    Arguments as in `train_step`, but that the trajectory's steps are what the objective
    learns from, see `noise_latents`; `old_params`, of the policy that sampled, and
    `reference_params` only where the loss needs them.

    Returns:
      New parameters and optimiser state; means of the metrics over the minibatches, and
      `skipped_updates`, how many were skipped.
    """
    chex.assert_rank(
        [advantage, trajectory.mask, trajectory.steps.z],
        [1, 2, 4],
        custom_message="advantage [B], mask [B, N], z [S, B, N, L]",
    )
    chex.assert_equal_shape_prefix([advantage, trajectory.mask], 1)
    gradient_of = make_gradient(
        params,
        sampler=sampler,
        config=config,
        old_params=old_params,
        reference_params=reference_params,
    )

    def inner_step(carry, minibatch):
        params, opt_state = carry
        gradient, metrics = gradient_of(params, trajectory, advantage, minibatch)
        params, opt_state, own = apply_gradient(
            params, opt_state, gradient, metrics["loss"], optimizer
        )
        own = {"grad_norm": own["grad_norm"], "skipped_updates": own["skipped"]}
        return (params, opt_state), metrics | own

    (params, opt_state), metrics = lax.scan(
        inner_step, (params, opt_state), jnp.arange(config.num_inner_batch)
    )
    first_ratio = metrics["ratio"][0]
    means = {name: value.mean() for name, value in metrics.items()}
    means["ratio_max"] = metrics["ratio_max"].max()
    means["ratio_min"] = metrics["ratio_min"].min()
    means["skipped_updates"] = metrics["skipped_updates"].sum()
    return params, opt_state, means | {"ratio_first": first_ratio}


def make_gradient(
    params: Any,
    *,
    sampler: Sampler,
    config: GRPOConfig,
    old_params: Any = None,
    reference_params: Any = None,
) -> Callable[..., tuple[Any, dict[str, jax.Array]]]:
    """The gradient of one minibatch, each device's own, then their mean.

    Returns:
      (params, trajectory, advantage, number of the minibatch) -> gradient, metrics.
    """
    specs = param_specs(params)

    def own_gradient(params, others, trajectory, advantage, minibatch):
        rows = jnp.arange(len(advantage)).reshape(config.num_inner_batch, -1)[minibatch]
        params, old, reference = (
            None if p is None else gather_params(p, specs) for p in (params, *others)
        )
        gradient, metrics = trajectory_gradient(
            params,
            trajectory.crystals(rows),
            advantage[rows],
            sampler=sampler,
            config=config,
            old_params=old,
            on_policy=(minibatch == 0) & (not config.sample_average),
            reference_params=reference,
        )
        extremes = metrics.pop("ratio_min"), metrics.pop("ratio_max")
        extremes = device_extremes(*extremes)
        metrics = device_mean(metrics)
        metrics |= {"ratio_min": extremes[0], "ratio_max": extremes[1]}
        return mean_gradient(gradient, specs), metrics

    others = old_params, reference_params
    own = OWN_TRAJECTORY if config.objective == "grpo" else OWN_COPIES
    compute = over_devices(
        own_gradient,
        in_specs=(
            specs,
            tuple(None if p is None else specs for p in others),
            own,
            CRYSTALS,
            P(),
        ),
        out_specs=(specs, P()),
    )
    return lambda params, *rest: compute(params, others, *rest)


def trajectory_gradient(
    params: Any,
    trajectory: Trajectory,
    advantage: jax.Array,
    *,
    sampler: Sampler,
    config: GRPOConfig,
    old_params: Any = None,
    on_policy: jax.Array | bool = False,
    reference_params: Any = None,
) -> tuple[Any, dict[str, jax.Array]]:
    """Gradient of the loss over a trajectory, in memory that does not grow with it.

    Differentiating inside the scan keeps one step's activations alive; differentiating
    the scan itself would keep all of them. Steps count as `step_weights` says.

    The B crystals are scored in `config.grad_accum` microbatches, one after another:
    the gradient is the same, the memory that much smaller, and so is the padding
    (`buckets`). Arguments as in `update`; `on_policy` as in `awm_loss`.

    Returns:
      The gradient; the loss, and means of the metrics over steps (extremes for
      `ratio_min` and `ratio_max`).
    """
    chex.assert_equal_shape_prefix([advantage, trajectory.mask], 1)
    loss = {"grpo": grpo_loss, "awm": awm_loss, "nft": nft_loss}[config.objective]
    if config.objective != "grpo":
        loss = functools.partial(loss, old_params=old_params, on_policy=on_policy)
    loss_and_grad = jax.value_and_grad(loss, has_aux=True)
    weights = step_weights(trajectory, sampler, config) / config.grad_accum
    widths, dit = sampler.widths, sampler.model.dit
    if config.objective != "grpo" and dit.learn_sigma:
        widths = widths[-1:]  # the variance is trained too; see `network_widths`
    num_atoms = trajectory.mask.sum(-1)

    def add_microbatch(total, rows):
        def add_steps(width):
            some = trajectory.crystals(rows, width)

            def add_step(total, weighted_step):
                step, weight = weighted_step
                (loss, metrics), grad = loss_and_grad(
                    params,
                    step,
                    advantage[rows],
                    some.mask,
                    sampler=sampler,
                    config=config,
                    condition=some.condition,
                    reference_params=reference_params,
                )
                total = jax.tree.map(lambda t, g: t + weight * g, total, grad)
                return total, metrics | {"loss": weight * loss}

            return lax.scan(add_step, total, (some.steps, weights))

        return at_width(add_steps, num_atoms[rows], widths)

    microbatches = microbatches_by_size(num_atoms, config.grad_accum)
    zeros = jax.tree.map(jnp.zeros_like, params)
    gradient, metrics = lax.scan(add_microbatch, zeros, microbatches)
    loss = metrics.pop("loss").sum()
    extremes = {
        "ratio_max": metrics.pop("ratio_max").max(),
        "ratio_min": metrics.pop("ratio_min").min(),
    }
    means = {name: value.mean() for name, value in metrics.items()}
    return gradient, means | extremes | {"loss": loss}


def step_weights(
    trajectory: Trajectory, sampler: Sampler, config: GRPOConfig
) -> jax.Array:
    """What each step of a trajectory counts, [S]; of M noised copies 1 / M each.

    Losses of GRPO are summed over the steps and divided by T, the length of the
    schedule; where the trajectory holds a choice of the S steps (`timesteps`), these
    count for all. With `config.step_weight` steps count by their noise.
    """
    taken = len(trajectory.steps.timestep)
    if config.objective != "grpo":
        return jnp.full(taken, 1 / taken)
    schedule = sampler.schedule
    weights = jnp.ones(schedule.num_steps)
    if config.step_weight == "std":
        weights = noise_level_weights(schedule)
    chosen = taken / schedule.num_recorded
    return weights[trajectory.steps.timestep] / (schedule.num_steps * chosen)

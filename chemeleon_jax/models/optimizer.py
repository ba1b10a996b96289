"""What every training here shares: optimiser, learning rate, moving average."""

import logging
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

logger = logging.getLogger(__name__)


def make_optimizer(
    lr: float,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    warmup_steps: int = 0,
    num_steps: int | None = None,
) -> optax.GradientTransformation:
    """AdamW behind a clip of the gradient's global norm; skips what is not finite.

    A skipped gradient changes neither moments nor parameters, and counts as a step of
    the learning rate alone. How the rate goes up and down: see `learning_rate`.
    """
    direction = optax.chain(
        optax.clip_by_global_norm(max_grad_norm),
        optax.scale_by_adam(),
        optax.add_decayed_weights(weight_decay),
    )
    # After so many in a row it would apply them all the same: never.
    direction = optax.apply_if_finite(direction, np.iinfo(np.int32).max)
    rate = learning_rate(lr, warmup_steps, num_steps)
    return optax.chain(direction, optax.scale_by_learning_rate(rate))


def learning_rate(
    lr: float, warmup_steps: int = 0, num_steps: int | None = None
) -> optax.Schedule:
    """A linear warm-up, then a constant, or a cosine to zero at step `num_steps`.

    AdamW's first steps move every parameter by the whole rate, whatever the gradient,
    and undo some of what a trained policy could do. A warm-up that is longer than the
    training is cut to a tenth of it.
    """
    if num_steps is None:
        return optax.linear_schedule(lr / (warmup_steps + 1), lr, warmup_steps)
    if warmup_steps >= num_steps:
        logger.warning(
            "config.optimizer.warmup_steps = %d does not fit into config.num_steps = "
            "%d: the learning rate rises over %d steps",
            *(warmup_steps, num_steps, num_steps // 10),
        )
        warmup_steps = num_steps // 10
    return optax.warmup_cosine_decay_schedule(0.0, lr, warmup_steps, num_steps)


def apply_gradient(
    params: Any,
    opt_state: Any,
    gradient: Any,
    loss: jax.Array,
    optimizer: optax.GradientTransformation,
) -> tuple[Any, Any, dict[str, jax.Array]]:
    """One optimiser step; none where the loss or the gradient's norm is not finite.

    The loss [] may be NaN where its gradient is finite.

    Returns:
      Parameters and optimiser state after it; the metrics `grad_norm`, whether it was
      `skipped`, and how many were in a row and in total.
    """
    chex.assert_rank(loss, 0, custom_message="loss []")
    chex.assert_trees_all_equal_structs(gradient, params)
    norm = optax.global_norm(gradient)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    gradient = jax.tree.map(lambda g: jnp.where(finite, g, jnp.nan), gradient)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    metrics = {
        "grad_norm": norm,
        "skipped": ~finite,
        "skipped_in_a_row": optax.tree.get(opt_state, "notfinite_count"),
        "skipped_in_total": optax.tree.get(opt_state, "total_notfinite"),
    }
    return optax.apply_updates(params, updates), opt_state, metrics


def moving_average(
    average: Any, params: Any, count: jax.Array, decay: float, warmup: int
) -> Any:
    """The exponential moving average of parameters, after one more.

    A young average forgets its start quickly: of `count` values it keeps
    (1 + count) / (warmup + count), as TensorFlow's does, until that reaches `decay`.
    With a warm-up of 2 this is the plain mean of all, the start included.
    """
    kept = jnp.minimum(decay, (1 + count) / (warmup + count))
    return optax.incremental_update(params, average, 1 - kept)

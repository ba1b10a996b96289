"""Reward of a predicted property."""

import chex
import numpy as np

from chemeleon_jax.errors import UserError
from chemeleon_jax.rewards.analysis import Component, Context
from chemeleon_jax.workers.outcome import Status


def predictor_component(
    context: Context,
    *,
    property: str,
    target: float | None = None,
    clip_min: float | None = None,
    clip_max: float | None = None,
    ckpt_path: str = "",  # read by the program, which loads the model
) -> Component:
    """See `property_reward`."""
    del ckpt_path
    if context.predictor is None:
        raise ValueError("predictor needs a model: pass `predictor` to make_reward")
    known = list(context.predictor[1].targets)
    if property not in known:
        raise UserError(
            f"config.reward.components.predictor.property = {property!r}: the "
            f"predictor knows {', '.join(known)}"
        )
    column = known.index(property)

    def evaluate(batch):
        predicted = batch.computed["properties"][:, column]
        return property_reward(
            predicted,
            batch.valid,
            target=target,
            clip_min=clip_min,
            clip_max=clip_max,
        )

    return Component(evaluate, "properties")


def property_reward(
    predicted: np.ndarray,
    valid: np.ndarray,
    *,
    target: float | None = None,
    clip_min: float | None = None,
    clip_max: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """-(y - target)^2, or y where there is no target; y clipped first.

    Args:
      predicted: [B], in the property's units.
      valid: [B] bool.
      target: in the property's units.
      clip_min: smallest prediction believed; None is no bound.
      clip_max: largest.

    Returns:
      [B] values, 0 where the status is not OK; [B] status.
    """
    predicted = np.asarray(predicted, np.float64)
    chex.assert_rank(predicted, 1)  # [B]
    chex.assert_equal_shape([predicted, valid])
    status = np.where(np.isfinite(predicted), Status.OK, Status.BAD_VALUE)
    status = np.where(valid, status, Status.INVALID)
    y = np.where(status == Status.OK, predicted, 0.0)
    if clip_min is not None:
        y = np.maximum(y, clip_min)
    if clip_max is not None:
        y = np.minimum(y, clip_max)
    reward = y if target is None else -((y - target) ** 2)
    return np.where(status == Status.OK, reward, 0.0), status

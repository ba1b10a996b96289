"""Rewards of a conditional model: what was asked for, and each crystal once."""

import numpy as np

from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.rewards.analysis import Component, Context
from chemeleon_jax.rewards.drift import count_atoms
from chemeleon_jax.workers.outcome import Status


def uniqueness_component(context: Context) -> Component:
    """1 for the first valid crystal of its kind in the batch, else 0."""
    del context

    def evaluate(batch):
        return batch.matches.unique.astype(np.float64), batch.matches.status

    return Component(evaluate, penalty=0.0)


def asked_composition_component(context: Context) -> Component:
    """See `has_composition`."""
    del context

    def evaluate(batch):
        right = has_composition(batch.crystals, batch.asked)
        status = np.where(batch.valid, Status.OK, Status.INVALID)
        return right.astype(np.float64), status

    return Component(evaluate, penalty=0.0)


def has_composition(crystals: CrystalBatch, asked: np.ndarray | None) -> np.ndarray:
    """Whether crystals have the fractions of elements that they were asked for, [B].

    Args:
      crystals: B crystals, NumPy.
      asked: fractions [B, 100] by atomic number, NaN where nothing was; None if of no
        crystal. Such crystals are right.
    """
    if asked is None:
        return np.ones(len(crystals.mask), bool)
    counts = count_atoms(crystals)[:, : asked.shape[1] - 1]  # from hydrogen
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    # Two reduced formulas of 20 atoms differ by 1 / 380 or more in one fraction.
    right = (np.abs(fractions - asked[:, 1:]) < 1e-3).all(1)
    return right | np.isnan(asked).any(1)

"""Reward of symmetric crystals."""

from functools import partial

import numpy as np

from chemeleon_jax.rewards.analysis import Component, Context
from chemeleon_jax.workers.outcome import Status
from chemeleon_jax.workers.symmetry import SYMMETRY_TOLERANCE, symmetry_degree


def symmetry_component(
    context: Context, *, tolerance: float = SYMMETRY_TOLERANCE
) -> Component:
    """See `symmetry_degree`; `tolerance` in Å."""
    measure = partial(symmetry_degree, tolerance=tolerance)

    def evaluate(batch):
        values = np.zeros(len(batch.cells))
        status = np.where(batch.valid, Status.OK, Status.INVALID)
        valid = np.flatnonzero(batch.valid)
        outcomes = context.pool.map(measure, [batch.cells[i] for i in valid])
        for i, outcome in zip(valid, outcomes, strict=True):
            status[i] = outcome.status
            values[i] = outcome.value if outcome.status == Status.OK else 0.0
        return values, status

    return Component(evaluate, penalty=0.0)

"""Scores a batch on the host: NumPy, pymatgen and worker processes, no JAX call."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.rewards.components import Context, Facts

logger = logging.getLogger(__name__)


def score_on_host(terms, context: Context, crystals, computed) -> dict[str, Any]:
    """The callback: NumPy in, NumPy out, no JAX call in between."""
    facts = Facts(
        CrystalBatch(**{k: np.asarray(v) for k, v in vars(crystals).items()}),
        {name: _to_numpy(value) for name, value in computed.items()},
        context,
    )
    return fill_penalties(terms, evaluate_terms(terms, facts) | describe(facts))


def evaluate_terms(terms, facts: Facts) -> dict[str, Any]:
    """Values of each component, 0 where its status is not."""
    batch, values, status = len(facts.crystals.mask), {}, {}
    for term in terms:
        component = term.component
        failed = np.full(batch, component.statuses["RAISED"])
        values[term.name], status[term.name] = _attempt(
            partial(component.evaluate, facts), (np.zeros(batch), failed), term.name
        )
    return {
        "components": {k: v.astype(np.float32) for k, v in values.items()},
        "status": {k: v.astype(np.int32) for k, v in status.items()},
    }


def describe(facts: Facts) -> dict[str, np.ndarray]:
    """What is known of each crystal, whatever the components."""
    batch = len(facts.crystals.mask)
    none, above = np.zeros(batch, bool), np.full(batch, np.nan)
    flags = _attempt(
        lambda: (facts.matches.unique, facts.matches.novel), (none, none), "matches"
    )
    if "energy" in facts.computed:
        above = _attempt(lambda: facts.e_above_hull[0], above, "e_above_hull")
    return {
        "validity": facts.validity.astype(np.int32),
        "unique": flags[0],
        "novel": flags[1],
        "e_above_hull": above.astype(np.float32),
    }


def fill_penalties(terms, found: dict[str, Any]) -> dict[str, Any]:
    """Gives crystals without a value their penalty; tells who counts in means."""
    components, scored = {}, {}
    for term in terms:
        values, status = found["components"][term.name], found["status"][term.name]
        ok, penalty = status == 0, term.component.penalty
        if penalty is None:
            penalty = values[ok].min() if ok.any() else 0.0
        components[term.name] = np.where(ok, values, penalty).astype(np.float32)
        # A penalty that is a value of its own kind counts in the mean.
        scored[term.name] = ok | (term.component.penalty is not None)
    return found | {"components": components, "scored": scored}


def _to_numpy(value):
    if isinstance(value, tuple):
        return tuple(np.asarray(v) for v in value)
    return np.asarray(value)


def _attempt(function: Callable, fallback, what: str):
    """`function()`; a fault of ours must not end a run of days, but be seen."""
    try:
        return function()
    except Exception:
        logger.exception("%s could not be computed for a whole batch", what)
        return fallback

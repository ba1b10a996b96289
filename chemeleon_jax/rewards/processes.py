"""Scores a batch by all processes of a run, each its share.

What models compute is shared by rows. What a crystal's formula decides (matching,
creativity) and other work on single crystals is shared by formula: crystals that are
compared with each other are then on one process, so that nothing but its results is
exchanged, and no reward depends on the number of processes. Components that compare all
crystals are computed by the first process.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from chemeleon_jax.data.crystals import formula_key, take
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.devices import distributed
from chemeleon_jax.rewards.components import Facts
from chemeleon_jax.rewards.creativity import Met, References, by_formula
from chemeleon_jax.rewards.reward import (
    Reward,
    RewardOutput,
    combine,
    compute_features,
)
from chemeleon_jax.rewards.scoring import describe, evaluate_terms, fill_penalties


def make_score(
    reward: Reward,
    *,
    group_size: int,
    component_group_size: int | None = None,
    with_energies: bool = False,
) -> Callable[..., RewardOutput]:
    """`compute_rewards` by all processes, compiled once.

    Args:
      reward: on every process, with a worker pool of its own.
      group_size: see `compute_rewards`, also for the others.
      component_group_size: likewise.
      with_energies: likewise.

    Returns:
      crystals (NumPy) -> rewards (NumPy). All processes must call it, with the same
      crystals; `recent`: see `Recent`; and `ahead`, of a process that is alone: what
      `make_meet` found of the same crystals.
    """
    features = jax.jit(
        partial(compute_features, reward=reward, with_energies=with_energies)
    )
    finish = jax.jit(
        partial(
            combine,
            reward=reward,
            group_size=group_size,
            component_group_size=component_group_size,
        ),
        static_argnames="with_energies",
    )

    def score(
        crystals: CrystalBatch,
        recent: References | None = None,
        ahead: Met | None = None,
    ) -> RewardOutput:
        batch, processes = len(crystals.mask), jax.process_count()
        # Equal shares, filled up with the first crystals: one shape, compiled once.
        rows = np.arange(-(-batch // processes) * processes) % batch
        mine = rows.reshape(processes, -1)[jax.process_index()]
        computed = jax.device_get(features(take(crystals, mine)))
        computed = jax.tree.map(
            lambda x: x.reshape(-1, *x.shape[2:])[:batch], distributed.gather(computed)
        )
        context = reward.context
        facts = partial(Facts, context=context, recent=recent, ahead=ahead)
        found = score_by_formula(reward.terms, facts, crystals, computed)
        return jax.device_get(finish(found, with_energies="energy" in computed))

    return score


def make_meet(reward: Reward) -> Callable[..., Met]:
    """Compares crystals (NumPy) with references, ahead of the rest of a score."""

    def meet(crystals: CrystalBatch, recent: References | None = None) -> Met:
        return Facts(crystals, {}, reward.context, recent).met

    return meet


def score_by_formula(
    terms, facts: Callable[..., Facts], crystals: CrystalBatch, computed: dict[str, Any]
) -> dict[str, Any]:
    """What `scoring.score_on_host` finds, each process its formulas."""
    owner = owners(crystals, jax.process_count())
    rows = np.flatnonzero(owner == jax.process_index())
    mine = facts(take(crystals, rows), jax.tree.map(lambda x: x[rows], computed))
    singly = [term for term in terms if not term.component.of_batch]
    share = blank(singly, len(owner)) | blank_description(len(owner))
    if len(rows):
        found = evaluate_terms(singly, mine) | describe(mine)
        jax.tree.map(lambda all, own: all.__setitem__(rows, own), share, found)

    together = [term for term in terms if term.component.of_batch]
    whole = blank(together, len(owner))
    if distributed.is_first():
        whole = evaluate_terms(together, facts(crystals, computed))

    shares, whole = distributed.gather((share, whole))
    found = jax.tree.map(lambda x: x[owner, np.arange(len(owner))], shares)
    whole = jax.tree.map(lambda x: x[0], whole)
    found |= {name: found[name] | whole[name] for name in whole}
    return fill_penalties(terms, found)


def owners(crystals: CrystalBatch, num_processes: int) -> np.ndarray:
    """The process of each crystal, [B]: by reduced formula, with even loads."""
    owner = np.zeros(len(crystals.mask), int)
    formulas = enumerate(zip(crystals.atom_types, crystals.mask, strict=True))
    members = by_formula({i: formula_key(types[mask]) for i, (types, mask) in formulas})
    loads = np.zeros(num_processes, int)
    for rows in sorted(members.values(), key=len, reverse=True):
        owner[rows] = loads.argmin()
        loads[loads.argmin()] += len(rows)
    return owner


def blank(terms, batch: int) -> dict[str, Any]:
    """What `scoring.evaluate_terms` returns, zeros."""
    names = [term.name for term in terms]
    return {
        "components": {name: np.zeros(batch, np.float32) for name in names},
        "status": {name: np.zeros(batch, np.int32) for name in names},
    }


def blank_description(batch: int) -> dict[str, np.ndarray]:
    """What `scoring.describe` returns, zeros."""
    return {
        "validity": np.zeros(batch, np.int32),
        "unique": np.zeros(batch, bool),
        "novel": np.zeros(batch, bool),
        "e_above_hull": np.zeros(batch, np.float32),
    }

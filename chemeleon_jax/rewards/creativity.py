"""Reward of crystals that are new and unlike each other."""

from collections.abc import Mapping
from enum import IntEnum

import chex
import numpy as np

from chemeleon_jax.data.crystals import formula_key
from chemeleon_jax.rewards.analysis import Component, Context
from chemeleon_jax.rewards.matches import Matches, References, fill_cache
from chemeleon_jax.workers.matching import Cell, amd_of_cell
from chemeleon_jax.workers.outcome import Outcome, Status
from chemeleon_jax.workers.pool import Pool

AMD_ZERO = 1e-5  # Å, the same crystal: ten times what float32 coordinates resolve


class CreativityStatus(IntEnum):
    """What became of a crystal: a `Status`, or one of those added here."""

    OK = Status.OK
    INVALID = Status.INVALID
    RAISED = Status.RAISED
    TIMED_OUT = Status.TIMED_OUT
    DIED = Status.DIED
    BAD_VALUE = Status.BAD_VALUE
    OUT_OF_MEMORY = Status.OUT_OF_MEMORY
    FEW_ELEMENTS = 7
    SEEN_BEFORE = 8


def creativity_component(
    context: Context, *, max_amd: float | None = 1.0, min_elements: int = 1
) -> Component:
    """See `creativity`."""

    def evaluate(batch):
        return creativity(
            batch.cells,
            batch.matches,
            context.references,
            context.pool,
            max_amd=max_amd,
            min_elements=min_elements,
            seen=batch.reference_matches.seen,
        )

    return Component(evaluate, penalty=0.0, statuses=CreativityStatus)


def creativity(
    cells: list[Cell],
    matches: Matches,
    references: References,
    pool: Pool,
    *,
    max_amd: float | None = 1.0,
    min_elements: int = 1,
    seen: Mapping[int, Outcome] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Creativity reward (Chemeleon2, arXiv:2511.07158).

    1 for a crystal that is unique and novel, 0 for one that is neither. For one of
    them, the smallest non-zero AMD distance (Chebyshev metric, Å) to the reference and
    generated crystals of the same reduced formula; 0 where there is no such crystal.

    Args:
      cells: B crystals.
      matches: of the same crystals.
      references: the known crystals.
      pool: worker processes.
      max_amd: upper bound of the distance. Without one (None, as published) a copy with
        a stretched cell can earn more than a new crystal.
      min_elements: crystals of fewer are worth 0; 1 lets all pass.
      seen: whether crystals match one of the last iterations, by number; such are
        worth 0.

    Returns:
      [B] values, [B] status, a `CreativityStatus`.
    """
    flags = [matches.unique, matches.novel, matches.status]
    chex.assert_shape(flags, (len(cells),))  # [B]
    values = (matches.unique & matches.novel).astype(np.float64)
    status = matches.status.copy()
    between = np.flatnonzero(matches.unique != matches.novel)
    formulas = {i: formula_key(cells[i].atom_types) for i in between}
    needed = {f: None for f in formulas.values()}
    known = [r for f in needed for r in references.by_formula.get(f, ())]
    fill_cache(references.amd, known, amd_of_cell, references.cells, pool)
    alike = [i for f in needed for i in matches.alike[f]]
    own: dict[int, Outcome] = {}
    fill_cache(own, alike, amd_of_cell, cells, pool)
    for i, formula in formulas.items():
        others = [references.amd[r] for r in references.by_formula.get(formula, ())]
        others += [own[j] for j in matches.alike[formula] if j != i]
        status[i] = own[i].status
        if own[i].status == Status.OK:
            values[i] = _nearest(own[i].value, others)
    if max_amd is not None:
        values = np.minimum(values, max_amd)
    few = np.array([len(set(cell.atom_types.tolist())) for cell in cells])
    few = (status == Status.OK) & (few < min_elements)
    values[few], status[few] = 0.0, CreativityStatus.FEW_ELEMENTS
    for i, outcome in (seen or {}).items():
        if status[i] == Status.OK and outcome.status == Status.OK and outcome.value:
            values[i], status[i] = 0.0, CreativityStatus.SEEN_BEFORE
    return values, status


def _nearest(amd: np.ndarray, others: list[Outcome]) -> float:
    distances = [abs(amd - o.value).max() for o in others if o.status == Status.OK]
    return min((d for d in distances if d > AMD_ZERO), default=0.0)

"""How crystals relate to each other and to the known ones.

NumPy on the host; the comparisons themselves run in worker processes.
"""

import contextlib
import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import chex
import numpy as np

from chemeleon_jax.data.crystals import formula_key, formula_keys, take, to_numpy
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.workers.matching import (
    Cell,
    Fit,
    first_of_groups,
    fits,
    fits_any,
    reduce_cell,
    to_structure,
)
from chemeleon_jax.workers.outcome import Outcome, Status
from chemeleon_jax.workers.pool import Pool

logger = logging.getLogger(__name__)

_BLOCK = 32  # crystals of one formula that one worker compares among themselves


def to_cells(crystals: CrystalBatch) -> list[Cell]:
    """Crystals of a batch without their padding."""
    batch = to_numpy(crystals)
    with np.errstate(all="ignore"):
        matrices = batch.lattice
    return [
        Cell(matrix, types[mask], frac[mask])
        for matrix, types, frac, mask in zip(
            matrices, batch.atom_types, batch.frac_coords, batch.mask, strict=True
        )
    ]


@dataclass(frozen=True, eq=False)
class References:
    """The known crystals, by reduced formula.

    What is computed of one of them (reduced cell, AMD) is kept for the next call.
    """

    cells: Mapping[Any, Cell] | list[Cell]
    by_formula: dict[tuple[int, ...], list[Any]]
    reduced: dict[Any, Outcome] = field(default_factory=dict)
    amd: dict[Any, Outcome] = field(default_factory=dict)


def index_references(crystals: CrystalBatch) -> References:
    """Indexes the known crystals (NumPy batch) by reduced formula."""
    keys = formula_keys(np.where(crystals.mask, crystals.atom_types, 0))
    return References(to_cells(crystals), by_formula(dict(enumerate(keys))))


@contextlib.contextmanager
def index_recent(crystals: CrystalBatch, reduced: dict[Any, Outcome]):
    """Indexes crystals of earlier batches (NumPy), each under its own content.

    Args:
      crystals: rows without an atom count for nothing.
      reduced: reduced cells by content. Those that are used inside the context are
        added to it, and those of other crystals than these are dropped, after it.

    Yields:
      `References`.
    """
    cells = {
        tuple(array.tobytes() for array in cell): cell
        for cell in to_cells(take(crystals, np.flatnonzero(crystals.mask.any(1))))
    }
    # Other threads may change `reduced`: each has a copy of what it needs.
    own = {key: reduced[key] for key in list(reduced) if key in cells}
    formulas = {key: formula_key(cell.atom_types) for key, cell in cells.items()}
    yield References(cells, by_formula(formulas), own)
    reduced.update(own)
    for key in [key for key in list(reduced) if key not in cells]:
        reduced.pop(key, None)


@dataclass(frozen=True)
class Matches:
    """How the B crystals of a batch relate to each other and to the references."""

    unique: np.ndarray  # [B] bool, first of its group in batch order
    novel: np.ndarray  # [B] bool, matches no reference
    status: np.ndarray  # [B] int, a `Status`; not OK is neither
    alike: dict[tuple[int, ...], list[int]]  # comparable crystals by reduced formula


class ReferenceMatches(NamedTuple):
    """What comparing crystals with the known ones gave, by number of the crystal."""

    reduced: dict[int, Outcome]  # cells, where a known crystal has the formula
    known: dict[int, Outcome]  # whether one matches, where the cell could be reduced
    seen: dict[int, Outcome]  # likewise, of the recent ones


def match_references(
    cells: list[Cell],
    valid: np.ndarray,
    references: References,
    pool: Pool,
    recent: References | None = None,
) -> ReferenceMatches:
    """Compares each crystal with the references of its reduced formula.

    The part of `match_crystals` that needs no other crystal of the batch. `recent`:
    crystals of earlier batches, to compare with too.
    """
    formulas = {i: formula_key(cells[i].atom_types) for i in np.flatnonzero(valid)}
    reduced: dict[int, Outcome] = {}
    found = []
    for others in (references, recent or References([], {})):
        shared = {i: f for i, f in formulas.items() if f in others.by_formula}
        fill_cache(reduced, list(shared), reduce_cell, cells, pool)
        comparable = {i: f for i, f in shared.items() if reduced[i].status == Status.OK}
        found.append(find_known(comparable, reduced, others, pool))
    return ReferenceMatches(reduced, *found)


def match_crystals(
    cells: list[Cell],
    valid: np.ndarray,
    references: References,
    pool: Pool,
    known: ReferenceMatches | None = None,
) -> Matches:
    """Compares crystals by StructureMatcher() within their reduced formula.

    Crystals are alike only where their reduced formula is, so hash tables by formula
    leave few pairs. A crystal that cannot be compared is set aside with a status and
    plays no part in the others' flags.

    Args:
      cells: B crystals.
      valid: [B] bool; the others are set aside unseen.
      references: the known crystals.
      pool: worker processes.
      known: `match_references` of the same crystals, if it is done.
    """
    chex.assert_shape(valid, (len(cells),))  # [B]
    known = known or match_references(cells, valid, references, pool)
    formulas = {i: formula_key(cells[i].atom_types) for i in np.flatnonzero(valid)}
    alike = by_formula(formulas)
    # The others were reduced for crystals of earlier batches, or not at all.
    compared = [
        i
        for i, f in formulas.items()
        if f in references.by_formula or len(alike[f]) > 1
    ]
    reduced = {i: known.reduced[i] for i in compared if i in known.reduced}
    fill_cache(reduced, compared, reduce_cell, cells, pool)

    status = np.where(valid, Status.OK, Status.INVALID)
    for i, outcome in (reduced | known.known).items():
        status[i] = outcome.status
    novel = valid & (status == Status.OK)
    for i, outcome in known.known.items():
        novel[i] &= not outcome.value

    unique = valid & (status == Status.OK)
    alike = by_formula({i: f for i, f in formulas.items() if status[i] == Status.OK})
    buckets = [members for members in alike.values() if len(members) > 1]
    for i, outcome in first_occurrences(buckets, reduced, pool).items():
        status[i] = outcome.status
        unique[i] = outcome.status == Status.OK and outcome.value
    novel &= status == Status.OK
    return Matches(unique, novel, status, alike)


def find_known(
    formulas: dict[int, tuple[int, ...]],
    reduced: dict[int, Outcome],
    references: References,
    pool: Pool,
    fit: Fit = fits,
) -> dict[int, Outcome]:
    """Whether crystals match a reference, by number.

    Args:
      formulas: of the crystals to compare, {number: formula_key}.
      reduced: their reduced cells.
      references: the known crystals.
      pool: worker processes.
      fit: what a match is; can be pickled.
    """
    known = [
        r
        for f in dict.fromkeys(formulas.values())
        for r in references.by_formula.get(f, ())
    ]
    _reduce_references(references, known, pool)
    items = [
        (
            reduced[i].value,
            [
                references.reduced[r].value
                for r in references.by_formula.get(formula, ())
                if references.reduced[r].status == Status.OK
            ],
            True,
        )
        for i, formula in formulas.items()
    ]
    found = pool.map(partial(fits_any, fit=fit), items)
    return dict(zip(formulas, found, strict=True))


def _reduce_references(references: References, wanted: list[Any], pool: Pool) -> None:
    """Reduces known crystals, and says which of them nothing can be compared with."""
    missing = [r for r in wanted if r not in references.reduced]
    fill_cache(references.reduced, missing, reduce_cell, references.cells, pool)
    for r in missing:
        outcome = references.reduced[r]
        if outcome.status != Status.OK:
            symbols = to_structure(references.cells[r]).composition.reduced_formula
            logger.warning(
                "a known crystal of %s (%s) cannot be compared: what is like it counts "
                "as novel. %s",
                symbols,
                f"number {r}" if isinstance(r, int) else "of an earlier iteration",
                outcome.message,
            )


def by_formula(formulas: Mapping[Any, tuple[int, ...]]) -> dict[tuple, list[Any]]:
    """Numbers of the crystals of each formula, in order."""
    groups = defaultdict(list)
    for i, formula in formulas.items():
        groups[formula].append(i)
    return dict(groups)


def fill_cache(cache: dict[Any, Outcome], wanted, function, cells, pool) -> None:
    """Computes `function(cells[i])` for each wanted i that the cache lacks."""
    missing = [i for i in wanted if i not in cache]
    outcomes = pool.map(function, [cells[i] for i in missing])
    cache.update(zip(missing, outcomes, strict=True))


def first_occurrences(
    buckets, reduced, pool: Pool, fit: Fit = fits
) -> dict[int, Outcome]:
    """Whether each crystal of each bucket is the first of its group.

    Large buckets go block by block, so that one formula that fills the batch still
    spreads over the workers: a block is compared with the firsts of earlier blocks, one
    crystal per task, and what remains of it with itself. The flags are those of
    comparing in order, `fit(first, crystal)`.
    """
    any_fits, firsts_of = partial(fits_any, fit=fit), partial(first_of_groups, fit=fit)
    flags: dict[int, Outcome] = {}
    firsts: dict[int, list[int]] = {b: [] for b in range(len(buckets))}
    for start in range(0, max(map(len, buckets), default=0), _BLOCK):
        block = {b: m[start : start + _BLOCK] for b, m in enumerate(buckets)}
        late = [(i, b) for b, members in block.items() for i in members if firsts[b]]
        items = [
            (reduced[i].value, [reduced[j].value for j in firsts[b]], False)
            for i, b in late
        ]
        for (i, _), outcome in zip(late, pool.map(any_fits, items), strict=True):
            if outcome.status != Status.OK or outcome.value:
                flags[i] = outcome._replace(value=False)
        rest = {
            b: [i for i in members if i not in flags] for b, members in block.items()
        }
        tasks = [b for b, members in rest.items() if members]
        groups = pool.map(
            firsts_of, [[reduced[i].value for i in rest[b]] for b in tasks]
        )
        for b, outcome in zip(tasks, groups, strict=True):
            if outcome.status == Status.OK:
                values = [outcome._replace(value=value) for value in outcome.value]
                found = dict(zip(rest[b], values, strict=True))
            else:
                found = _one_by_one(rest[b], reduced, pool, any_fits)
            flags |= found
            firsts[b] += [i for i, flag in found.items() if flag.value]
    return flags


def _one_by_one(members, reduced, pool: Pool, any_fits) -> dict[int, Outcome]:
    """Flags of a block of which one crystal raised, or all took too long together.

    What fails beside itself is set aside first, so that it costs no other its flag.
    """
    cells = [reduced[i].value for i in members]
    alone = pool.map(any_fits, [(cell, [cell], False) for cell in cells])
    flags, firsts = {}, []
    for i, cell, outcome in zip(members, cells, alone, strict=True):
        if outcome.status == Status.OK:
            (outcome,) = pool.map(any_fits, [(cell, firsts, False)])
        first = outcome.status == Status.OK and not outcome.value
        flags[i] = outcome._replace(value=first)
        if first:
            firsts.append(cell)
    return flags

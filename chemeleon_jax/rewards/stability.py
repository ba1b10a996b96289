"""Energies above the convex hull, and what they make of a crystal. NumPy."""

from collections.abc import Sequence
from enum import IntEnum

import chex
import numpy as np

from chemeleon_jax.potentials.types import Status

METASTABLE = 0.1  # eV/atom above the hull
# Lower, it is rather an error of the potential, or a compound that the hull lacks, than
# a discovery: one known compound in thirteen is as far below the others
# (docs/potentials.md).
FAR_BELOW = -0.2  # eV/atom above the hull
# Of the atoms of a crystal. With more of one element it is diluted: it loses little by
# falling into that element and the rest, so that per atom it is always near the hull.
# Of the known compounds 2.6 % are.
MAX_FRACTION = 0.75


class EnergyStatus(IntEnum):
    """What became of a crystal: that of its potential, or one added here."""

    OK = Status.OK
    NOT_FINITE = Status.NOT_FINITE
    UNKNOWN_ELEMENT = Status.UNKNOWN_ELEMENT
    ISOLATED = Status.ISOLATED
    TOO_DENSE = Status.TOO_DENSE
    BAD_CELL = Status.BAD_CELL
    FAILED = Status.FAILED
    NO_HULL = 7
    INVALID = 8
    RAISED = 9
    FEW_ELEMENTS = 10
    FEW_HULL_ENTRIES = 11
    FAR_BELOW_HULL = 12
    DISPUTED = 13
    UNBALANCED = 14
    NOT_NEW = 15
    DILUTED = 16


def is_metastable(e_above_hull):
    """At most `METASTABLE` above the hull, eV/atom; not where that is NaN."""
    return e_above_hull <= METASTABLE


def is_msun(e_above_hull, unique, novel):
    """Metastable, unique and novel: what a generator is for."""
    return is_metastable(e_above_hull) & unique & novel


def judge_energies(hull, atom_types, energy, status, valid):
    """Energies above the hull of the crystals that have any.

    Args:
      hull: `potentials.hull.Hull`.
      atom_types: [B, N].
      energy: [B] eV/atom, of the potential that made the hull.
      status: [B] int, `potentials.types.Status`.
      valid: [B] bool.

    Returns:
      [B] eV/atom, NaN where the status is not OK; [B] status, `EnergyStatus`.
    """
    chex.assert_rank(atom_types, 2)  # [B, N]
    chex.assert_shape([energy, status, valid], (len(atom_types),))  # [B]
    status = np.where(valid, status, EnergyStatus.INVALID)
    energy = np.where(status == EnergyStatus.OK, energy, np.nan)
    above = hull.e_above_hull(atom_types, energy)
    status = np.where(
        (status == EnergyStatus.OK) & ~np.isfinite(above), EnergyStatus.NO_HULL, status
    )
    return above, status


def combine_opinions(
    opinions: Sequence[tuple[np.ndarray, np.ndarray]], how: str = "max"
) -> tuple[np.ndarray, np.ndarray]:
    """One energy above the hull of what several potentials say, and its status.

    Args:
      opinions: of each potential, as `judge_energies` returns them.
      how: "max", the largest, or "mean_plus_spread", mean plus range.

    Returns:
      [B] eV/atom, NaN where one potential has none; [B] the first status not OK.
    """
    above = np.stack([above for above, _ in opinions])
    combined = above.max(0) if how == "max" else above.mean(0) + np.ptp(above, axis=0)
    statuses = np.stack([status for _, status in opinions])
    first = (statuses != EnergyStatus.OK).argmax(0)
    return combined, statuses[first, np.arange(len(first))]


def disagreement(opinions: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Range of the energies above the hull over the potentials, [B] eV/atom."""
    return np.ptp(np.stack([above for above, _ in opinions]), axis=0)

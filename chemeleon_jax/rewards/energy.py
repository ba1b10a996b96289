"""Reward of a low energy above the convex hull. NumPy on the host."""

import numpy as np

METASTABLE = 0.1  # eV/atom above the hull
# Lower, it is rather an error of the potential, or a compound that the hull lacks, than
# a discovery: one known compound in nine is as far below the others
# (docs/notebook/guards.md).
FAR_BELOW = -0.2  # eV/atom above the hull
# What became of a crystal: the statuses of `potentials`, then those added here.
REASONS = ("ok", "not_finite", "unknown_element", "isolated", "too_dense")
REASONS += ("bad_cell", "failed", "no_hull", "invalid", "raised")
REASONS += ("few_elements", "few_hull_entries", "far_below_hull")
NO_HULL, INVALID, _, FEW_ELEMENTS, FEW_HULL_ENTRIES, FAR_BELOW_HULL = range(
    7, len(REASONS)
)


def judge_energies(hull, atom_types, energy, status, valid):
    """Energies above the hull of the crystals that have any.

    Args:
      hull: `potentials.hull.Hull`.
      atom_types: [B, N].
      energy: [B] eV/atom, of the potential that made the hull.
      status: [B] int, index into `potentials.STATUS`.
      valid: [B] bool.

    Returns:
      [B] eV/atom, NaN where the status is not 0; [B] status, index into `REASONS`.
    """
    status = np.where(valid, status, INVALID)
    energy = np.where(status == 0, energy, np.nan)
    above = hull.e_above_hull(atom_types, energy)
    status = np.where((status == 0) & ~np.isfinite(above), NO_HULL, status)
    return above, status


def guard_energies(
    hull,
    cells,
    above,
    status,
    *,
    min_elements: int,
    min_hull_entries: int,
    min_e_above_hull: float | None = None,
):
    """Sets crystals aside whose energy above the hull is easy to lower.

    Where a chemical system has no known compound, the hull is a plane between the
    elements, and almost any compound of it lies low; a crystal of one element need only
    repeat its structure; and where the potential errs far from what it was trained on,
    a crystal can lie below anything that exists.

    Args:
      hull: `potentials.hull.Hull`.
      cells: B crystals.
      above: [B] energy above the hull, eV/atom.
      status: [B] int, index into `REASONS`.
      min_elements: crystals of fewer have no value; 1 lets all pass.
      min_hull_entries: compositions of the chemical system that the hull must know,
        pure elements not counted; 0 lets all pass.
      min_e_above_hull: eV/atom; crystals below have no value; None lets all pass.

    Returns:
      [B] status.
    """
    status = status.copy()
    for i in np.flatnonzero(status == 0):
        elements = set(cells[i].atom_types.tolist())
        if len(elements) < min_elements:
            status[i] = FEW_ELEMENTS
        elif hull.num_entries(elements) - len(elements) < min_hull_entries:
            status[i] = FEW_HULL_ENTRIES
        elif min_e_above_hull is not None and above[i] < min_e_above_hull:
            status[i] = FAR_BELOW_HULL
    return status


def energy_reward(
    e_above_hull: np.ndarray, clip_max: float = 1.0, decay: float = 0.0
) -> np.ndarray:
    """Minus the energy above the hull, clipped to [0, clip_max] eV/atom.

    With a `decay`, 1 - exp(-e / d) takes the place of e. It levels off above d: then
    the few crystals near the hull count, where a mean of e is one of the worst.

    Args:
      e_above_hull: [B] eV/atom; NaN where there is none, which counts as `clip_max`.
      clip_max: eV/atom; crystals above it are all alike to the reward. The published
        value is 1; a weak model, whose crystals mostly lie higher, learns from more.
      decay: d, eV/atom; 0 for none, as published.

    Returns:
      [B], -clip_max to 0, or above -1.
    """
    above = np.clip(np.nan_to_num(e_above_hull, nan=clip_max), 0.0, clip_max)
    return np.expm1(-above / decay) if decay else -above

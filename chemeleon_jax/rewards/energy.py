"""Reward of a low energy above the convex hull. NumPy on the host."""

import numpy as np

METASTABLE = 0.1  # eV/atom above the hull
FAILED_ENERGY = 1.0  # eV/atom, what a crystal without an energy counts as

# What became of a crystal: the statuses of `potentials`, then those added here.
REASONS = ("ok", "not_finite", "unknown_element", "isolated", "too_dense")
REASONS += ("bad_cell", "failed", "no_hull", "invalid", "raised")
NO_HULL, INVALID = 7, 8


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


def energy_reward(e_above_hull: np.ndarray) -> np.ndarray:
    """Minus the energy above the hull, clipped to [0, 1] eV/atom.

    Args:
      e_above_hull: [B] eV/atom; NaN where there is none, which counts as 1.

    Returns:
      [B], -1 to 0.
    """
    energy = np.nan_to_num(e_above_hull, nan=FAILED_ENERGY)
    return -np.clip(energy, 0.0, FAILED_ENERGY)

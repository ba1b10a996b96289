"""Reward of a low energy above the convex hull. NumPy on the host."""

import chex
import numpy as np

from chemeleon_jax.rewards.analysis import Component, Context
from chemeleon_jax.rewards.stability import EnergyStatus, disagreement
from chemeleon_jax.workers.outcome import Status


def energy_component(
    context: Context,
    *,
    clip_max: float = 1.0,
    decay: float = 0.0,
    min_elements: int = 1,
    min_hull_entries: int = 0,
    min_e_above_hull: float | None = None,
    max_fraction: float = 1.0,
    max_disagreement: float | None = None,
    charge_balanced: bool = False,
    new_only: bool = False,
) -> Component:
    """Minus the energy above the hull, see `energy_reward` and `guard_energies`.

    With `max_disagreement` crystals have no value where the potentials are further
    apart than that, in eV/atom; with `charge_balanced` where charges cannot balance;
    with `new_only` where they are not unique, novel and unlike recent ones.
    """

    def evaluate(batch):
        above, status = batch.e_above_hull
        status = guard_energies(
            next(iter(context.hulls.values())),
            batch.cells,
            above,
            status,
            min_elements=min_elements,
            min_hull_entries=min_hull_entries,
            min_e_above_hull=min_e_above_hull,
            max_fraction=max_fraction,
        )
        if max_disagreement is not None:
            disputed = disagreement(batch.opinions) > max_disagreement
            disputed &= status == EnergyStatus.OK
            status = np.where(disputed, EnergyStatus.DISPUTED, status)
        if charge_balanced:
            unbalanced = ~batch.charge_balanced & (status == EnergyStatus.OK)
            status = np.where(unbalanced, EnergyStatus.UNBALANCED, status)
        if new_only:
            known = ~batch.new & (status == EnergyStatus.OK)
            status = np.where(known, EnergyStatus.NOT_NEW, status)
        return energy_reward(above, clip_max, decay), status

    (lowest,) = energy_reward(np.array([np.nan]), clip_max, decay)
    return Component(evaluate, "energy", penalty=float(lowest), statuses=EnergyStatus)


def displacement_component(context: Context, *, clip_max: float = 1.0) -> Component:
    """Minus how far the atoms move when the crystal is relaxed, RMSD in Å.

    Args:
      context: unused.
      clip_max: Å; further is no worse, and a crystal that cannot be relaxed as bad.
    """
    del context

    def evaluate(batch):
        rmsd = batch.computed["rmsd"]
        status = np.where(np.isfinite(rmsd), Status.OK, Status.BAD_VALUE)
        status = np.where(batch.valid, status, Status.INVALID)
        return -np.clip(np.nan_to_num(rmsd), 0.0, clip_max), status

    return Component(evaluate, "relaxation", penalty=-clip_max)


def guard_energies(
    hull,
    cells,
    above,
    status,
    *,
    min_elements: int,
    min_hull_entries: int,
    min_e_above_hull: float | None = None,
    max_fraction: float = 1.0,
):
    """Sets crystals aside whose energy above the hull is easy to lower.

    Where a chemical system has no known compound, the hull is a plane between the
    elements, and almost any compound of it lies low; a crystal of one element need only
    repeat its structure; where the potential errs far from what it was trained on, a
    crystal can lie below anything that exists; and what is little more than one element
    lies near the hull because per atom little can be lost.

    Args:
      hull: `potentials.hull.Hull`.
      cells: B crystals.
      above: [B] energy above the hull, eV/atom.
      status: [B] int, `EnergyStatus`.
      min_elements: crystals of fewer have no value; 1 lets all pass.
      min_hull_entries: compositions of the chemical system that the hull must know,
        pure elements not counted; 0 lets all pass.
      min_e_above_hull: eV/atom; crystals below have no value; None lets all pass.
      max_fraction: of the atoms; crystals with more of one element have no value; 1
        lets all pass.

    Returns:
      [B] status.
    """
    chex.assert_shape([above, status], (len(cells),))  # [B]
    status = status.copy()
    for i in np.flatnonzero(status == EnergyStatus.OK):
        elements, counts = np.unique(cells[i].atom_types, return_counts=True)
        elements = set(elements.tolist())
        if len(elements) < min_elements:
            status[i] = EnergyStatus.FEW_ELEMENTS
        elif hull.num_entries(elements) - len(elements) < min_hull_entries:
            status[i] = EnergyStatus.FEW_HULL_ENTRIES
        elif counts.max() > max_fraction * counts.sum():
            status[i] = EnergyStatus.DILUTED
        elif min_e_above_hull is not None and above[i] < min_e_above_hull:
            status[i] = EnergyStatus.FAR_BELOW_HULL
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

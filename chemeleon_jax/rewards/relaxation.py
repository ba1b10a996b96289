"""Crystals relaxed, and judged by several potentials, on the device."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from chemeleon_jax.data.crystals import validity
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.devices.host import call_host
from chemeleon_jax.potentials.hull import Hull
from chemeleon_jax.potentials.relax import Relaxed, relax
from chemeleon_jax.potentials.types import Potential


def relax_valid(
    crystals: CrystalBatch, *, potential: Potential, hull: Hull, steps: int
) -> Relaxed:
    """Relaxes the valid ones of B crystals; the others stay as they are. Jits.

    Args:
      crystals: B crystals.
      potential: whose energies have gradients.
      hull: of the same potential; what is far above it is given up, see `relax`.
      steps: energies of a crystal, at most.
    """
    batch = len(crystals.mask)
    shapes = (
        jax.ShapeDtypeStruct((batch,), bool),
        jax.ShapeDtypeStruct((batch,), np.float32),
    )
    valid, hull_energy = call_host(partial(_prospects, hull), shapes, crystals)
    active = crystals.replace(mask=crystals.mask & valid[:, None])
    relaxed = relax(active, potential, steps, hull_energy=hull_energy)
    return relaxed.replace(crystals=relaxed.crystals.replace(mask=crystals.mask))


def _prospects(hull: Hull, crystals: CrystalBatch):
    """Which crystals are valid, [B] bool; energies of the hull, [B] eV/atom."""
    valid = validity(crystals) == 0
    energy = np.full(len(valid), np.nan, np.float32)
    for row in np.flatnonzero(valid):
        energy[row] = hull.hull_energy(crystals.atom_types[row][crystals.mask[row]])
    return valid, energy


def find_energies(
    _,
    crystals: CrystalBatch,
    relaxed: Relaxed | None,
    *,
    potentials: Sequence[Potential],
    relaxer: Potential | None,
) -> tuple[jax.Array, jax.Array]:
    """Energies of B crystals by each of P potentials, relaxed where they were.

    Args:
      crystals: as they are.
      relaxed: by `relaxer`; None where they were not.
      potentials: the P judges.
      relaxer: whose energies of the relaxed crystals are known.

    Returns:
      [B, P] eV/atom, NaN where there is none; [B, P] `potentials.types.Status`.
    """
    judged = crystals if relaxed is None else relaxed.crystals
    found = [
        (relaxed.energy, relaxed.status)
        if relaxed is not None and potential is relaxer
        else potential.energies(judged)
        for potential in potentials
    ]
    energy, status = zip(*found, strict=True)
    return jnp.stack(energy, 1), jnp.stack(status, 1)

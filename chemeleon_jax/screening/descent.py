"""Where softness leads: crystals at a saddle go down to a minimum beside it.

Many a crystal is relaxed into more symmetry than it has at rest, as cubic BaTiO3 is. It
is no less stable for that: the same crystal, a little distorted, has less energy.
"""

from functools import partial

import numpy as np
from pymatgen.core import Structure

from chemeleon_jax.data.crystals import read_structure
from chemeleon_jax.potentials.types import Potential
from chemeleon_jax.screening.sieve import MIN_DROP
from chemeleon_jax.screening.stability import Settled, refine, settle
from chemeleon_jax.screening.symmetry import symmetrise_all
from chemeleon_jax.workers.matching import cell_of, is_same
from chemeleon_jax.workers.outcome import Status
from chemeleon_jax.workers.pool import Pool
from chemeleon_jax.workers.symmetry import space_group

ROUGH_FORCE = 0.02  # eV/Å: what takes a crystal's place is relaxed further


def descend(
    saddles: list[Settled],
    ways: list[str],
    potential: Potential,
    pool: Pool,
    batch_size: int,
) -> list[dict]:
    """What becomes of crystals that a vibration or a strain makes lower in energy.

    Args:
      saddles: crystals.
      ways: what each is pushed along, "vibration" or "strain".
      potential: the one that they were settled by.
      pool: worker processes.
      batch_size: crystals at once.

    Returns:
      For each, JSON values: `descent`, with the way it went `along`, its
      `lowest_frequency` in THz and `lowest_stiffness` in GPa before, whether it has
      `converged`, the `drop` of energy in eV/atom, the `space_group` (None where spglib
      finds none), and whether it is the `same` crystal by `StructureMatcher`. If it is,
      and lower by `MIN_DROP`, also what `symmetrise_all` says of it, and its
      `stability`: it takes the place of the crystal that it was.
    """
    relax = partial(
        refine, potential=potential, batch_size=batch_size, max_force=ROUGH_FORCE
    )
    rests = relax([s.pushed[way] for s, way in zip(saddles, ways, strict=True)])
    pairs = [
        (cell_of(saddle.structure), cell_of(rest.structure))
        for saddle, rest in zip(saddles, rests, strict=True)
    ]
    same = [o.status == Status.OK and bool(o.value) for o in pool.map(is_same, pairs)]
    groups = pool.map(space_group, [cell for _, cell in pairs])
    records = [
        {
            "descent": {
                "along": way,
                "lowest_frequency": saddle.record["lowest_frequency"],
                "lowest_stiffness": saddle.record["lowest_stiffness"],
                "converged": rest.converged,
                "drop": saddle.energy - rest.energy,
                "same": alike,
                "space_group": group.value,
            }
        }
        for saddle, way, rest, alike, group in zip(
            saddles, ways, rests, same, groups, strict=True
        )
    ]

    def energies(structures: list[Structure]) -> np.ndarray:
        return np.array([result.initial_energy for result in relax(structures)])

    taken = [
        i
        for i, record in enumerate(records)
        if record["descent"]["converged"]
        and record["descent"]["same"]
        and record["descent"]["drop"] >= MIN_DROP
    ]
    symmetric = symmetrise_all([rests[i].structure for i in taken], energies, pool)
    primitives = [read_structure(record["primitive"]) for record in symmetric]
    settled = settle(primitives, potential, batch_size)
    for i, record, found in zip(taken, symmetric, settled, strict=True):
        records[i] |= record | {"stability": found.record}
    return records

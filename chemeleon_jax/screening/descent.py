"""Where softness leads: crystals at a saddle go down to a minimum beside it.

Many a crystal is relaxed into more symmetry than it has at rest, as cubic BaTiO3 is. It
is no less stable for that: a little distorted it has less energy.
"""

from functools import partial

import numpy as np
from pymatgen.core import Structure

from chemeleon_jax.data.crystals import read_structure
from chemeleon_jax.potentials.types import Potential
from chemeleon_jax.screening import sieve
from chemeleon_jax.screening.stability import Settled, refine, settle
from chemeleon_jax.screening.symmetry import symmetrise_all
from chemeleon_jax.workers.matching import cell_of, is_same
from chemeleon_jax.workers.outcome import Status
from chemeleon_jax.workers.pool import Pool
from chemeleon_jax.workers.symmetry import space_group

MAX_DESCENTS = 3  # of one crystal, after each other
ROUGH_FORCE = 0.02  # eV/Å: what takes a crystal's place is relaxed further


def descend_all(
    crystals: list[Settled],
    limits: sieve.Limits,
    potential: Potential,
    pool: Pool,
    batch_size: int,
) -> list[dict]:
    """What becomes of crystals that a vibration or a strain makes lower in energy.

    Each is pushed along its softest vibration or, with none below the limits or nothing
    to gain by it, strain; from where it came to rest again, up to `MAX_DESCENTS` times,
    until it is stable.

    Args:
      crystals: as they settled by the potential.
      limits: what counts as soft.
      potential: the one that they settled by.
      pool: worker processes.
      batch_size: crystals at once.

    Returns:
      For each, JSON values: its `descents`, see `descend`. If one led lower, also what
      `symmetrise_all` says of where it has come to rest, and its `stability`: it takes
      the place of the crystal that it was.
    """
    records: list[dict] = [{"descents": []} for _ in crystals]
    here = dict(enumerate(crystals))
    for _ in range(MAX_DESCENTS):
        ways = {}
        for i, crystal in here.items():
            descents = records[i]["descents"]
            if soft := sieve.weaknesses(crystal.record, descents, limits):
                ways[i] = soft[0]
        here = {i: here[i] for i in ways}
        if not here:
            break
        found = descend([*here.values()], [*ways.values()], potential, pool, batch_size)
        for i, (record, rest) in zip(ways, found, strict=True):
            descents = [*records[i]["descents"], record.pop("descent")]
            records[i] |= record | {"descents": descents}
            if rest is not None:
                here[i] = rest
            elif not sieve.is_flat(descents[-1]):
                del here[i]
    return records


def descend(
    saddles: list[Settled],
    ways: list[str],
    potential: Potential,
    pool: Pool,
    batch_size: int,
) -> list[tuple[dict, Settled | None]]:
    """Where crystals come to rest that are pushed along a "vibration" or a "strain".

    Returns:
      For each, JSON values, and the crystal that takes its place, if it is lower by
      `MIN_DROP`. The values are its `descent`: the way it went `along`, its
      `lowest_frequency` in THz and `lowest_stiffness` in GPa before, whether it has
      `converged`, the `drop` of energy in eV/atom, the `space_group` (None where spglib
      finds none), and whether it is the `same` crystal by `StructureMatcher`. Of those
      that take a place also what `symmetrise_all` says, and the `stability`.
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
    found: list[tuple[dict, Settled | None]] = [
        (
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
            },
            None,
        )
        for saddle, way, rest, alike, group in zip(
            saddles, ways, rests, same, groups, strict=True
        )
    ]

    def energies(structures: list[Structure]) -> np.ndarray:
        return np.array([result.initial_energy for result in relax(structures)])

    taken = [
        i
        for i, (record, _) in enumerate(found)
        if record["descent"]["converged"] and not sieve.is_flat(record["descent"])
    ]
    symmetric = symmetrise_all([rests[i].structure for i in taken], energies, pool)
    primitives = [read_structure(record["primitive"]) for record in symmetric]
    settled = settle(primitives, potential, batch_size)
    for i, record, rest in zip(taken, symmetric, settled, strict=True):
        found[i] = found[i][0] | record | {"stability": rest.record}, rest
    return found

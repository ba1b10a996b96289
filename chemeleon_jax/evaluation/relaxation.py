"""Lists of structures relaxed: in batches with a potential in JAX, or in workers."""

from functools import partial

import jax
import numpy as np
from pymatgen.core import Lattice, Structure

from chemeleon_jax.data.crystals import from_structures
from chemeleon_jax.data.lattice import lattice_matrix
from chemeleon_jax.potentials import relax
from chemeleon_jax.potentials.types import Potential, Status
from chemeleon_jax.workers import calculators
from chemeleon_jax.workers.calculators import RelaxedStructure

BATCH = 256  # crystals of up to `WIDTH` atoms at once, fewer larger ones
WIDTH = 20  # crystals up to this many atoms, or a multiple of it, are one compilation

_relax = jax.jit(relax.relax, static_argnames=("potential", "steps", "max_force"))


def relax_structures(
    structures: list[Structure],
    *,
    potential: Potential,
    max_steps: int = relax.MAX_STEPS,
    max_force: float = relax.MAX_FORCE,
    batch_size: int = BATCH,
    whole_batches: bool = False,
) -> list[RelaxedStructure]:
    """Relaxes ordered crystals of any size with a potential in JAX.

    At most `max_steps` energies each; `max_force`: see `relax.MAX_FORCE`. With
    `whole_batches` a batch of few is compiled as one of `batch_size`.
    """
    widths = np.array([-(-len(s) // WIDTH) * WIDTH for s in structures])
    results: dict[int, RelaxedStructure] = {}
    for width in np.unique(widths).tolist():
        rows = np.flatnonzero(widths == width).tolist()
        size = max(batch_size * WIDTH // width, 1)
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            chosen = [structures[i] for i in some]
            # Powers of two: few shapes, few compilations.
            count = min(size, 1 << (len(rows) - 1).bit_length())
            count = size if whole_batches else count
            batch = from_structures(chosen, width, count)
            found = jax.device_get(
                _relax(batch, potential=potential, steps=max_steps, max_force=max_force)
            )
            for row, (i, structure) in enumerate(zip(some, chosen, strict=True)):
                results[i] = _unpack(found, row, structure)
    return [results[i] for i in range(len(structures))]


def _unpack(found: relax.Relaxed, row: int, structure: Structure) -> RelaxedStructure:
    status = Status(int(found.status[row]))
    if status == Status.OK:
        crystals = found.crystals
        cell = lattice_matrix(crystals.lengths[row], crystals.angles[row])
        frac = crystals.frac_coords[row, : len(structure)].astype(float)
        structure = Structure(Lattice(cell.astype(float)), structure.species, frac)
    return RelaxedStructure(
        structure,
        float(found.energy[row]),
        float(found.initial_energy[row]),
        int(found.steps[row]),
        bool(found.converged[row]),
        rmsd=float(found.rmsd[row]),
        problem="" if status == Status.OK else status.name.lower(),
    )


def make_relaxation(potential: Potential, pool, *, time_limit: float, **limits):
    """Relaxes lists of structures with a potential of any kind.

    Crystals of an ASE calculator go one by one to worker processes, where each has a
    time limit in seconds. The other limits are `max_steps` and `max_force`.
    """
    if potential.name.startswith("ase:"):
        return partial(
            calculators.relax,
            potential=potential.name,
            pool=pool,
            time_limit=time_limit,
            **limits,
        )
    return partial(relax_structures, potential=potential, **limits)

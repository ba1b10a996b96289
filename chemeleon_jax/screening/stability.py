"""Whether a crystal stands still: its vibrations and its stiffness, at a minimum.

Both come from second derivatives of a supercell's energy, by a potential in JAX. Where
a vibration or a strain costs less than nothing, the crystal is at a saddle: `pushed`
along it, it is on its way off.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from pymatgen.core import Lattice, Structure

from chemeleon_jax.evaluation.relaxation import relax_structures
from chemeleon_jax.potentials.single import for_one
from chemeleon_jax.potentials.stiffness import STRAINS
from chemeleon_jax.potentials.types import Potential
from chemeleon_jax.screening.elasticity import stiffness
from chemeleon_jax.screening.force_constants import force_constants, repeat
from chemeleon_jax.screening.phonons import (
    frequencies,
    softest_mode,
    supercell_size,
    with_sum_rule,
)
from chemeleon_jax.workers.calculators import RelaxedStructure

MAX_FORCE = 0.005  # eV/Å, as in `potentials.relax`: a Hessian means little off it
MAX_STEPS = 200
PUSH = 0.2  # Å, of the atom that moves most along a soft mode
STRAIN = 0.03  # norm of the softest strain that a cell is pushed along
NUDGE = 0.01  # Å, of all atoms: out of what symmetry is left


@dataclass(frozen=True)
class Stability:
    """What second derivatives say of a crystal."""

    supercell: tuple[int, int, int]  # whose wave vectors were looked at
    lowest_frequency: float  # THz; below zero, imaginary; translations not counted
    lowest_at_gamma: float | None  # THz; None for one atom, which has no other modes
    wave_vector: tuple[float, float, float]  # of the lowest, reduced coordinates
    highest_frequency: float  # THz
    sum_rule: float  # eV/Å^2, the largest correction
    cell: list[list[float]]  # [3, 3] Å, the vectors that stiffness and waves refer to
    stiffness: list[list[float]]  # [6, 6] GPa, Voigt's notation
    lowest_stiffness: float  # GPa, eigenvalue of the tensor
    bulk_modulus: float  # GPa, Hill
    shear_modulus: float  # GPa, Hill


def refine(
    structures: list[Structure],
    potential: Potential,
    batch_size: int = 16,
    max_force: float = MAX_FORCE,
) -> list[RelaxedStructure]:
    """Crystals relaxed to their minima, as far as `max_force`, in eV/Å.

    Each on graphs of its own size: they are few, and some take long when most are done.
    """
    of_size: dict[Potential, list[int]] = {}
    for i, structure in enumerate(structures):
        of_size.setdefault(for_one(potential, structure), []).append(i)
    relaxed: dict[int, RelaxedStructure] = {}
    for sized, rows in of_size.items():
        found = relax_structures(
            [structures[i] for i in rows],
            potential=sized,
            max_steps=MAX_STEPS,
            max_force=max_force,
            batch_size=batch_size,
            whole_batches=True,  # of any number: few shapes, each compiled for a minute
        )
        relaxed |= dict(zip(rows, found, strict=True))
    return [relaxed[i] for i in range(len(structures))]


class Settled(NamedTuple):
    """A crystal where a potential's forces vanish."""

    structure: Structure
    energy: float  # eV/atom
    record: dict[str, Any]  # `Stability` as JSON values; {"problem": why there is none}
    pushed: dict[str, Structure]  # along the softest "vibration" and "strain"


def settle(
    structures: list[Structure], potential: Potential, batch_size: int = 16
) -> list[Settled]:
    """Crystals at their minima or saddles, and how they stand there."""
    settled = []
    for result in refine(structures, potential, batch_size):
        pushed = {}
        if not result.converged:
            record = {"problem": f"by {potential.name}, after {result.steps} steps"}
        else:
            try:
                found, pushed = look_around(result.structure, potential)
                record = asdict(found)
            except (ValueError, np.linalg.LinAlgError) as error:
                record = {"problem": str(error)}
        record["rmsd"] = float(np.nan_to_num(result.rmsd))
        settled.append(Settled(result.structure, result.energy, record, pushed))
    return settled


def look_around(
    structure: Structure, potential: Potential
) -> tuple[Stability, dict[str, Structure]]:
    """Vibrations and stiffness of a crystal at a minimum of a potential.

    Also the crystal pushed along its softest "vibration", in the smallest supercell
    that this fits, and along its softest "strain".

    Args:
      structure: a primitive cell.
      potential: a network in JAX.

    Raises:
      ValueError: the potential has no second derivatives there.
    """
    n, size = len(structure), supercell_size(structure)
    found = force_constants(structure, size, potential)
    constants, correction = with_sum_rule(found.atom_atom)
    modes = frequencies(constants, structure.atomic_numbers, size)
    at_gamma = constants.reshape(3 * n, -1, 3 * n).sum(1)
    elastic = stiffness(
        at_gamma, found.atom_strain, found.strain_strain, structure.volume
    )
    q = np.unravel_index(np.nanargmin(modes), modes.shape)[0]
    wave_vector = np.array(list(np.ndindex(*size)))[q] / np.array(size)
    stability = Stability(
        supercell=size,
        lowest_frequency=float(np.nanmin(modes)),
        lowest_at_gamma=float(modes[0, 0]) if n > 1 else None,
        wave_vector=tuple(wave_vector.tolist()),
        highest_frequency=float(np.nanmax(modes)),
        sum_rule=correction,
        cell=structure.lattice.matrix.tolist(),
        stiffness=elastic.matrix.tolist(),
        lowest_stiffness=elastic.lowest,
        bulk_modulus=elastic.bulk,
        shear_modulus=elastic.shear,
    )
    softest = softest_mode(constants, structure.atomic_numbers, size)
    return stability, {
        "vibration": push_atoms(structure, size, *softest),
        "strain": push_cell(structure, elastic.softest),
    }


def push_cell(structure: Structure, strain: np.ndarray) -> Structure:
    """A crystal strained by `STRAIN` along a strain [6] in the basis `STRAINS`."""
    change = np.eye(3) + STRAIN * np.einsum("k,kij->ij", strain, STRAINS)
    frac, vectors = structure.frac_coords, structure.lattice.matrix @ change
    return _nudged(Structure(Lattice(vectors), structure.species, frac))


def _nudged(structure: Structure) -> Structure:
    """All atoms moved by `NUDGE`, each its own way, always the same."""
    nudge = np.random.default_rng(0).normal(size=(len(structure), 3))
    nudge *= NUDGE / np.linalg.norm(nudge, axis=1, keepdims=True)
    coords = structure.cart_coords + nudge
    vectors, species = structure.lattice, structure.species
    return Structure(vectors, species, coords, coords_are_cartesian=True)


def push_atoms(
    structure: Structure,
    size: tuple[int, int, int],
    wave_vector: np.ndarray,
    moves: np.ndarray,
) -> Structure:
    """The smallest supercell that a mode fits, its atoms pushed along it by `PUSH`.

    The mode is one of those that fit a supercell of `size`; see `softest_mode`.
    """
    waves = np.rint(wave_vector * size).astype(int)
    period = [s // math.gcd(int(w), s) for w, s in zip(waves, size, strict=True)]
    other = repeat(structure, tuple(period))
    cells = np.array(list(np.ndindex(*period)))
    moved = np.real(np.exp(2j * np.pi * cells @ wave_vector)[:, None, None] * moves)
    moved = moved.reshape(-1, 3)
    moved *= PUSH / np.linalg.norm(moved, axis=1).max()
    coords = other.cart_coords + moved
    vectors, species = other.lattice, other.species
    return _nudged(Structure(vectors, species, coords, coords_are_cartesian=True))

"""Whether a crystal stands still: its vibrations and its stiffness, at a minimum.

Both come from second derivatives of a supercell's energy, by a potential in JAX.
"""

from dataclasses import asdict, dataclass

import numpy as np
from pymatgen.core import Structure

from chemeleon_jax.evaluation.relaxation import relax_structures
from chemeleon_jax.potentials.types import Potential
from chemeleon_jax.screening.elasticity import stiffness
from chemeleon_jax.screening.force_constants import force_constants
from chemeleon_jax.screening.phonons import frequencies, supercell_size, with_sum_rule
from chemeleon_jax.workers.calculators import RelaxedStructure

MAX_FORCE = 0.005  # eV/Å, as in `potentials.relax`: a Hessian means little off it
MAX_STEPS = 200


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
    structures: list[Structure], potential: Potential, batch_size: int = 16
) -> list[RelaxedStructure]:
    """Crystals relaxed to their minima, as far as `MAX_FORCE`."""
    return relax_structures(
        structures,
        potential=potential,
        max_steps=MAX_STEPS,
        max_force=MAX_FORCE,
        batch_size=batch_size,
    )


def find_stability(structure: Structure, potential: Potential) -> Stability:
    """Vibrations and stiffness of a crystal at a minimum of a potential.

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
    return Stability(
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


def stability_record(structure: Structure, potential: Potential) -> dict:
    """`find_stability` as JSON values, or why there is none."""
    try:
        return asdict(find_stability(structure, potential))
    except (ValueError, np.linalg.LinAlgError) as error:
        return {"problem": str(error)}

"""How tests/fixtures/sevennet_reference.npz was made: numbers of the `sevenn` package.

    pip install sevenn==0.13.0 torch
    python -m chemeleon_jax.sample --checkpoint=mini:ldm --num_samples=60 --seed=21 \
        --out=generated
    python -m tools.record_sevennet generated/crystals.jsonl \
        tests/fixtures/sevennet_reference.npz

60 crystals that a model generated, 60 of the embedded ones, and 20 of these with their
atoms moved by 0.15 Å and their cells strained by 5 %.
"""

import json
import sys

import numpy as np
from pymatgen.core import Structure
from sevenn.calculator import SevenNetCalculator

from chemeleon_jax.data.crystals import from_structures, take, to_structures
from chemeleon_jax.data.dataset import load_dataset

MODELS = {"0": "7net-0", "l3i5": "7net-l3i5"}  # name here -> name there
NUM_KNOWN, NUM_DISTORTED = 60, 20
MOVE, STRAIN = 0.15, 0.05  # Å on each coordinate; of each cell vector
UNKNOWN = range(84, 89)  # polonium to radium: not in the training set
SEED = 7


def known_structures() -> list[Structure]:
    """Embedded crystals of elements that the models know."""
    crystals = load_dataset("mp_mini").crystals
    known = np.flatnonzero(~np.isin(crystals.atom_types, UNKNOWN).any(1))
    rows = np.random.default_rng(SEED).choice(known, NUM_KNOWN, replace=False)
    return to_structures(take(crystals, np.sort(rows)))


def distort(structure: Structure, rng) -> Structure:
    """A copy with other positions and another cell."""
    structure = structure.copy()
    structure.apply_strain(rng.normal(0, STRAIN, 3).tolist())
    moved = structure.cart_coords + rng.normal(0, MOVE, structure.cart_coords.shape)
    return Structure(
        structure.lattice, structure.species, moved, coords_are_cartesian=True
    )


def main(generated: str, out: str) -> None:
    """Record energies, forces and stresses in the file `out`."""
    with open(generated) as file:
        made = [Structure.from_dict(json.loads(line)["structure"]) for line in file]
    known = known_structures()
    rng = np.random.default_rng(SEED)
    distorted = [distort(s, rng) for s in known[:NUM_DISTORTED]]
    crystals = from_structures(made + known + distorted)
    # What the tests will read, in single precision, is what the package sees too.
    structures = to_structures(crystals)
    arrays = {
        "atom_types": crystals.atom_types.astype(np.uint8),
        "frac_coords": crystals.frac_coords,
        "lengths": crystals.lengths,
        "angles": crystals.angles,
    }
    for name, theirs in MODELS.items():
        calculator = SevenNetCalculator(theirs, device="cpu")
        energy = np.full(len(structures), np.nan)  # NaN: an element it does not know
        forces = np.zeros(crystals.frac_coords.shape)
        stress = np.zeros((len(structures), 3, 3))
        for k, structure in enumerate(structures):
            if np.isin(structure.atomic_numbers, UNKNOWN).any():
                continue
            atoms = structure.to_ase_atoms()
            atoms.calc = calculator
            energy[k] = atoms.get_potential_energy() / len(atoms)  # eV/atom
            forces[k, : len(atoms)] = atoms.get_forces()  # eV/Å
            stress[k] = atoms.get_stress(voigt=False)  # eV/Å^3
        arrays |= {
            f"energy_{name}": energy.astype(np.float32),
            f"forces_{name}": forces.astype(np.float32),
            f"stress_{name}": stress.astype(np.float32),
        }
    np.savez_compressed(out, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])

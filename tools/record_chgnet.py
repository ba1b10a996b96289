"""How tests/fixtures/chgnet_reference.npz was made: numbers of the `chgnet` package.

pip install chgnet==0.4.2 torch
python -m tools.record_chgnet tests/fixtures/chgnet_reference.npz
"""

import sys

import numpy as np
from chgnet.model import CHGNet
from pymatgen.core import Structure

from chemeleon_jax.data.dataset import load_dataset

NUM_CRYSTALS = 50
SEED = 7


def main(out: str) -> None:
    """Record energies, forces and stresses of embedded crystals in the file `out`."""
    crystals = load_dataset("mp_mini").crystals
    size = len(crystals.atom_types)
    rows = np.random.default_rng(SEED).choice(size, NUM_CRYSTALS, replace=False)
    rows.sort()
    atom_types, frac_coords = crystals.atom_types[rows], crystals.frac_coords[rows]
    lattice = np.asarray(crystals.lattice, np.float64)[rows]

    model = CHGNet.load(use_device="cpu")
    energy, stress = np.zeros(len(rows)), np.zeros((len(rows), 3, 3))
    forces = np.zeros(frac_coords.shape)
    for k, types in enumerate(atom_types):
        n = np.count_nonzero(types)
        structure = Structure(lattice[k], types[:n], frac_coords[k, :n])
        prediction = model.predict_structure(structure, task="efs")
        energy[k] = prediction["e"]  # eV/atom
        forces[k, :n] = prediction["f"]  # eV/Å
        stress[k] = prediction["s"]  # GPa

    np.savez_compressed(
        out,
        atom_types=atom_types.astype(np.uint8),
        frac_coords=frac_coords,
        lengths=crystals.lengths[rows],
        angles=crystals.angles[rows],
        energy=energy.astype(np.float32),
        forces=forces.astype(np.float32),
        stress=stress.astype(np.float32),
    )


if __name__ == "__main__":
    main(sys.argv[1])

"""How tests/fixtures/nequix_reference.npz was made: numbers of the `nequix` package.

    pip install nequix==0.4.5
    python -m tools.record_pretrained_nequix nequix/models/nequix-oam-1-pft.nqx \
        tests/fixtures/sevennet_reference.npz tests/fixtures/nequix_reference.npz

Every fifth of the crystals of the record of SevenNet: generated, known, distorted.
"""

import sys

import numpy as np
from nequix.calculator import NequixCalculator
from pymatgen.core import Lattice, Structure

EVERY = 5


def main(checkpoint: str, crystals: str, out: str) -> None:
    """Record energies, forces and stresses in the file `out`."""
    calculator = NequixCalculator(model_path=checkpoint, use_kernel=False)
    with np.load(crystals) as f:
        rows = np.arange(0, len(f["atom_types"]), EVERY)
        arrays = {k: f[k][rows] for k in ("atom_types", "frac_coords")}
        cells = np.concatenate([f["lengths"], f["angles"]], 1)[rows]
    energy = np.zeros(len(rows), np.float32)
    forces = np.zeros(arrays["frac_coords"].shape, np.float32)
    stress = np.zeros((len(rows), 3, 3), np.float32)
    for k, (types, frac, cell) in enumerate(zip(*arrays.values(), cells, strict=True)):
        number = int((types > 0).sum())
        atoms = Structure(
            Lattice.from_parameters(*cell), types[:number], frac[:number]
        ).to_ase_atoms()
        atoms.calc = calculator
        energy[k] = atoms.get_potential_energy() / number  # eV/atom
        forces[k, :number] = atoms.get_forces()  # eV/Å
        stress[k] = atoms.get_stress(voigt=False)  # eV/Å^3
        print(k, energy[k], flush=True)
    np.savez_compressed(out, rows=rows, energy=energy, forces=forces, stress=stress)


if __name__ == "__main__":
    main(*sys.argv[1:])

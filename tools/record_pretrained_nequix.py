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

from tools.record_nequix import evaluate

EVERY = 5


def main(checkpoint: str, crystals: str, out: str) -> None:
    """Record energies, forces and stresses in the file `out`."""
    with np.load(crystals) as f:
        rows = np.arange(0, len(f["atom_types"]), EVERY)
        types, frac = f["atom_types"][rows], f["frac_coords"][rows]
        cells = np.concatenate([f["lengths"], f["angles"]], 1)[rows]
    structures = [
        Structure(Lattice.from_parameters(*cell), z[z > 0], x[z > 0])
        for z, x, cell in zip(types, frac, cells, strict=True)
    ]
    calculator = NequixCalculator(model_path=checkpoint, use_kernel=False)
    energy, forces, stress = evaluate(calculator, structures, types.shape[1])
    np.savez_compressed(out, rows=rows, energy=energy, forces=forces, stress=stress)


if __name__ == "__main__":
    main(*sys.argv[1:])

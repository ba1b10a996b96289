"""Compares our MP2020 corrections with pymatgen's, on all embedded crystals.

    python -m tools.check_corrections

Some ten minutes; prints every crystal on which they differ, in eV/atom.
"""

import numpy as np
from pymatgen.core import Structure
from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
from pymatgen.entries.computed_entries import ComputedStructureEntry

from chemeleon_jax.data.crystals import to_structures
from chemeleon_jax.data.dataset import load_dataset
from chemeleon_jax.potentials.corrections import mp2020_correction

SCHEME = MaterialsProject2020Compatibility(check_potcar=False)
METALS_WITH_U = SCHEME.u_settings  # {"O": {metal: U, eV}, "F": ...}


def pymatgen_correction(structure: Structure) -> float:
    """Correction by pymatgen, eV/atom, of a calculation with the Project's settings."""
    by_electronegativity = sorted(structure.elements, key=lambda el: el.X)
    u = METALS_WITH_U.get(by_electronegativity[-1].symbol, {})
    hubbards = {el.symbol: u[el.symbol] for el in structure.elements if el.symbol in u}
    entry = ComputedStructureEntry(
        structure,
        0.0,
        parameters={"run_type": "GGA+U" if hubbards else "GGA", "hubbards": hubbards},
    )
    return sum(change.value for change in SCHEME.get_adjustments(entry)) / len(
        structure
    )


def main() -> None:
    """Prints the differences."""
    structures = to_structures(load_dataset("mp_mini").crystals)
    largest, differing = 0.0, 0
    for i, structure in enumerate(structures):
        ours = mp2020_correction(
            np.array(structure.atomic_numbers),
            structure.frac_coords,
            structure.lattice.matrix,
        )
        theirs = pymatgen_correction(structure)
        largest = max(largest, abs(ours - theirs))
        if abs(ours - theirs) > 1e-6:
            differing += 1
            print(
                f"{i} {structure.formula}: {ours:.4f} here, {theirs:.4f} eV/atom there"
            )
    print(f"{len(structures)} crystals, {differing} differ, at most by {largest:.2g}")


if __name__ == "__main__":
    main()

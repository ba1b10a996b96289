"""MatterGen's checks of one crystal: contacts, charges, how far it relaxed.

By the definitions of MatterGen's `evaluate` (MIT; Zeni et al., Nature 639, 624, 2025;
commit ac9ddd4), written anew. Pymatgen and SMACT; runs in worker processes.
"""

from functools import lru_cache
from itertools import product

import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Element, Lattice, Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from chemeleon_jax.workers.matching import Cell, to_structure
from chemeleon_jax.workers.symmetry import without_c_messages

MIN_DISTANCE, MIN_VOLUME = 0.5, 0.1  # Å, Å³
MAX_RMSD = 0.5  # of (volume per atom)^(1/3), also where nothing matches
_ALIGNER = StructureMatcher(
    ltol=0.5, stol=MAX_RMSD, angle_tol=10, scale=False, attempt_supercell=True
)


def structure_valid(structure: Structure) -> bool:
    """No two atoms closer than 0.5 Å, an atom's own images apart; 0.1 Å³ or more."""
    distance = structure.distance_matrix
    np.fill_diagonal(distance, np.inf)
    return bool(distance.min() >= MIN_DISTANCE and structure.volume >= MIN_VOLUME)


def structure_valid_cell(cell: Cell) -> bool:
    """`structure_valid` of a crystal. Runs in a worker."""
    return structure_valid(to_structure(cell))


def composition_valid(formula: tuple[int, ...]) -> bool:
    """SMACT's rules as MatterGen asks them, for a formula key (Z1, n1, Z2, n2, ...).

    True of an element, of metals, and where one oxidation state per element, of all
    that SMACT knows, adds up to zero and the anions are more electronegative than the
    cations. False with an element whose electronegativity SMACT does not know.
    """
    elements, counts = formula[::2], formula[1::2]
    known = [_smact_element(z) for z in elements]
    if len(elements) == 1 or all(metal for metal, _, _ in known):
        return True
    states = [states for _, states, _ in known]
    electronegativity = [x for _, _, x in known]
    if None in electronegativity:
        return False
    return any(
        sum(n * state for n, state in zip(counts, chosen, strict=True)) == 0
        and _by_electronegativity(chosen, electronegativity)
        for chosen in product(*states)
    )


@lru_cache(maxsize=128)
def _smact_element(z: int) -> tuple[bool, tuple[int, ...], float | None]:
    """Whether an element is a metal, its oxidation states, its electronegativity."""
    import smact  # takes long to import

    element = smact.Element(Element.from_Z(z).symbol)
    return (
        element.symbol in smact.metals,
        tuple(element.oxidation_states or ()),
        element.pauling_eneg,
    )


def _by_electronegativity(states, electronegativity) -> bool:
    cations = [x for q, x in zip(states, electronegativity, strict=True) if q > 0]
    anions = [x for q, x in zip(states, electronegativity, strict=True) if q < 0]
    return not cations or not anions or max(cations) < min(anions)


def relaxation_rmsd(cells: tuple[Cell, Cell]) -> float:
    """How far the atoms of a crystal moved, in Å, from (first) to (second cell).

    The root mean square distance of the best alignment of the relaxed crystal with the
    reduced primitive cell of what it was, cells not scaled, times the cube root of the
    volume per atom of their mean cell; half of that where nothing aligns within it.
    """
    before, after = (to_structure(cell) for cell in cells)
    with without_c_messages():
        refined = SpacegroupAnalyzer(before).get_refined_structure()
    before = refined.get_primitive_structure().get_reduced_structure("LLL")
    found = _ALIGNER.get_rms_dist(after, before)
    pair = after.lattice.parameters, before.lattice.parameters
    mean_cell = Lattice.from_parameters(*np.mean(pair, axis=0))
    length = (mean_cell.volume / len(after)) ** (1 / 3)
    return float((MAX_RMSD if found is None else found[0]) * length)

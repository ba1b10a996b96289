"""LeMat-GenBench's checks of one crystal: its validity, and what it is like.

By the definitions of LeMat-GenBench (arXiv:2512.04562; Apache-2.0; commit 5bab2cd,
configuration `comprehensive_multi_mlip_hull`), written anew. Pymatgen; what runs in
worker processes takes a `Cell` and loads no JAX.
"""

from itertools import product
from typing import NamedTuple

import numpy as np
from pymatgen.analysis.bond_valence import BVAnalyzer, calculate_bv_sum
from pymatgen.analysis.local_env import get_neighbors_of_site_with_index
from pymatgen.analysis.molecule_structure_comparator import CovalentRadius
from pymatgen.core import Composition, Element, Structure
from pymatgen.io.cif import CifWriter
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from chemeleon_jax.evaluation.protocols.lemat_tables import OXIDATION_STATES
from chemeleon_jax.workers.matching import Cell, to_structure
from chemeleon_jax.workers.symmetry import without_c_messages

CONTACT_SCALE, CONTACT_MARGIN = 0.5, 0.7  # of the sum of radii; Å added to it
DEFAULT_RADIUS = 1.0  # Å, of an element without one
MASS_DENSITY = 0.01, 25.0  # g/cm³, bounds
ATOM_DENSITY = 1e-5, 0.5  # atoms/Å³
LENGTHS, MIN_VOLUME = (1.0, 100.0), 1.0  # Å, Å³, of a cell
METALLIC = 0.7  # SMACT's metallicity above which a composition needs no charges
MAX_CHARGE = 0.1  # that a cell may have


class Checks(NamedTuple):
    """What is known of one crystal."""

    charge: bool  # balanced
    distance: bool  # no contact too short
    plausible: bool  # density, cell, symmetry
    space_group: int  # number; 0 where spglib finds none
    packing: float  # factor, of spheres of the covalent radii, 1 at most

    @property
    def valid(self) -> bool:
        """Whether the crystal passes all three checks."""
        return self.charge and self.distance and self.plausible


def check(cell: Cell) -> Checks:
    """All checks of one crystal. Runs in a worker."""
    structure = to_structure(cell)
    with without_c_messages():
        number = space_group_number(structure)
        return Checks(
            charge_balanced(structure),
            distances_valid(structure),
            plausible(structure, number),
            number,
            packing_factor(structure),
        )


def space_group_of(cell: Cell) -> int:
    """Number of the space group within pymatgen's default 0.01 Å. Runs in a worker."""
    with without_c_messages():
        return space_group_number(to_structure(cell))


def space_group_number(structure: Structure) -> int:
    """1 to 230, within 0.01 Å and 5 degrees; 0 where spglib finds none."""
    try:
        return int(structure.get_space_group_info()[1])
    except Exception:  # pymatgen's TypeError and ValueError, spglib's own
        return 0


# ------------------------------------------------------------------------- charges


def charge_balanced(structure: Structure) -> bool:
    """Whether charges balance, by the first of these that applies.

    1. SMACT's metallicity of the composition is above 0.7, or every bond valence sum
       vanishes: metals, which need no charges.
    2. `BVAnalyzer` of pymatgen finds oxidation states: their sum decides.
    3. The composition can be neutral, see `composition_balanced`.

    An error of step 2 that is none of its own makes a crystal unbalanced.
    """
    if _is_metallic(structure):
        return True
    try:
        charged = BVAnalyzer().get_oxi_state_decorated_structure(structure)
        states = [site.specie.oxi_state or 0 for site in charged]
        return bool(abs(sum(states)) <= MAX_CHARGE)
    except ValueError:
        return composition_balanced(structure.composition)
    except Exception:
        return False


def _is_metallic(structure: Structure) -> bool:
    from smact.metallicity import metallicity_score  # takes long to import

    try:
        if metallicity_score(Composition(structure.formula)) > METALLIC:
            return True
        symmetrized = SpacegroupAnalyzer(structure).get_symmetrized_structure()
        sites = [sites[0] for sites in symmetrized.equivalent_indices]
        return all(abs(_bond_valence(structure, i)) < 1e-15 for i in sites)
    except Exception:  # of an element that SMACT does not know, or of spglib
        return False


def _bond_valence(structure: Structure, site: int) -> float:
    return calculate_bv_sum(
        structure[site], get_neighbors_of_site_with_index(structure, site)
    )


def composition_balanced(composition: Composition) -> bool:
    """Whether oxidation states that occur can add up to zero.

    The atoms of an element have one state, or two that differ by 1, and do not add up
    to zero among themselves. The states are those of `OXIDATION_STATES`; of the
    elements that it lacks none is known, and a composition with one is unbalanced.
    Where they do not balance, those of pymatgen's `Element.oxidation_states` are tried:
    one balance has to correlate negatively with the electronegativity.
    """
    amounts = {el.symbol: int(n) for el, n in composition.reduced_composition.items()}
    if any(el not in OXIDATION_STATES for el in amounts):
        return False
    sums = [_sums(OXIDATION_STATES[el], n) for el, n in amounts.items()]
    if _can_be_zero(sums):
        return True
    sums = [_sums(Element(el).oxidation_states, n) for el, n in amounts.items()]
    balances = _balances(sums) if _can_be_zero(sums) else []
    electronegativity = [Element(el).X for el in amounts]
    counts = np.array(list(amounts.values()))
    with np.errstate(invalid="ignore", divide="ignore"):
        return any(
            np.corrcoef(np.array(x) / counts, electronegativity)[0, 1] < 0
            for x in balances
        )


def _sums(states, count: int) -> set[int]:
    """What `count` atoms add up to, in one state or two neighbouring ones, but 0."""
    found = {a * count + k for a in states if a + 1 in states for k in range(count + 1)}
    return (found | {a * count for a in states}) - {0}


def _can_be_zero(sums: list[set[int]]) -> bool:
    reached = {0}
    for some in sums:
        reached = {a + b for a in reached for b in some}
    return 0 in reached


def _balances(sums: list[set[int]]):
    """Every choice of one of each that adds up to 0."""
    *others, last = sums
    return (
        (*chosen, -sum(chosen)) for chosen in product(*others) if -sum(chosen) in last
    )


# ------------------------------------------------------------------------ geometry


def distances_valid(structure: Structure) -> bool:
    """No two atoms closer than half of 0.7 Å plus the sum of their atomic radii.

    Atomic radii of pymatgen (Slater's), 1 Å without one. An atom's own images do not
    count.
    """
    radius = np.array(
        [site.specie.atomic_radius or DEFAULT_RADIUS for site in structure]
    )
    least = CONTACT_SCALE * (CONTACT_MARGIN + radius[:, None] + radius)
    one, other = np.triu_indices(len(structure), 1)
    return bool((structure.distance_matrix >= least)[one, other].all())


def plausible(structure: Structure, space_group: int) -> bool:
    """Densities and cell within bounds, a space group, and a CIF can be written."""
    lattice = structure.lattice
    least, most = MASS_DENSITY
    fewest, densest = ATOM_DENSITY
    shortest, longest = LENGTHS
    try:
        str(CifWriter(structure))
    except Exception:
        return False
    return bool(
        least <= structure.density <= most
        and fewest <= len(structure) / structure.volume <= densest
        and lattice.volume > MIN_VOLUME
        and all(shortest <= length <= longest for length in lattice.abc)
        and all(0 < angle < 180 for angle in lattice.angles)
        and 1 <= space_group <= 230
    )


def packing_factor(structure: Structure) -> float:
    """Share of the cell in spheres of covalent radii, 1 at most; NaN without one."""
    radii = [
        CovalentRadius.radius.get(site.specie.symbol, np.nan) for site in structure
    ]
    filled = 4 / 3 * np.pi * (np.array(radii) ** 3).sum()
    return float(np.minimum(filled / structure.volume, 1.0))

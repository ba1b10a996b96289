"""MatterGen's matcher: crystals that differ in who sits where may be one alloy.

After `DefaultDisorderedStructureMatcher` of MatterGen (MIT; Zeni et al., Nature 639,
624, 2025; commit ac9ddd4), written anew. Pymatgen only: it runs in worker processes.
"""

from functools import lru_cache
from itertools import combinations

from pymatgen.analysis.structure_matcher import (
    OrderDisorderElementComparator,
    StructureMatcher,
)
from pymatgen.core import Element, Structure

from chemeleon_jax.workers import matching
from chemeleon_jax.workers.matching import Cell, to_structure

MAX_RADIUS_DIFFERENCE = 0.3  # of the mean of the two atomic radii
MAX_ELECTRONEGATIVITY_DIFFERENCE = 1.0  # Pauling's
_MATCHER = StructureMatcher(
    attempt_supercell=True,
    allow_subset=True,
    comparator=OrderDisorderElementComparator(),
)


def fits(one: Cell, other: Cell) -> bool:
    """Whether two reduced cells of one reduced formula match, ordered or as an alloy.

    They match where StructureMatcher's defaults say so. Else the elements of the first
    that may substitute each other share their sites, each by its amount, and a site
    that it may hold counts as matched.
    """
    if matching.fits(one, other):
        return True
    structure = to_structure(one)
    groups = substitutable(tuple(sorted(el.Z for el in structure.composition)))
    if not groups:
        return False
    return bool(_MATCHER.fit(disordered(structure, groups), to_structure(other)))


def fits_earlier(earlier: Cell, later: Cell) -> bool:
    """`fits`, the later crystal first, as MatterGen looks for duplicates."""
    return fits(later, earlier)


def all_that_fit(crystals: tuple[Cell, list[Cell]]) -> list[int]:
    """Which of others of the same formula a reduced crystal matches."""
    cell, others = crystals
    return [i for i, other in enumerate(others) if fits(cell, other)]


@lru_cache(maxsize=65536)
def may_substitute(one: int, other: int) -> bool:
    """Whether two elements may sit on one site: a Hume-Rothery rule, by atomic number.

    Atomic radii within 30 % of their mean, and electronegativities within 1. Elements
    without a radius do not substitute.
    """
    a, b = Element.from_Z(one), Element.from_Z(other)
    if not (a.atomic_radius and b.atomic_radius):
        return False
    radii = float(a.atomic_radius), float(b.atomic_radius)
    difference = abs(radii[0] - radii[1]) / (sum(radii) / 2)
    return (
        difference <= MAX_RADIUS_DIFFERENCE
        and abs(a.X - b.X) <= MAX_ELECTRONEGATIVITY_DIFFERENCE
    )


@lru_cache(maxsize=65536)
def substitutable(elements: tuple[int, ...]) -> tuple[frozenset[int], ...]:
    """Groups of elements that may substitute each other, also by way of a third."""
    groups: list[frozenset[int]] = []
    for pair in combinations(elements, 2):
        if may_substitute(*pair):
            touched = [group for group in groups if group & set(pair)]
            groups = [group for group in groups if group not in touched]
            groups.append(frozenset(pair).union(*touched))
    return tuple(groups)


def disordered(structure: Structure, groups: tuple[frozenset[int], ...]) -> Structure:
    """A copy in which the elements of each group share their sites."""
    amounts = {el: n for el, n in structure.composition.items()}
    shared = structure.copy()
    for group in groups:
        members = {el: n for el, n in amounts.items() if el.Z in group}
        total = sum(members.values())
        mixture = {el: n / total for el, n in members.items()}
        shared.replace_species(dict.fromkeys(members, mixture))
    return shared

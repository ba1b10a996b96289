"""How chemeleon_jax/assets/references.npz was made: elements, and missing binaries.

    python -m tools.build_references packages references.npz   # 45 minutes of one core

Elements: the structures of the `matcalc` 0.3.3 wheel (BSD; PBE ground states of 89
elements from MatPES).

Binaries: mp_mini lacks many simple compounds, Y2O3, CaI2 or CsF, so that whatever holds
their elements would look stable. For each metal and anion whose charges balance in a
composition that mp_mini does not have, the binary prototypes of the AFLOW library (Mehl
et al., Comput. Mater. Sci. 136, S1 (2017); part of pymatgen) are tried: a few steps by
CHGNet, the best four relaxed, the best two of these relaxed by SevenNet-l3i5, the best
kept. One that is not the true structure lies too high, and leaves a part of the gap.
Where the two potentials differ by 0.2 eV/atom or more, one of them is lost (UF6, CrI6,
TeF6): nothing is kept.
"""

import argparse
import gzip
import hashlib
import json
import warnings
import zipfile
from collections.abc import Iterator
from math import gcd
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY
from pymatgen.core import Composition, Element, Structure

from chemeleon_jax.data.crystals import from_structures, to_structures
from chemeleon_jax.data.dataset import MAX_ATOMS, load_dataset
from chemeleon_jax.evaluation.relaxation import relax_structures
from chemeleon_jax.potentials.hull import evaluate
from chemeleon_jax.potentials.loading import load_potential

WHEEL = "matcalc-0.3.3-py3-none-any.whl"
ELEMENTS = "matcalc/elemental_refs/MatPES-PBE-Element-Refs.json.gz"
ANIONS = {"H": 1, "N": 3, "O": 2, "F": 1, "P": 3, "S": 2, "Cl": 1, "As": 3, "Se": 2}
ANIONS |= {"Br": 1, "Sb": 3, "Te": 2, "I": 1}
NO_CATIONS = "He Ne Ar Kr Xe H C N O F P S Cl Se Br I".split()
SMALL = 9  # atoms; larger prototypes only where there are few, or of these ratios
LARGE_RATIOS = (2, 3), (1, 4), (3, 4), (2, 5)
LARGE_PEARSON = "oP12", "mP12"  # of ratio 1 to 2: cotunnite, baddeleyite
SAME_ENERGY, SAME_VOLUME = 2e-4, 0.02  # eV/atom, relative: one structure found twice
MAX_DISAGREEMENT = 0.2  # eV/atom


class Prototype(NamedTuple):
    """A structure of two elements, and which of them there is less of."""

    pearson: str
    structure: Structure
    rare: Element
    frequent: Element


class Candidate(NamedTuple):
    """A structure of a composition, and its energy in eV/atom."""

    formula: str
    structure: Structure
    energy: float = np.nan


def read_elements(packages: Path) -> list[Structure]:
    """The ground state of each element, from the wheel in folder `packages`."""
    with zipfile.ZipFile(packages / WHEEL) as wheel:
        records = json.loads(gzip.decompress(wheel.read(ELEMENTS)))
    return [Structure.from_dict(records[e]["structure"]) for e in sorted(records)]


def read_prototypes() -> dict[tuple[int, int], list[Prototype]]:
    """Binary prototypes of at most 20 atoms by the ratio of their elements."""
    found: dict[tuple[int, int], list[Prototype]] = {}
    for entry in AFLOW_PROTOTYPE_LIBRARY:
        structure = entry["snl"].structure.get_primitive_structure()
        amounts = sorted(structure.composition.items(), key=lambda item: item[1])
        symbols = [element.symbol for element, _ in amounts]
        if len(amounts) != 2 or len(structure) > MAX_ATOMS or symbols == ["C", "O"]:
            continue
        (rare, few), (frequent, many) = amounts
        divisor = gcd(int(few), int(many))
        ratio = int(few) // divisor, int(many) // divisor
        pearson = entry["tags"]["aflow"].split("_")[1]
        large = ratio in LARGE_RATIOS or (ratio == (1, 2) and pearson in LARGE_PEARSON)
        if len(structure) <= SMALL or large:
            prototype = Prototype(pearson, structure, rare, frequent)
            found.setdefault(ratio, []).append(prototype)
    return found


def missing_compounds(
    metals: list[Element], known: set[str]
) -> Iterator[tuple[Element, Element, int, int]]:
    """Cation, anion, and how many of each: charges balance, and it is not known."""
    for cation in metals:
        if cation.symbol in NO_CATIONS:
            continue
        for symbol, charge in ANIONS.items():
            anion = Element(symbol)
            for state in cation.common_oxidation_states:
                if state <= 0 or cation == anion or cation.X >= anion.X:
                    continue
                divisor = gcd(state, charge)
                amounts = charge // divisor, state // divisor
                formula = Composition({cation: amounts[0], anion: amounts[1]})
                if formula.reduced_formula not in known:
                    yield cation, anion, *amounts


def candidates(cation: Element, anion: Element, amounts, prototypes) -> list[Candidate]:
    """A composition in each prototype of its ratio, its bonds of a likely length."""
    rare, frequent = (cation, anion) if amounts[0] <= amounts[1] else (anion, cation)
    orders = {(rare, frequent)}
    if amounts[0] == amounts[1]:
        orders.add((frequent, rare))
    ratio = min(amounts), max(amounts)
    found = []
    for prototype in prototypes.get(ratio, []):
        for first, second in sorted(orders):
            structure = prototype.structure.copy()
            structure.replace_species(
                {prototype.rare: first, prototype.frequent: second}
            )
            numbers = np.array(structure.atomic_numbers)
            bonds = structure.distance_matrix[numbers[:, None] != numbers[None]]
            scale = likely_bond(cation, anion) / bonds.min()
            structure.scale_lattice(structure.volume * scale**3)
            formula = structure.composition.reduced_formula
            found.append(Candidate(formula, structure))
    return found


def likely_bond(cation: Element, anion: Element) -> float:
    """Between the sums of atomic and of ionic radii, Å."""
    atomic = (cation.atomic_radius or 1.6) + (anion.atomic_radius or 1.0)
    ionic = cation.average_ionic_radius + abs(anion.average_anionic_radius or 1.4)
    return (atomic + ionic) / 2


def relaxed(some: list[Candidate], potential, steps: int) -> list[Candidate]:
    """The same, relaxed; without those that have no energy."""
    found = relax_structures(
        [candidate.structure for candidate in some],
        potential=potential,
        max_steps=steps,
        batch_size=128,
        whole_batches=True,
    )
    return [
        Candidate(candidate.formula, one.structure, one.energy)
        for candidate, one in zip(some, found, strict=True)
        if np.isfinite(one.energy)
    ]


def best(some: list[Candidate], number: int) -> list[Candidate]:
    """Of each formula so many of the lowest, no structure twice."""
    kept: dict[str, list[Candidate]] = {}
    for candidate in sorted(some, key=lambda c: c.energy):
        others = kept.setdefault(candidate.formula, [])
        if len(others) < number and not any(same(candidate, x) for x in others):
            others.append(candidate)
    return [candidate for formula in sorted(kept) for candidate in kept[formula]]


def same(one: Candidate, other: Candidate) -> bool:
    """Whether two relaxed structures of a composition cannot be told apart."""
    volumes = [c.structure.volume / len(c.structure) for c in (one, other)]
    near = abs(volumes[0] - volumes[1]) < SAME_VOLUME * volumes[0]
    return near and abs(one.energy - other.energy) < SAME_ENERGY


def build_binaries(metals: list[Element]) -> list[Structure]:
    """The best structure of each missing compound of these metals."""
    crystals = to_structures(load_dataset("mp_mini").crystals)
    known = {s.composition.reduced_formula for s in crystals if s is not None}
    prototypes = read_prototypes()
    found = [
        candidate
        for cation, anion, *amounts in missing_compounds(metals, known)
        for candidate in candidates(cation, anion, amounts, prototypes)
    ]
    print(f"{len(found)} candidates")
    chgnet = load_potential("chgnet")
    found = best(relaxed(found, chgnet, 8), 4)
    found = best(relaxed(found, chgnet, 60), 2)
    found = relaxed(found, load_potential("sevennet-l3i5"), 30)
    crystals = from_structures([candidate.structure for candidate in found])
    other, _ = evaluate(chgnet, crystals, batch_size=128)
    agreed = np.abs(other - [c.energy for c in found]) < MAX_DISAGREEMENT
    found = best([c for c, kept in zip(found, agreed, strict=True) if kept], 1)
    print(f"{len(found)} compounds")
    return [candidate.structure for candidate in found]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packages", type=Path, help="folder with the wheel")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    build_references(args.packages, args.out)


def build_references(packages: Path, out: Path) -> None:
    """Write elements and binaries, as `hull.reference_crystals` reads them."""
    warnings.filterwarnings("ignore", "No Pauling electronegativity")
    elements = read_elements(packages)
    metals = sorted({e for s in elements for e in s.composition.elements})
    crystals = from_structures(elements + build_binaries(metals))
    np.savez_compressed(
        out,
        atom_types=crystals.atom_types.astype(np.uint8),
        frac_coords=crystals.frac_coords.astype(np.float32),
        lengths=crystals.lengths.astype(np.float32),
        angles=crystals.angles.astype(np.float32),
    )
    print(f'REFERENCES_SHA256 = "{hashlib.sha256(out.read_bytes()).hexdigest()}"')


if __name__ == "__main__":
    main()

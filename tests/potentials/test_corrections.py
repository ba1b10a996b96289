"""The MP2020 corrections, by hand and against pymatgen."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.entries.compatibility import MP2020_COMPAT_CONFIG

from chemeleon_jax.data.crystals import take, to_structures
from chemeleon_jax.data.dataset import load_dataset
from chemeleon_jax.potentials import corrections
from chemeleon_jax.potentials.corrections import mp2020_correction
from tools.check_corrections import pymatgen_correction


def correction(structure: Structure) -> float:
    return mp2020_correction(
        np.array(structure.atomic_numbers),
        structure.frac_coords,
        structure.lattice.matrix,
    )


def spread(formula: dict[str, int], distance: float = 3.0) -> Structure:
    """Atoms in a row, each as far from the next."""
    species = [symbol for symbol, n in formula.items() for _ in range(n)]
    n = len(species)
    cell = Lattice.orthorhombic(n * distance, 9, 9)
    return Structure(cell, species, [[i / n, 0, 0] for i in range(n)])


def bonded(first: str, second: str, metal: str, length: float) -> Structure:
    """A pair of atoms, `length` Å apart, and a metal."""
    coords = [[0, 0, 0], [length, 0, 0], [4, 4, 4]]
    species = [first, second, metal]
    return Structure(Lattice.cubic(8), species, coords, coords_are_cartesian=True)


def test_figures_are_those_of_pymatgen():
    found = MP2020_COMPAT_CONFIG["Corrections"]
    anions = dict(found["CompositionCorrections"])
    assert anions.pop("oxide") == corrections.OXIDE
    assert anions.pop("peroxide") == corrections.PEROXIDE
    assert anions.pop("superoxide") == corrections.SUPEROXIDE
    assert anions.pop("ozonide") == corrections.OZONIDE
    assert anions.pop("S") == corrections.SULFIDE
    assert anions == corrections.ANIONS
    assert found["GGAUMixingCorrections"] == {
        "O": corrections.METALS,
        "F": corrections.METALS,
    }


@pytest.mark.parametrize(
    ("formula", "total"),  # eV per formula unit
    [
        ({"Na": 1}, 0.0),
        ({"O": 2}, 0.0),
        ({"Na": 1, "Cl": 1}, -0.614),
        ({"Mg": 1, "O": 1}, -0.687),
        ({"Fe": 2, "O": 3}, 2 * -2.256 + 3 * -0.687),
        ({"Fe": 1, "S": 2}, 2 * -0.503),  # U only with O and F
        ({"Fe": 1, "F": 3}, -2.256 + 3 * -0.462),
        ({"Ti": 1, "O": 2}, 2 * -0.687),  # no U on titanium
        ({"Hf": 1, "H": 2}, 2 * -0.179),
        ({"Li": 1, "Co": 1, "O": 2}, -1.638 + 2 * -0.687),
        ({"Ni": 3, "Al": 1}, 0.0),
        ({"N": 1, "H": 3}, -0.361),  # hydrogen is no anion there
    ],
)
def test_by_hand(formula, total):
    structure = spread(formula)
    assert correction(structure) * len(structure) == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize(
    ("length", "per_oxygen"),
    [(3.0, -0.687), (1.5, -0.465), (1.35, -0.161)],  # oxide, peroxide, superoxide
)
def test_oxygen_by_its_bonds(length, per_oxygen):
    found = correction(bonded("O", "O", "Ba", length))
    assert found == pytest.approx(2 * per_oxygen / 3, abs=1e-9)


def test_hydroxide_is_an_oxide_and_sulfate_no_sulfide():
    # One hydrogen is +1; the most electronegative element is oxygen.
    assert correction(bonded("O", "H", "Na", 0.97)) == pytest.approx(-0.687 / 3)
    sulfate = bonded("S", "O", "Ca", 1.5)
    assert correction(sulfate) == pytest.approx(-0.687 / 3)


@pytest.mark.filterwarnings("ignore:Failed to guess")
def test_embedded_crystals_against_pymatgen():
    """Some, with sulphur above all; `tools/check_corrections.py` takes all 13,757."""
    crystals = load_dataset("mp_mini").crystals
    rows = np.arange(0, len(crystals.atom_types), 60)
    with_sulphur = np.flatnonzero((crystals.atom_types == 16).any(1))[::20]
    some = np.union1d(rows, with_sulphur)
    for structure in to_structures(take(crystals, some)):
        expected = pymatgen_correction(structure)
        assert correction(structure) == pytest.approx(expected, abs=1e-9), structure

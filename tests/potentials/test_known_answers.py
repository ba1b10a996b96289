"""What is known of the elements and of eight compounds, by each embedded potential."""

import jax
import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from chemeleon_jax.data.crystals import from_structures, take
from chemeleon_jax.data.dataset import load_dataset
from chemeleon_jax.potentials.hull import (
    evaluate_entries,
    load_hull,
    reference_crystals,
)
from chemeleon_jax.potentials.loading import load_potential
from chemeleon_jax.potentials.types import Status

KJ_PER_MOL = 0.01036427  # eV
# Formation energies, eV/atom. Of anatase, the DFT label of the embedded crystal, with
# the correction of oxygen of 2015, -0.702 eV, exchanged for today's; of the others,
# enthalpies at 298 K, such as MP2020 was fitted to: NaCl, MgO and hematite from the
# NIST-JANAF tables (1998), LiCoO2 from Wang and Navrotsky, Solid State Ionics 166, 167
# (2004). They were written down without the tables at hand: look them up before use.
FORMATION = {
    "NaCl": -411.12 * KJ_PER_MOL / 2,
    "MgO": -601.24 * KJ_PER_MOL / 2,
    "Fe2O3": -825.50 * KJ_PER_MOL / 5,
    "LiCoO2": -679.4 * KJ_PER_MOL / 4,
    "TiO2": -3.5124 + 2 / 3 * (0.70229 - 0.687),
    "Si": 0.0,
}
WITHIN = {"NaCl": 0.06, "MgO": 0.06, "TiO2": 0.06, "Si": 0.06}
WITHIN |= {"Fe2O3": 0.1, "LiCoO2": 0.115}


def crystals():
    """Name -> structure: by experiment where mp_mini has none."""
    known = load_dataset("mp_mini")
    names = {
        "NaCl": "mp-22862",
        "Si": "mp-149",
        "MgO": "mp-1265",
        "TiO2": "mp-390",
        "HfH2": "mp-27731",
    }
    found = {
        name: take(known.crystals, np.flatnonzero(known.material_ids == material))
        for name, material in names.items()
    }
    hematite = Structure.from_spacegroup(
        "R-3c",
        Lattice.hexagonal(5.038, 13.772),
        ["Fe", "O"],
        [[0, 0, 0.3553], [0.3059, 0, 0.25]],
    )
    cobaltate = Structure.from_spacegroup(
        "R-3m",
        Lattice.hexagonal(2.816, 14.05),
        ["Li", "Co", "O"],
        [[0, 0, 0.5], [0, 0, 0], [0, 0, 0.2605]],
    )
    perovskite = Structure.from_spacegroup(
        "Pm-3m",
        Lattice.cubic(6.29),
        ["Cs", "Pb", "I"],
        [[0.5] * 3, [0] * 3, [0.5, 0, 0]],
    )
    found["Fe2O3"] = from_structures([hematite.get_primitive_structure()], 20)
    found["LiCoO2"] = from_structures([cobaltate.get_primitive_structure()], 20)
    found["CsPbI3"] = from_structures([perovskite], 20)
    return found


@pytest.fixture(scope="module", params=["chgnet", "sevennet-l3i5", "sevennet-0"])
def potential(request):
    return load_potential(request.param)


@pytest.fixture(scope="module")
def formation(potential):
    """Formation energies by a potential, its elements' energies from its hull."""
    found = crystals()
    batch = jax.tree.map(lambda *x: np.concatenate(x), *found.values())
    energy, status = jax.jit(potential.energies)(batch)
    np.testing.assert_array_equal(status, Status.OK)
    hull = load_hull(potential)
    elements = [
        np.mean([hull.hull_energy([z]) for z in types[types > 0]])
        for types in batch.atom_types
    ]
    return dict(zip(found, np.asarray(energy) - elements, strict=True))


def test_formation_energies(potential, formation):
    """CHGNet misses hematite by 0.1; all LiCoO2 as much, from cells not relaxed."""
    for name, expected in FORMATION.items():
        near = pytest.approx(expected, abs=WITHIN[name])
        assert formation[name] == near, (potential.name, name)


def test_potentials_disagree_on_a_hydride_and_agree_on_a_perovskite(
    potential, formation
):
    """HfH2: -0.50 by CHGNet, -0.61 and -0.60 by the two SevenNets."""
    expected = -0.50 if potential.name == "chgnet" else -0.61
    assert formation["HfH2"] == pytest.approx(expected, abs=0.03)
    assert formation["CsPbI3"] == pytest.approx(-1.23, abs=0.06)


def test_elements_lie_on_their_own_hull(potential):
    """The ground states of 89, or below them: the hull may know a lower one."""
    references = reference_crystals()
    same = references.atom_types == references.atom_types[:, :1]
    pure = take(references, (same | ~references.mask).all(1))
    assert len(pure.mask) == 89
    _, energies = evaluate_entries(potential, pure)
    above = load_hull(potential).e_above_hull(pure.atom_types, energies)
    assert np.isfinite(above).all() and above.min() > -1e-4
    assert np.median(above) < 2e-3 and above.max() < 0.17

import jax
import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from chemeleon_jax.data.crystals import from_structures
from chemeleon_jax.data.dataset import Dataset
from chemeleon_jax.data.symmetry import read_space_group
from chemeleon_jax.data.templates import AskedSymmetry, draw_templates
from chemeleon_jax.errors import UserError
from chemeleon_jax.workers.matching import cell_of
from chemeleon_jax.workers.symmetry import symmetric_sites

SALT = Structure.from_spacegroup(
    "Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
).get_primitive_structure()
RUTILE = Structure.from_spacegroup(
    "P4_2/mnm",
    Lattice.tetragonal(4.6, 2.96),
    ["Ti", "O"],
    [[0, 0, 0], [0.305, 0.305, 0]],
)
PEROVSKITE = Structure.from_spacegroup(
    "Pm-3m",
    Lattice.cubic(3.9),
    ["Sr", "Ti", "O"],
    [[0.5, 0.5, 0.5], [0, 0, 0], [0.5, 0, 0]],
)
SHARES = np.full(8, 1 / 8)


@pytest.fixture(scope="module")
def dataset():
    crystals = from_structures([SALT, RUTILE, PEROVSKITE])
    return Dataset(crystals, {}, np.array(list("abc")), np.zeros(3, np.int8))


def draw(dataset, count=6, shares=SHARES, **asked):
    key = jax.random.key(0)
    return draw_templates(key, count, dataset, shares, AskedSymmetry(**asked))


@pytest.mark.parametrize(
    ("name", "number"),
    [("Fm-3m", 225), ("225", 225), ("P21/c", 14), ("P2_1/c", 14), ("P212121", 19)]
    + [("P63/mmc", 194), ("I41/amd", 141), ("P23", 195), ("P 1", 1), (62, 62)],
)
def test_a_space_group_is_read_as_people_write_it(name, number):
    assert read_space_group(name) == number


def test_sites_of_a_strained_crystal_have_the_symmetry_exactly():
    moved = RUTILE.copy()
    moved.perturb(0.02, seed=0)
    sites = symmetric_sites(cell_of(moved))
    assert sites.rotations.shape == (16, 3, 3)
    exact = Structure(RUTILE.lattice, RUTILE.species, sites.frac_coords)
    assert moved.get_space_group_info(1e-4)[1] == 1
    assert exact.get_space_group_info(1e-4)[1] == 136
    assert (
        exact.lattice.get_distance_and_image(
            exact.frac_coords[2], RUTILE.frac_coords[2]
        )[0]
        < 0.05
    )


def test_templates_are_of_what_is_asked_for(dataset):
    counts, template = draw(dataset, space_group="225")
    assert counts.tolist() == [2] * 6
    assert template.rotations.shape == (6, 48, 3, 3)
    assert template.frac_coords.shape == (6, 8, 3)
    assert not template.elements.any()
    counts, _ = draw(dataset, count=40, crystal_system="cubic")
    assert set(counts.tolist()) == {2, 5}


def test_supercells_without_all_of_the_symmetry_are_no_templates():
    double = SALT.copy()
    double.make_supercell([2, 1, 1])
    crystals = from_structures([double, PEROVSKITE])
    both = Dataset(crystals, {}, np.array(list("ab")), np.zeros(2, np.int8))
    counts, _ = draw(both, crystal_system="cubic")
    assert counts.tolist() == [5] * 6


def test_each_depends_on_the_key_and_its_number_alone(dataset):
    few, many = (draw(dataset, n, crystal_system="cubic") for n in (3, 9))
    np.testing.assert_array_equal(few[0], many[0][:3])
    np.testing.assert_array_equal(few[1].frac_coords, many[1].frac_coords[:3])


def test_a_composition_takes_the_places_of_its_stoichiometry(dataset):
    counts, template = draw(dataset, 12, crystal_system="cubic", composition="KMnF3")
    assert counts.tolist() == [5] * 12
    rows = {tuple(row[:5].tolist()) for row in template.elements}
    # K and Mn may change places, F has its own.
    assert rows == {(19, 25, 9, 9, 9), (25, 19, 9, 9, 9)}


def test_any_space_group_is_that_of_a_known_crystal_of_the_stoichiometry(dataset):
    counts, template = draw(dataset, space_group="any", composition="SnO2")
    assert counts.tolist() == [6] * 6
    assert set(template.elements[0, :6].tolist()) == {8, 50}
    counts, _ = draw(dataset, 60, space_group="any")
    assert set(counts.tolist()) == {2, 5, 6}


def test_a_chemical_system_takes_any_places_of_as_many_elements(dataset):
    _, template = draw(dataset, 20, crystal_system="tetragonal", chemical_system="S-Sn")
    assert {int(row[0]) for row in template.elements} == {16, 50}


def test_atom_counts_keep_to_their_shares(dataset):
    only_five = np.eye(8)[4]
    counts, _ = draw(dataset, shares=only_five, crystal_system="cubic")
    assert counts.tolist() == [5] * 6


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"space_group": "Xm-3m"}, "--space_group=Xm-3m: a space group is"),
        ({"space_group": "231"}, "number from 1 to 230"),
        ({"crystal_system": "round"}, "the systems are triclinic"),
        ({"space_group": "62"}, "there are none at all"),
        ({"crystal_system": "cubic", "composition": "SnO2"}, "--composition=SnO2"),
    ],
)
def test_what_cannot_be_is_told(dataset, asked, said):
    with pytest.raises(UserError, match=said):
        draw(dataset, **asked)


def test_a_size_without_templates_is_told_with_those_there_are(dataset):
    with pytest.raises(UserError, match="there are some with 2, 5 atoms"):
        draw(dataset, shares=np.eye(8)[2], crystal_system="cubic")

import itertools

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from chemeleon_jax.data.crystals import (
    VALIDITY_REASONS,
    chemical_system,
    formula_key,
    formula_keys,
    from_structures,
    minimum_distance,
    niggli_reduce,
    take,
    to_structures,
    validity,
)
from chemeleon_jax.data.dataset import load_dataset

NACL = Structure(
    Lattice.from_parameters(*[5.64 / np.sqrt(2)] * 3, 60, 60, 60),
    ["Na", "Cl"],
    [[0, 0, 0], [0.5, 0.5, 0.5]],
)
MAGNESIUM = Structure(  # hcp
    Lattice.hexagonal(3.21, 5.21), ["Mg", "Mg"], [[0, 0, 0], [1 / 3, 2 / 3, 0.5]]
)
# b = -2a + 2.5 Å across: the shortest vector is 2a + b, not a, b or a sum of one each.
SKEWED = Structure(Lattice([[3, 0, 0], [-6, 2.5, 0], [0, 0, 10]]), ["Cu"], [[0] * 3])


def reasons(batch, **kwargs):
    return [VALIDITY_REASONS[code] for code in validity(batch, **kwargs)]


# --- conversion -------------------------------------------------------------------


def test_padding_comes_last_and_is_zero():
    batch = from_structures([NACL, SKEWED], max_atoms=4)
    assert batch.atom_types.tolist() == [[11, 17, 0, 0], [29, 0, 0, 0]]
    assert batch.mask.sum(-1).tolist() == [2, 1]
    assert not batch.frac_coords[~batch.mask].any()
    np.testing.assert_allclose(batch.lengths[0], 3.98808, atol=1e-5)
    np.testing.assert_allclose(batch.angles[0], 60, atol=1e-4)


def test_crystals_that_are_not_there_have_no_atoms():
    batch = from_structures([None, SKEWED], max_atoms=2, size=3)
    assert batch.atom_types.tolist() == [[0, 0], [29, 0], [0, 0]]
    assert batch.mask.sum(-1).tolist() == [0, 1, 0]
    assert [s is None for s in to_structures(batch)] == [True, False, True]


def test_coordinates_are_wrapped_below_one():
    """-1e-9 wraps to 0.999999999, which float32 would round to 1."""
    lattice = Lattice.cubic(4)
    structure = Structure(lattice, ["Cu"] * 2, [[-1e-9, 1.25, -0.25], [0.5] * 3])
    batch = from_structures([structure])
    np.testing.assert_allclose(batch.frac_coords[0, 0], [0, 0.25, 0.75], atol=1e-7)


def test_round_trip_through_pymatgen():
    structures = [NACL, MAGNESIUM, SKEWED]
    for before, after in zip(
        structures, to_structures(from_structures(structures)), strict=True
    ):
        assert after.composition == before.composition
        np.testing.assert_allclose(
            after.distance_matrix, before.distance_matrix, atol=1e-5
        )


@pytest.mark.parametrize("convert", [lambda s: s, niggli_reduce])
def test_left_handed_cell_is_not_mirrored(convert):
    """The signed volume of four atoms changes sign in a mirror image."""
    lattice = Lattice(Lattice.from_parameters(5, 6, 7, 80, 95, 103).matrix[[1, 0, 2]])
    assert np.linalg.det(lattice.matrix) < 0
    corner = np.array([[0.2] * 3, [0.4, 0.2, 0.2], [0.2, 0.45, 0.2], [0.2, 0.2, 0.5]])
    before = Structure(lattice, ["H", "C", "N", "O"], corner)
    after = to_structures(from_structures([convert(before)]))[0]

    def chirality(structure):
        edges = [structure[0].distance_and_image(site)[1] for site in structure[1:]]
        vectors = [
            structure[i].coords + image @ structure.lattice.matrix - structure[0].coords
            for i, image in enumerate(edges, 1)
        ]
        return np.linalg.det(vectors)

    assert chirality(after) == pytest.approx(chirality(before), rel=1e-4)


def test_oxidation_states_are_dropped_and_disorder_is_refused():
    charged = NACL.copy().add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    assert from_structures([charged]).atom_types.tolist() == [[11, 17]]
    alloy = Structure(Lattice.cubic(3), [{"Cu": 0.5, "Au": 0.5}], [[0] * 3])
    with pytest.raises(ValueError, match="structure 1 .* is disordered"):
        from_structures([NACL, alloy])


def test_too_many_atoms_are_named():
    with pytest.raises(ValueError, match="structure 0 .* has 2 atoms.*max_atoms=1"):
        from_structures([NACL], max_atoms=1)


def test_what_pymatgen_refuses_becomes_none():
    batch = from_structures([NACL] * 8)
    batch.frac_coords[1, 0, 0] = np.nan
    batch.lengths[2, 0] = np.inf
    batch.angles[3] = [120, 120, 150]  # flat
    batch.lengths[4] = 0
    batch.atom_types[5, 1] = 0
    batch.atom_types[6, 0] = 250
    batch.mask[7] = False
    structures = to_structures(batch)
    assert structures[0].reduced_formula == "NaCl"
    assert structures[1:] == [None] * 7


def test_niggli_keeps_the_crystal():
    sheared = NACL.copy().make_supercell([[1, 0, 0], [2, 1, 0], [1, -1, 1]])
    reduced = niggli_reduce(sheared)
    np.testing.assert_allclose(reduced.lattice.angles, 60, atol=1e-6)
    assert StructureMatcher().fit(sheared, reduced)
    # c along z, a in the xz plane
    assert abs(reduced.lattice.matrix[2, :2]).max() < 1e-9
    assert abs(reduced.lattice.matrix[0, 1]) < 1e-9


# --- distances --------------------------------------------------------------------


def test_minimum_distances_by_hand():
    batch = from_structures([NACL, MAGNESIUM, SKEWED])
    # a/2; sqrt(a^2/3 + c^2/4); |2a + b|
    expected = [2.82, np.sqrt(3.21**2 / 3 + 5.21**2 / 4), 2.5]
    np.testing.assert_allclose(minimum_distance(batch, cutoff=9), expected, atol=1e-5)
    # an image at one cell in each direction is not enough for the last: 3.0
    assert minimum_distance(batch, cutoff=2.6).tolist() == pytest.approx(
        [2.6, 2.6, 2.5]
    )


def test_minimum_distance_against_brute_force():
    """Random skewed cells: no image in -6..6 is closer than the answer."""
    rng = np.random.default_rng(1)
    structures = []
    for _ in range(20):
        matrix = np.diag(rng.uniform(2, 5, 3)) + np.tril(rng.uniform(-6, 6, (3, 3)), -1)
        coords = rng.uniform(size=(int(rng.integers(1, 5)), 3))
        structures.append(Structure(Lattice(matrix), ["Cu"] * len(coords), coords))
    batch = from_structures(structures, max_atoms=6)
    images = np.array(list(itertools.product(range(-6, 7), repeat=3)))
    brute = []
    for s in structures:
        offsets = s.frac_coords[:, None, None] - s.frac_coords[None, :, None] + images
        distances = np.linalg.norm(offsets @ s.lattice.matrix, axis=-1)
        brute.append(distances[distances > 1e-6].min())
    expected = np.minimum(brute, 4.0)
    np.testing.assert_allclose(minimum_distance(batch, cutoff=4.0), expected, atol=1e-4)


def test_minimum_distance_refuses_flat_cells():
    batch = from_structures([NACL])
    batch.angles[0] = [120, 120, 150]
    with pytest.raises(ValueError, match="flat"):
        minimum_distance(batch, cutoff=0.5)


# --- validity ---------------------------------------------------------------------


def test_each_reason():
    batch = from_structures([NACL] * 12, max_atoms=3)
    batch.frac_coords[1, 1, 2] = np.nan
    batch.angles[2, 0] = np.inf
    batch.angles[3] = [120, 120, 150]  # impossible
    batch.angles[4] = [5, 90, 90]  # extreme
    batch.lengths[5] *= -1
    batch.lengths[6] *= 4  # 64 times 22 Å^3 per atom
    batch.lengths[7] *= 0.4
    batch.mask[8] = False
    batch.frac_coords[9, 1] = [0.97, 0.02, 0.01]  # 0.1 Å from the image of atom 0
    batch.atom_types[10, 0] = 95
    batch.frac_coords[11, 2] = np.nan  # padding: harmless
    assert reasons(batch) == [
        "valid",
        *["non_finite"] * 2,
        *["cell_angles"] * 3,
        *["volume"] * 3,
        "min_distance",
        "element",
        "valid",
    ]


def test_short_contact_through_image_2_1_0():
    batch = from_structures([SKEWED])
    assert reasons(batch, min_distance=2.4) == ["valid"]
    assert reasons(batch, min_distance=2.7) == ["min_distance"]


def test_two_atoms_on_one_site():
    batch = from_structures([NACL])
    batch.frac_coords[0, 1] = batch.frac_coords[0, 0]
    assert reasons(batch) == ["min_distance"]


def test_every_embedded_crystal_is_valid():
    assert not validity(load_dataset("mp_mini").crystals).any()


# --- formulas ---------------------------------------------------------------------


def test_formula_key_by_hand():
    assert formula_key([8, 22, 8, 22, 8, 8, 0, 0]) == (8, 2, 22, 1)
    assert formula_key([1, 1]) == (1, 1)
    assert formula_key([0, 0]) == ()
    assert chemical_system([8, 22, 8, 0]) == "O-Ti"


def test_formula_key_groups_as_pymatgen_does():
    crystals = take(load_dataset("mp_mini").crystals, slice(None, None, 40))
    compositions = [s.composition for s in to_structures(crystals)]
    pairs = {
        (formula_key(types), composition.reduced_formula)
        for types, composition in zip(crystals.atom_types, compositions, strict=True)
    }
    together = formula_keys(crystals.atom_types)
    assert together == [formula_key(types) for types in crystals.atom_types]
    assert len({k for k, _ in pairs}) == len({f for _, f in pairs}) == len(pairs)
    systems = [chemical_system(types) for types in crystals.atom_types]
    assert systems == [composition.chemical_system for composition in compositions]

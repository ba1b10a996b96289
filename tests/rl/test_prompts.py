from types import SimpleNamespace

import jax
import numpy as np
import pytest
from pymatgen.core import Structure

from chemeleon_jax.data.crystals import from_structures
from chemeleon_jax.data.dataset import Dataset, save_npz
from chemeleon_jax.errors import UserError
from chemeleon_jax.rl.prompts import (
    asked_fractions,
    atom_count_shares,
    condition_values,
    condition_vectors_from_cli,
    draw_atom_counts,
    make_prompts,
    parse_composition,
    restrict_atom_counts,
)

FORMULA = {"name": "formula", "kind": "composition"}
SYSTEM = {"name": "system", "kind": "chemical_system"}
GAP = {"name": "dft_band_gap", "kind": "float", "mean": 1.0, "std": 2.0}
LEVEL = {"name": "space_group", "kind": "categorical", "num_classes": 3}
UNIFORM = np.full(20, 1 / 20)


@pytest.mark.parametrize(
    ("formula", "atoms", "units"),
    [("LiMnO2", 4, 1), ("Li4Mn4O8", 16, 4), ("Li0.5MnO2", 7, 1), ("O2", 2, 1)],
)
def test_a_formula_gives_its_atoms_and_units(formula, atoms, units):
    composition, factor = parse_composition(formula)
    assert (composition.num_atoms, factor) == (atoms, units)


def counts(**asked):
    given = {"num_atoms": None, "composition": None, "chemical_system": None} | asked
    return (np.flatnonzero(restrict_atom_counts(UNIFORM, **given)) + 1).tolist()


def test_atom_counts_follow_what_is_asked_for():
    assert counts(composition="LiMnO2") == [4, 8, 12, 16, 20]
    assert counts(composition="Li2Mn2O4") == [8]
    assert counts(composition="Li2Mn2O4", num_atoms=[4, 12]) == [4, 12]
    assert counts(chemical_system="Li-Mn-O") == list(range(3, 21))
    shares = restrict_atom_counts(np.array([0.5, 0, 0.3, 0.2]), None, None, "Li-O")
    np.testing.assert_allclose(shares, [0, 0, 0.6, 0.4])
    # The data set has none of the size that the formula needs: all of them alike.
    shares = restrict_atom_counts(np.array([1.0, 0, 0, 0]), None, "NaCl", None)
    np.testing.assert_allclose(shares, [0, 0.5, 0, 0.5])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"num_atoms": [21]}, "num_atoms=21: must be from 1 to 20"),
        ({"composition": "LiMnO2", "num_atoms": [6]}, "cannot have --num_atoms=6"),
        ({"composition": "Y3Al5O12"}, None),
        ({"composition": "Y6Al10O24"}, "more than 20 atoms"),
        ({"chemical_system": "Li-Mn-O", "num_atoms": [2]}, "cannot have"),
    ],
)
def test_impossible_atom_counts_are_refused(asked, message):
    if message is None:
        assert counts(**asked) == [20]
        return
    with pytest.raises(UserError, match=message):
        counts(**asked)


def test_a_data_set_gives_its_histogram():
    shares = atom_count_shares("mp_20", 20)
    np.testing.assert_allclose(shares[3], 0.1527, atol=1e-4)
    assert atom_count_shares("mp_mini", 4).shape == (4,)


def test_drawn_atom_counts_follow_the_shares_and_the_number_of_the_crystal():
    shares = np.array([0.0, 0.75, 0.0, 0.25])
    drawn = draw_atom_counts(jax.random.key(0), 2000, shares)
    assert set(drawn.tolist()) == {2, 4}
    np.testing.assert_allclose((drawn == 4).mean(), 0.25, atol=0.03)
    few = draw_atom_counts(jax.random.key(0), 10, shares)
    np.testing.assert_array_equal(few, drawn[:10])


@pytest.mark.parametrize("source", ["mp_20", "mp_mini"])
def test_training_can_leave_out_large_crystals(source):
    model = SimpleNamespace(condition=None)
    all_shares = atom_count_shares(source, 20)
    for max_atoms in (4, 20):
        drawn, _ = make_prompts(model, source, max_atoms)(jax.random.key(0), 4000)
        shares = np.bincount(drawn, minlength=21)[1 : max_atoms + 1] / 4000
        expected = all_shares[:max_atoms] / all_shares[:max_atoms].sum()
        np.testing.assert_allclose(shares, expected, atol=0.03)


def test_a_data_set_without_small_crystals_is_named(tmp_path):
    cscl = Structure(4 * np.eye(3), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    crystals, split = from_structures([cscl]), np.zeros(1, np.int8)
    save_npz(tmp_path / "big.npz", Dataset(crystals, {}, np.array(["x"]), split))
    with pytest.raises(UserError, match=r"big.npz.*of at most.*max_atoms = 1 atoms"):
        make_prompts(SimpleNamespace(condition=None), str(tmp_path / "big.npz"), 1)


def encode(specs, composition=None, chemical_system=None, named=None):
    return condition_vectors_from_cli(
        specs, *condition_values(composition, chemical_system, named or {})
    )


def test_a_composition_implies_its_chemical_system():
    vectors = encode([FORMULA, SYSTEM], composition="Li4Mn4O8")
    np.testing.assert_allclose(vectors["formula"][0, [3, 25, 8]], [0.25, 0.25, 0.5])
    assert np.flatnonzero(vectors["system"][0]).tolist() == [3, 8, 25]
    assert encode([FORMULA], composition="LiMnO2")["formula"].shape == (1, 100)


def test_conditions_not_asked_for_are_nan():
    vectors = encode([SYSTEM, GAP], chemical_system="Li-O")
    assert np.isnan(vectors["dft_band_gap"]).all()
    vectors = encode([SYSTEM, GAP], named={"dft_band_gap": "3.0"})
    np.testing.assert_allclose(vectors["dft_band_gap"], [[1.0]])
    assert np.isnan(vectors["system"]).all()
    assert encode(()) is None


@pytest.mark.parametrize(
    ("specs", "asked", "message"),
    [
        ((), {"composition": "NaCl"}, "takes none at all"),
        ((), {"named": {"gap": "1"}}, "no such condition.*none at all"),
        ([GAP], {"named": {"band": "1"}}, "no such condition.*dft_band_gap"),
        ([GAP], {"named": {"dft_band_gap": "wide"}}, "cannot be 'wide'"),
        ([GAP], {"named": {"dft_band_gap": "nan"}}, "not a finite number"),
        ([LEVEL], {"named": {"space_group": "3"}}, "classes are 0 to 2"),
        ([FORMULA], {"named": {"formula": "NaCl"}}, "give it as --composition"),
        ([FORMULA], {"composition": "LiXxO2"}, "no formula of existing elements"),
        ([FORMULA], {"composition": "Li(Mn"}, "no formula"),
        ([SYSTEM], {"chemical_system": "Li-Xx"}, "'Xx' is no element"),
        ([SYSTEM], {"composition": "NaCl"}, "--composition: the model does not take"),
        ([FORMULA], {"chemical_system": "Na-Cl"}, "--chemical_system"),
        ([FORMULA], {"composition": "NaCl", "chemical_system": "Na-O"}, "differ"),
    ],
)
def test_what_cannot_be_asked_is_refused(specs, asked, message):
    with pytest.raises(UserError, match=message):
        encode(specs, **asked)


def test_groups_of_compositions_that_a_user_lists(tmp_path):
    """Formula and atom count fit; a file has one formula in each line."""
    specs = [
        {"name": "composition", "kind": "composition"},
        {"name": "system", "kind": "chemical_system"},
    ]
    model = SimpleNamespace(condition=SimpleNamespace(specs=specs))
    file = tmp_path / "wanted.txt"
    file.write_text("Li2O\nCaTiO3\n\n")
    draw = make_prompts(model, "mp_mini", 12, str(file))
    num_atoms, condition = draw(jax.random.key(1), 200)
    lithium = np.asarray(condition["composition"][:, 3]) > 0
    assert 50 < lithium.sum() < 150
    np.testing.assert_allclose(condition["composition"][lithium][:, 8], 1 / 3)
    assert set(np.asarray(num_atoms)[lithium].tolist()) <= {3, 6, 9, 12}
    assert set(np.asarray(num_atoms)[~lithium].tolist()) <= {5, 10}
    assert condition["system"][~lithium].sum(1).tolist() == [3.0] * (~lithium).sum()
    np.testing.assert_array_equal(
        asked_fractions(model, condition), condition["composition"]
    )
    assert asked_fractions(SimpleNamespace(condition=None), None) is None
    half, _ = make_prompts(model, "mp_mini", 20, "Li0.5MnO2")(jax.random.key(1), 20)
    assert not (np.asarray(half) % 7).any()
    one, _ = make_prompts(model, "mp_mini", 20, "Li2O")(jax.random.key(1), 20)
    assert not (np.asarray(one) % 3).any()


def test_atom_counts_may_follow_a_formula_and_all_formulas_come_equally_often():
    specs = [{"name": "composition", "kind": "composition"}]
    model = SimpleNamespace(condition=SimpleNamespace(specs=specs))
    draw = make_prompts(model, "mp_mini", 20, "Li2 O 3,CaTiO3 5 10,NaCl 8")
    for seed in range(3):
        num_atoms, condition = draw(jax.random.key(seed), 8)
        counts, fractions = np.asarray(num_atoms), np.asarray(condition["composition"])
        some = [counts[fractions[:, i] > 0] for i in (3, 20, 11)]  # Li, Ca, Na
        assert sorted(len(x) for x in some) == [2, 3, 3]
        allowed = {3}, {5, 10}, {8}
        assert all({*x.tolist()} <= own for x, own in zip(some, allowed, strict=True))


@pytest.mark.parametrize(
    "compositions, said",
    [
        ("Li2Q", "Li2Q"),
        ("Ca12Ti12O36", "has more than 20 atoms"),
        (",", "holds no formula"),
        ("missing.txt", "compositions = missing.txt"),
        ("CaTiO3 five", "CaTiO3five"),
        ("CaTiO3 5,10", "'10' has no formula"),
        ("H 2 O 2", "'H 2 O 2' has no formula"),
        ("CaTiO3 7", "cannot have --num_atoms=7"),
    ],
)
def test_compositions_that_cannot_be_asked_for_are_named(compositions, said):
    specs = [{"name": "composition", "kind": "composition"}]
    model = SimpleNamespace(condition=SimpleNamespace(specs=specs))
    with pytest.raises(UserError, match=said):
        make_prompts(model, "mp_mini", 20, compositions)
    with pytest.raises(UserError, match="does not take a composition"):
        make_prompts(SimpleNamespace(condition=None), "mp_mini", 20, "Li2O")

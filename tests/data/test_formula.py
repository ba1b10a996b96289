import pytest
from pymatgen.core import Composition, Element

from chemeleon_jax.data.formula import parse_chemical_system, parse_composition
from chemeleon_jax.errors import UserError


@pytest.mark.parametrize(
    ("formula", "expected", "units"),
    [
        ("LiMnO2", "LiMnO2", 1),
        ("Li4Mn4O8", "Li4Mn4O8", 4),
        ("Li0.5MnO2", "LiMn2O4", 1),
        ("Li1.0Mn1.0O2.0", "LiMnO2", 1),
        ("(NH4)2SO4", "N2H8SO4", 1),
        ("Ca[AlH4]2", "CaAl2H8", 1),
        ("Li Mn O2", "LiMnO2", 1),
        ("D2O", "H2O", 1),
        ("HDO", "H2O", 1),
        ("PuO2", "PuO2", 1),
    ],
)
def test_plain_formulas(formula, expected, units):
    found, factor = parse_composition(formula)
    assert found == Composition(expected) and factor == units


@pytest.mark.parametrize(
    ("formula", "words"),
    [
        ("CuSO4.5H2O", "a hydrate"),
        ("MgCl2.6H2O", "a hydrate"),
        ("CaSO4.0.5H2O", "'.5H2O' is no element"),
        ("CuSO4·5H2O", "'·5H2O' is no element"),
        ("CuSO4*5H2O", "is no element"),
        ("Fe0O3", "'Fe0' is none of an element"),
        ("Fe0.0O3", "'Fe0.0' is none of an element"),
        ("Fm2O3", "Fm is beyond Pu"),
        ("Md2O3", "Md is beyond Pu"),
        ("AmO2", "Am is beyond Pu"),
        ("Og", "Og is beyond Pu"),
        ("limno2", "no formula"),
        ("Na+", "'+' is no element"),
        ("2LiO", "'2LiO' is no element"),
        ("LiXxO2", "no formula of existing elements"),
        ("XO2", "no formula"),
        ("Li(Mn", "no formula"),
        ("Li)Mn", "no formula"),
        ("()", "no formula"),
        ("", "no formula"),
        ("  ", "no formula"),
        ("Li99999O", "is no element"),
        ("Li" * 200, "longer than 200"),
        ("nan", "no formula"),
        ("Li-Mn-O", "is no element"),
        ("LiO2\x1b[31m", "no formula"),
    ],
)
def test_a_formula_that_is_not_plainly_one_is_refused(formula, words):
    with pytest.raises(UserError, match="--composition=") as caught:
        parse_composition(formula)
    assert words in str(caught.value)


def test_chemical_systems():
    assert parse_chemical_system("Li-Mn-O") == {"Li", "Mn", "O"}
    assert parse_chemical_system("D-T-O") == {"H", "O"}
    for system in ("", "Li-", "li-o", "LiMnO", "Li--O", "Li-Am", "Fm", "Xx", "Li, O"):
        with pytest.raises(UserError, match="--chemical_system="):
            parse_chemical_system(system)


def test_every_element_that_can_be_valid_is_taken():
    for z in range(1, 119):
        symbol = Element.from_Z(z).symbol
        if z <= 94:
            assert parse_composition(f"{symbol}C")[0] == Composition(f"{symbol}C")
        else:
            with pytest.raises(UserError, match="beyond Pu"):
                parse_composition(symbol)

import numpy as np
import pandas as pd
import pytest

from chemeleon_jax.report.comparison import describe
from chemeleon_jax.report.disagreement import class_of, element_chart, scatter_charts
from chemeleon_jax.report.page import second_opinion
from chemeleon_jax.report.runs import CrystalSet, Run


def crystal_set(label, formulas, one, other):
    table = pd.DataFrame({"formula": formulas, "valid": [True] * len(formulas)})
    table["e_above_hull:chgnet"], table["e_above_hull:lj"] = one, other
    table["e_above_hull:spread"] = 0.0  # no potential's
    protocol = {"potentials": {"chgnet": {}, "lj": {}}}
    return CrystalSet(label, table, {}, protocol=protocol)


@pytest.fixture
def run():
    run = Run("tuned", {}, {})
    run.tuned = crystal_set(
        "tuned", ["HfH2", "NaCl", "ZrH2"], [0.0, 0.1, np.nan], [9.0, 0.2, 0.1]
    )
    run.base = crystal_set("base", ["NaCl", "MgO"], [0.0, 0.1], [0.0, 0.1])
    return run


@pytest.mark.parametrize(
    ("formula", "name"),
    [
        ("HfH4Ru", "with hydrogen"),
        ("Fe2O3", "oxide"),
        ("LiF", "halide"),
        ("MoS2", "chalcogenide"),
        ("GaAs", "pnictide"),
        ("Cu3Au", "of metals"),
        ("SiC", "other"),
    ],
)
def test_classes_of_elements(formula, name):
    assert class_of(formula) == name


def test_crystals_are_drawn_at_both_energies(run):
    (chart,) = scatter_charts([run.tuned])
    line, hydride, halide = chart["traces"]
    assert line["x"] == line["y"]
    # The third has no energy by one of the two; the first lies beyond the axis.
    assert hydride["name"] == "with hydrogen (1)" and hydride["text"] == ["HfH2"]
    assert list(hydride["x"]) == [0.0] and list(hydride["y"]) == [1.5]
    assert list(halide["y"]) == [0.2]
    run.tuned.protocol = {"potentials": {"chgnet": {}}}
    assert scatter_charts([run.tuned]) == []


def test_elements_that_changed_most(run):
    base, tuned = element_chart(run)["traces"]
    # Hydrogen 0 -> 2/3; Mg, O 1/2 -> 0; Hf, Zr 0 -> 1/3; Na, Cl 1/2 -> 1/3.
    assert base["y"] == ["Mg", "O", "Cl", "Na", "Hf", "Zr", "H"]
    assert tuned["x"][-1] == pytest.approx(200 / 3) and base["x"][0] == 50


def test_the_section_is_there_with_two_potentials_only(run):
    data = {"charts": {}}
    assert "A second opinion" in second_opinion([run], data)
    assert len(data["charts"]) == 3
    run.tuned.protocol = run.base.protocol = {}
    assert second_opinion([run], data) == ""


def test_scores_by_one_of_several_potentials_are_shown_as_such():
    assert describe("msun:all").share
    assert describe("e_above_hull:chgnet").label.endswith(": chgnet")
    assert not describe("rank_correlation:a,b").share

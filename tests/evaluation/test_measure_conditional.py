"""What the predictions of a structure are measured by, of a crystal by hand."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from tools.measure_conditional import TOLERANCE, compare, compare_all, report

CSCL = Structure(Lattice.cubic(4.0), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def moved(by: float) -> Structure:
    """The second atom, along x, in Å."""
    other = CSCL.copy()
    other.translate_sites([1], [by, 0, 0], frac_coords=False)
    return other


def test_the_nearest_sample_counts():
    """One of two atoms off by d: both by d / 2 about their middle, of (V / 2)^(1/3)."""
    found = compare(CSCL, [moved(0.6), moved(0.3), moved(1.8)])
    assert found.found
    assert found.displacement == pytest.approx(0.15 / 32 ** (1 / 3), rel=1e-3)


def test_tolerances_are_those_of_predictions():
    """A cell with an edge stretched by 30 % is not found, by the wider ones it is."""
    long = Structure(Lattice.tetragonal(4.0, 5.4), CSCL.species, CSCL.frac_coords)
    found = compare(CSCL, [long])
    assert not found.found and found.displacement is not None


def test_what_has_no_match_counts_with_the_tolerance(capsys):
    other = Structure(CSCL.lattice, ["Cs", "I"], CSCL.frac_coords)
    predictions = compare_all([CSCL] * 4, [[moved(0.3)], [other], [], [CSCL]])
    assert [p.found for p in predictions] == [True, False, False, True]
    report("as sampled", predictions)
    first = 0.15 / 32 ** (1 / 3)
    rmse, crmse = first / 2, np.mean([first, TOLERANCE, TOLERANCE, 0])
    said = f"found 50.0%, METRe 50.0%, RMSE {rmse:.3f} of these, cRMSE {crmse:.3f}"
    assert said in capsys.readouterr().out

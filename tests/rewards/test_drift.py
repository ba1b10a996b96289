import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small_reward import random_crystals

from chemeleon_jax.data.crystals import empty_batch, take
from chemeleon_jax.errors import UserError
from chemeleon_jax.rewards.drift import (
    Drift,
    effective_elements,
    effective_prototypes,
    element_growth,
    element_kl,
    element_kl_component,
    element_marginals,
    element_shares,
    window_iterations,
)
from chemeleon_jax.runs.iteration_files import save_iteration
from chemeleon_jax.workers.outcome import Status

H, LI, OX, NA, CL = 1, 3, 8, 11, 17
ROOT = np.eye(100)


def crystals_of_types(*types):
    """Crystals of these atoms, 2 Å apart along a cell axis each."""
    batch = empty_batch(len(types), 6)
    for row, atoms in enumerate(types):
        n = len(atoms)
        batch.atom_types[row, :n], batch.mask[row, :n] = atoms, True
        batch.frac_coords[row, :n, 0] = np.arange(n) / n
        batch.lengths[row] = 2 * n, 4, 4
    return batch


def counts_of(*types):
    counts = np.zeros((len(types), 118), int)
    for row, atoms in enumerate(types):
        np.add.at(counts[row], np.array(atoms) - 1, 1)
    return counts


def test_shares_count_crystals_not_atoms():
    shares = element_shares(counts_of([H, H, H, OX], [NA, CL], [OX], [LI, H]))
    assert shares[[H - 1, OX - 1, NA - 1]].tolist() == [0.5, 0.5, 0.25]
    assert shares.sum() == 0.5 + 0.5 + 3 * 0.25


def test_effective_numbers_by_hand():
    # O in two crystals, Na and Cl in one each: exp(0.5 ln 2 + 2 * 0.25 ln 4) = 8^0.5.
    assert effective_elements(counts_of([OX], [OX, OX, OX], [NA, CL])) == pytest.approx(
        8**0.5
    )
    # Na2O and Li2O are one prototype, Na4O2 another and NaO2 the first again.
    found = counts_of([NA, NA, OX], [LI, LI, OX], [NA] * 4 + [OX] * 2, [NA, OX, OX])
    entropy = 0.75 * np.log(4 / 3) + 0.25 * np.log(4)
    assert effective_prototypes(found) == pytest.approx(np.exp(entropy))


def test_growth_is_above_its_limit_where_both_conditions_hold():
    """With floor S / F: above F where share > S and share > F * base."""
    rng = np.random.default_rng(0)
    shares, base = rng.uniform(0, 0.4, (2, 1000))
    above = element_growth(shares, base, 0.15 / 3.0) > 3.0
    np.testing.assert_array_equal(above, (shares > 0.15) & (shares > 3 * base))
    assert 0 < above.sum() < 1000
    assert np.isfinite(element_growth(shares, np.zeros(1000), 0.05)).all()


def test_a_window_is_about_a_thousand_crystals():
    assert [window_iterations(b, 0.0) for b in (192, 320, 4000, 8)] == [5, 3, 1, 10]


def test_a_window_reaches_back_as_far_as_the_average_that_is_sampled():
    assert [window_iterations(b, 0.95) for b in (128, 200, 8)] == [20, 20, 20]
    assert window_iterations(8, 0.5) == 10
    assert window_iterations(320, 0.999) == 15  # at most 5,000 crystals


# ------------------------------------------------------------------------ the component


def test_kl_by_hand():
    """NaCl and NaLi: q = Na 1/2, Cl 1/4, Li 1/4; the references p = Na 1/4, Cl 3/4."""
    batch = crystals_of_types([NA, CL], [NA, LI, LI])
    known = np.zeros(118)
    known[[NA - 1, CL - 1]] = 0.25, 0.75
    values, status = element_kl(batch, np.ones(2, bool), known)
    sodium, chlorine, lithium = (
        np.log((q + 1e-3) / (p + 1e-3))
        for q, p in ((0.5, 0.25), (0.25, 0.75), (0.25, 0))
    )
    expected = [-(sodium + chlorine) / 2, -(sodium + lithium) / 2]
    np.testing.assert_allclose(values, expected)
    assert (status == Status.OK).all()


def test_the_mean_value_is_minus_the_divergence():
    rng = np.random.default_rng(0)
    types = [rng.integers(1, 20, rng.integers(1, 6)) for _ in range(40)]
    batch = crystals_of_types(*types)
    known = element_marginals(counts_of(*[rng.integers(1, 25, 4) for _ in range(90)]))
    q = element_marginals(counts_of(*types))
    assert q.sum() == pytest.approx(1)
    values, _ = element_kl(batch, np.ones(40, bool), known)
    expected = (q * np.log((q + 1e-3) / (known + 1e-3))).sum()
    assert values.mean() == pytest.approx(-expected)


def test_values_are_the_gradient_of_the_divergence():
    """Raising the probability of a crystal by h changes KL by -h times its value.

    But for a constant, which no advantage has, and for the smoothing.
    """
    types = [[NA, CL], [NA, LI], [OX], [CL, OX, NA]]
    counts = counts_of(*types)
    f = (counts > 0) / (counts > 0).sum(1, keepdims=True)
    seen = (f > 0).any(0)
    known = np.where(seen, 1 / seen.sum(), 0.0)

    def divergence(probability):
        q = (probability @ f)[seen]
        return (q * np.log(q / known[seen])).sum()

    uniform, h = np.full(4, 0.25), 1e-6
    slope = np.array(
        [
            divergence(uniform + h * row) - divergence(uniform - h * row)
            for row in np.eye(4)
        ]
    ) / (2 * h)
    values, _ = element_kl(crystals_of_types(*types), np.ones(4, bool), known)
    np.testing.assert_allclose(values - values.mean(), slope.mean() - slope, atol=5e-3)


def test_invalid_crystals_have_no_value_and_recent_ones_count():
    batch = crystals_of_types([NA, CL], [H], [NA, LI])
    valid, known = np.array([True, False, True]), np.full(118, 1 / 118)
    values, status = element_kl(batch, valid, known)
    assert status.tolist() == [Status.OK, Status.INVALID, Status.OK] and values[1] == 0
    alone, _ = element_kl(take(batch, valid), valid[valid], known)
    np.testing.assert_allclose(values[valid], alone)
    # Half of the batch recent instead: the same q; rows without an atom are none.
    recent = crystals_of_types([NA, LI], [])
    values, _ = element_kl(take(batch, [0]), np.ones(1, bool), known, recent)
    np.testing.assert_allclose(values, alone[:1])
    values, _ = element_kl(batch, np.zeros(3, bool), known)
    assert not values.any()


def test_so_many_recent_iterations_count():
    """Their rows are as many as they are, whatever the batch has."""
    recent = crystals_of_types([CL], [], [], [NA, LI], [], [], [H], [], [])
    batch = crystals_of_types([NA, CL])
    context = SimpleNamespace(dataset=SimpleNamespace(crystals=BASE))
    context.recent_iterations = 3  # of three rows each

    def value(count):
        component = element_kl_component(context, recent_iterations=count)
        seen = SimpleNamespace(crystals=batch, valid=np.ones(1, bool), recent=recent)
        return component.evaluate(seen)[0]

    known = element_marginals(counts_of(*BASE_TYPES))
    for count, rows in ((1, [6]), (2, [3, 6]), (None, [0, 3, 6])):
        expected, _ = element_kl(batch, np.ones(1, bool), known, take(recent, rows))
        np.testing.assert_allclose(value(count), expected)
    context.recent_iterations = 0
    with pytest.raises(UserError, match="none are kept"):
        value(2)


# --------------------------------------------------------------------- what watches it

BASE_TYPES = [[OX, NA]] * 8 + [[CL, NA]] * 11 + [[H, OX]]
BASE = crystals_of_types(*BASE_TYPES)


def make_drift(base=BASE, iterations=2):
    return Drift(base, BASE, ROOT, iterations=iterations, floor=0.05)


def test_a_run_that_has_not_begun_is_its_base():
    metrics, cause = make_drift().measure()
    assert metrics["frechet_base"] == pytest.approx(0, abs=1e-9)
    assert metrics["element_growth"] == pytest.approx(1)
    assert metrics["diluted"] == 0
    # 19 of 20 have Na, 11 Cl, 9 O; the one with H is too rare for a curve.
    shares = {k: v for k, v in metrics.items() if k.startswith("element_share/")}
    expected = {"Na": 19 / 20, "Cl": 11 / 20, "O": 9 / 20}
    assert shares == pytest.approx(
        {f"element_share/{k}": v for k, v in expected.items()}
    )
    assert "of the last 20 crystals" in cause[1]


def test_what_is_little_more_than_one_element_is_counted():
    drift = make_drift(iterations=1)
    drift.add(
        crystals_of_types([NA], [NA] * 3 + [CL], [NA] * 4 + [CL]), np.full(3, True)
    )
    assert drift.measure()[0]["diluted"] == pytest.approx(2 / 3)


def test_the_element_that_takes_over_is_named():
    drift = make_drift()
    hydrides = crystals_of_types(*[[LI, H]] * 3, *[[OX, NA]] * 7)
    growth = []
    for _ in range(3):
        drift.add(hydrides, np.arange(10) != 9)
        metrics, cause = drift.measure()
        growth.append(metrics["element_growth"])
    # Li: base 0, so 5 %, one crystal of 20. 3 of 9 valid ones in each iteration.
    assert growth[1:] == pytest.approx([(1 / 3) / 0.05] * 2)
    assert growth[0] < growth[1]
    assert metrics["element_grown_most"] in (H, LI)
    assert cause == (
        "H",
        "is in 33.3% of the last 18 crystals, in 5.0% of the original model's",
    )
    assert metrics["frechet_base"] == pytest.approx(metrics["frechet_reference"])
    assert metrics["frechet_base"] > 0.05


def test_of_no_valid_crystal_nothing_is_measured():
    drift = make_drift()
    for _ in range(2):
        drift.add(BASE, np.zeros(20, bool))
    assert drift.measure() == ({}, ("", ""))
    overlapping = dataclasses.replace(BASE, frac_coords=0 * BASE.frac_coords)
    assert make_drift(overlapping).measure() == ({}, ("", ""))


def test_a_resumed_run_measures_the_same(tmp_path, caplog):
    going, resumed, late = (make_drift(random_crystals(24, 0)) for _ in range(3))
    for iteration in range(4):
        crystals = random_crystals(12, iteration + 1)
        valid = np.arange(12) % 5 != iteration
        going.add(crystals, valid)
        scores = dict.fromkeys(("total", "advantage", "unique", "novel"), np.zeros(12))
        scores |= {"components": {}, "valid": valid, "e_above_hull": None}
        save_iteration(tmp_path, iteration, vars(crystals), scores)
    resumed.resume(tmp_path, 4)
    assert resumed.measure() == going.measure()
    assert not caplog.messages
    late.resume(tmp_path, 5)
    assert "iteration_000004" in caplog.text and "measured without it" in caplog.text
    assert jax.tree.all(jax.tree.map(np.isfinite, late.measure()[0]))

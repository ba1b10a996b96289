"""Vibrations and stiffness: of springs by hand, and of a pair potential."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from springs import morse

from chemeleon_jax.potentials.hessian import second_derivatives
from chemeleon_jax.screening import descent
from chemeleon_jax.screening.descent import MAX_DESCENTS, descend_all
from chemeleon_jax.screening.elasticity import GPA, stiffness
from chemeleon_jax.screening.force_constants import (
    find_sources,
    find_symmetries,
    force_constants,
    repeat,
)
from chemeleon_jax.screening.phonons import (
    THZ,
    frequencies,
    softest_mode,
    supercell_size,
    with_sum_rule,
)
from chemeleon_jax.screening.sieve import is_another, third_look
from chemeleon_jax.screening.stability import (
    NUDGE,
    PUSH,
    STRAIN,
    Settled,
    look_around,
    push_atoms,
    push_cell,
    settle,
)
from chemeleon_jax.screening.terms import ScreeningTerms

MORSE = morse()
LIMITS = ScreeningTerms().limits
FCC = Structure(Lattice([[0, 2, 2], [2, 0, 2], [2, 2, 0]]), ["Al"], [[0, 0, 0]])
SIMPLE = Structure(Lattice.cubic(2.8), ["Al"], [[0, 0, 0]])


def test_a_chain_of_springs():
    """Atoms of carbon, springs k along x: omega(q) = 2 sqrt(k / m) |sin(pi q)|.

    The atom next to one in the cell of four is also its neighbour on the other side.
    """
    k, mass = 3.0, 12.0107
    constants = np.zeros((3, 4, 3))
    constants[0, :, 0] = [0.0, -k, 0.0, -k]  # an atom's own is left to the sum rule
    constants, correction = with_sum_rule(constants.reshape(3, 12))
    assert correction == 2 * k and constants[0, 0] == 2 * k
    found = frequencies(constants, [6], (4, 1, 1))
    highest = 2 * np.sqrt(k / mass) * THZ
    assert found.shape == (4, 3) and np.isnan(found[0]).all()
    np.testing.assert_allclose(
        found[1:, 2], highest * np.array([0.5**0.5, 1, 0.5**0.5])
    )
    np.testing.assert_allclose(found[1:, :2], 0, atol=1e-6)
    assert frequencies(-constants, [6], (4, 1, 1))[2, 0] == pytest.approx(-highest)


def test_the_softest_mode_of_a_chain_and_the_push_along_it():
    """Neighbours that repel: two kinds of atoms move apart, the lighter ones more."""
    n, k = 2, -1.0
    constants = np.zeros((n, 3, 2 * n, 3))
    for i, j in ((0, 1), (1, 0), (0, 3), (1, 2)):  # along x: A B | A B
        constants[i, 0, j, 0] = -k / 2
        constants[i, 0, i, 0] += k / 2
    q, moves = softest_mode(constants.reshape(3 * n, -1), [3, 11], (2, 1, 1))
    np.testing.assert_array_equal(q, [0, 0, 0])
    ratio = moves[0, 0] / moves[1, 0]
    assert ratio == pytest.approx(-22.98977 / 6.94, rel=1e-3)
    chain = Structure(Lattice.cubic(4), ["Li", "Na"], [[0, 0, 0], [0.5, 0, 0]])
    pushed = push_atoms(chain, (2, 1, 1), q, moves)
    assert len(pushed) == 2
    away = pushed.cart_coords - chain.cart_coords
    assert abs(away[0, 0]) == pytest.approx(PUSH, abs=NUDGE)
    assert np.abs(away[:, 1:]).max() <= NUDGE
    across = push_atoms(chain, (2, 4, 1), np.array([0.5, 0.25, 0]), moves)
    assert across.lattice.abc == (8, 16, 4)


def test_the_push_along_a_strain():
    """Of the first in the basis, along x: by its norm."""
    pushed = push_cell(SIMPLE, np.eye(6)[0])
    np.testing.assert_allclose(pushed.lattice.abc, [2.8 * (1 + STRAIN), 2.8, 2.8])


def test_a_simple_cubic_lattice_goes_down_to_another(pool):
    [saddle] = settle([at_minimum(SIMPLE)], MORSE)
    [record] = descend_all([saddle], LIMITS, MORSE, pool, 1)
    [found] = record["descents"]
    assert found["along"] == "vibration"
    assert found["converged"] and not found["same"]
    assert found["lowest_frequency"] < -1
    assert found["drop"] > 0.01
    assert record["stability"]["lowest_frequency"] > 0  # of what it has become


def test_a_crystal_goes_down_until_it_is_stable(monkeypatch):
    """One step after another; along a strain where a vibration gains nothing."""

    def settled(name, frequency, stiffness=9.0):
        record = {"lowest_frequency": frequency, "lowest_stiffness": stiffness}
        return Settled(name, 0.0, record, {})

    def step(rest, drop=0.01, same=True):
        fell = {"converged": True, "drop": drop, "same": same, "space_group": "P1"}
        return fell | {"rest": rest}

    goes = {  # from, along: how far, and where to
        ("a", "vibration"): step(settled("b", -2.0)),
        ("b", "vibration"): step(settled("c", 1.0)),
        ("flat", "vibration"): step(None, drop=0.0),
        ("flat", "strain"): step(None, drop=0.0),
        ("other", "vibration"): step(settled("hcp", 1.0), same=False),
        ("falls", "vibration"): step(None, drop=-9.0) | {"converged": False},
        ("deep", "vibration"): step(settled("deep", -2.0)),
    }

    def descend(saddles, ways, *_):
        for saddle, way in zip(saddles, ways, strict=True):
            fell = dict(goes[saddle.structure, way])
            rest = fell.pop("rest")
            record = {"descent": fell | {"along": way}}
            yield record | ({"stability": rest.record} if rest else {}), rest

    monkeypatch.setattr(descent, "descend", descend)
    crystals = [settled("a", -3.0), settled("flat", -1.0, -2.0)]
    crystals += [settled("other", -1.0), settled("deep", -1.0), settled("still", 1.0)]
    crystals += [settled("falls", -1.0)]
    found = descend_all(crystals, LIMITS, MORSE, None, 1)
    ways = [[d["along"] for d in record["descents"]] for record in found]
    assert ways[:2] == [["vibration", "vibration"], ["vibration", "strain"]]
    assert ways[2:5] == [["vibration"], ["vibration"] * MAX_DESCENTS, []]
    assert ways[5] == ["vibration"]
    assert found[0]["stability"]["lowest_frequency"] == 1.0
    near = {"e_above_hull:a": 0.0}
    reasons = [
        third_look({"stability": crystal.record} | record | near, ["a"], LIMITS)[0]
        for crystal, record in zip(crystals, found, strict=True)
    ]
    unstable = "dynamically_unstable"
    assert reasons == ["", "", "", unstable, "", unstable]
    assert [is_another(record["descents"]) for record in found].index(True) == 2


def test_one_electronvolt_per_square_angstrom_and_mass_unit_in_thz():
    joule, dalton = 1.602176634e-19, 1.66053906660e-27
    assert np.sqrt(joule / 1e-20 / dalton) / (2 * np.pi) == pytest.approx(THZ * 1e12)


def test_supercells_are_even_and_not_too_large():
    def size(a, b, c, atoms=1):
        frac = np.random.default_rng(0).random((atoms, 3))
        return supercell_size(
            Structure(Lattice.orthorhombic(a, b, c), ["Si"] * atoms, frac)
        )

    assert size(4, 4.1, 8.5) == (2, 2, 2)
    assert size(2.8, 2.8, 3.9) == (4, 4, 4)  # not 3, where opposite phases do not fit
    assert size(4, 5, 9, atoms=20) == (2, 2, 1)
    assert size(9, 9, 9, atoms=81) == (1, 1, 1)
    assert len(repeat(FCC, (2, 2, 4))) == 16


def test_moduli_of_an_isotropic_body():
    """c11 = K + 4 G / 3, c12 = K - 2 G / 3, c44 = G; 2 G in the tensor's own basis."""
    bulk, shear = 100.0, 40.0
    tensor = np.diag([2 * shear] * 6)
    tensor[:3, :3] += bulk - 2 * shear / 3
    found = stiffness(np.zeros((3, 3)), np.zeros((3, 6)), tensor / GPA * 20.0, 20.0)
    assert found.bulk == pytest.approx(bulk) and found.shear == pytest.approx(shear)
    assert found.matrix[3, 3] == pytest.approx(shear)
    assert found.matrix[0, 0] == pytest.approx(bulk + 4 * shear / 3)
    assert found.lowest == pytest.approx(2 * shear)


def test_atoms_that_follow_make_a_crystal_softer():
    """Two atoms on a spring of 2 k that a strain pulls by p: C V = c - p^2 / (2 k)."""
    k, pull, own = 2.0, 1.5, 10.0
    springs = np.kron([[k, -k], [-k, k]], np.eye(3))
    coupling = np.zeros((6, 6))
    coupling[0, 0], coupling[3, 0] = pull, -pull
    found = stiffness(springs, coupling, own * np.eye(6), volume=GPA)
    assert found.matrix[0, 0] == pytest.approx(own - pull**2 / k)
    assert found.matrix[1, 1] == pytest.approx(own)


def at_minimum(structure):
    """The crystal at the volume of least energy, by bisection."""
    low, high = 0.8, 1.2
    for _ in range(16):
        middle = structure.copy()
        middle.apply_strain((low + high) / 2 - 1)
        pressure = -second_derivatives(middle, MORSE, [3]).gradient[-6:-3].sum()
        low, high = (
            ((low + high) / 2, high) if pressure > 0 else (low, (low + high) / 2)
        )
    return middle


@pytest.fixture(scope="module")
def fcc():
    return at_minimum(FCC)


def test_second_derivatives_are_those_of_the_gradient(fcc):
    """By differences at 0.004 Å; in fractional coordinates they would be 8 times."""
    pushed = repeat(fcc, (2, 1, 1))
    pushed.translate_sites([1], [0.03, 0.01, -0.02])
    pushed.apply_strain([0.01, -0.02, 0.0])
    found = second_derivatives(pushed, MORSE)
    assert found.hessian.shape == (12, 12)
    np.testing.assert_allclose(found.hessian, found.hessian.T, atol=2e-3)
    step = 0.004
    for atom, axis in ((0, 0), (1, 2)):
        ends = []
        for sign in (1, -1):
            other = pushed.copy()
            move = np.eye(3)[axis] * sign * step
            other.translate_sites([atom], move, frac_coords=False)
            ends.append(second_derivatives(other, MORSE, [0]).gradient)
        by_differences = (ends[0] - ends[1]) / (2 * step)
        # Those in the strain count from where the atom is: less, off a minimum.
        row = found.hessian[3 * atom + axis]
        np.testing.assert_allclose(row[:-6], by_differences[:-6], atol=0.02)


def hcp(stretch=1.0):
    """Two equal atoms; one off its place has no symmetry that takes it to the other."""
    lattice = Lattice.hexagonal(2.8, 4.6 * stretch)
    return Structure(lattice, ["Mg"] * 2, [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]])


# Three equal atoms of a screw of three: rotations alone take one to another.
HELIX = Structure.from_spacegroup(
    "P3_121", Lattice.hexagonal(3.6, 4.8), ["Te"], [[0.27, 0, 1 / 3]]
)


@pytest.mark.parametrize(
    ("structure", "size", "differentiated"),
    [
        (hcp(), (2, 2, 1), 1),
        (hcp(), (3, 1, 1), 1),
        (FCC * (2, 1, 1), (1, 2, 2), 1),
        (HELIX, (2, 2, 1), 1),
        (HELIX, (1, 2, 1), 2),
    ],
)
def test_atoms_that_are_equal_are_differentiated_once(structure, size, differentiated):
    """Off the minimum, and in supercells of less symmetry than the crystal."""
    n = len(structure)
    symmetries = find_symmetries(structure, size)
    assert len({i for i, _ in find_sources(n, symmetries)}) == differentiated
    found = force_constants(structure, size, MORSE)
    whole = second_derivatives(repeat(structure, size), MORSE).hessian
    scale = np.abs(whole[:, :-6]).max()
    np.testing.assert_allclose(found.atom_atom, whole[: 3 * n, :-6], atol=1e-4 * scale)
    np.testing.assert_allclose(
        found.atom_strain, whole[: 3 * n, -6:], atol=1e-4 * scale
    )
    cells = np.prod(size)
    np.testing.assert_allclose(
        found.strain_strain, whole[-6:, -6:] / cells, rtol=1e-3, atol=1e-3 * scale
    )


def test_a_supercell_keeps_only_symmetries_of_its_own():
    assert len(find_symmetries(SIMPLE, (2, 2, 2))) == 48
    assert len(find_symmetries(SIMPLE, (2, 2, 4))) == 16
    pushed = hcp()
    pushed.translate_sites([0], [0.01, 0.003, 0.002])
    assert len(find_symmetries(pushed, (2, 2, 2))) == 2  # identity and inversion


def test_close_packing_is_stable_and_a_simple_cubic_lattice_is_not(fcc):
    found, _ = look_around(fcc, MORSE)
    assert found.supercell == (4, 4, 4)
    assert 1 < found.lowest_frequency < found.highest_frequency < 20
    c = np.array(found.stiffness)
    assert c[0, 1] == pytest.approx(c[3, 3], rel=0.01)  # Cauchy: central forces
    assert found.bulk_modulus == pytest.approx((c[0, 0] + 2 * c[0, 1]) / 3, rel=1e-3)
    assert found.lowest_stiffness > 0

    unstable, _ = look_around(at_minimum(SIMPLE), MORSE)
    assert unstable.lowest_frequency < -1
    assert unstable.lowest_stiffness < 0

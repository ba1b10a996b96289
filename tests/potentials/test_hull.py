"""The convex hull: by hand, against pymatgen, and as embedded."""

import dataclasses

import numpy as np
import pytest
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition, Element, Lattice, Structure

from chemeleon_jax.data.crystals import from_structures
from chemeleon_jax.data.dataset import Dataset
from chemeleon_jax.errors import UserError
from chemeleon_jax.potentials import hull
from chemeleon_jax.potentials.corrections import mp2020_correction
from chemeleon_jax.potentials.hull import Hull, composition_counts, load_hull
from chemeleon_jax.potentials.hull_file import read_hull_file
from chemeleon_jax.potentials.loading import load_potential
from chemeleon_jax.potentials.types import Potential


def rows(*formulas):
    """Atomic numbers [B, N] of formulas such as "Na2O"."""
    atoms = [
        [Element(e).Z for e, n in Composition(f).items() for _ in range(int(n))]
        for f in formulas
    ]
    width = max(map(len, atoms))
    return np.array([a + [0] * (width - len(a)) for a in atoms])


@pytest.fixture(scope="module")
def embedded():
    return load_hull(load_potential("chgnet"))


def test_binary_hull_by_hand():
    """Na 0, O 0, Na2O -1.2, NaO -0.6 eV/atom. NaO lies above the line Na2O - O.

    At x(Na) = 1/2 that line is at -1.2 * (1/2) / (2/3) = -0.9.
    """
    formulas = "Na", "O", "Na2O", "NaO"
    small = Hull(composition_counts(rows(*formulas)), [0.0, 0.0, -1.2, -0.6])
    above = small.e_above_hull(rows(*formulas), [0.1, 0.0, -1.2, -0.6])
    np.testing.assert_allclose(above, [0.1, 0.0, 0.0, 0.3], atol=1e-12)
    # Half of Na2O, half of Na; and a crystal below the hull.
    above = small.e_above_hull(rows("Na5O", "Na4O2"), [-0.5, -1.5])
    np.testing.assert_allclose(above, [0.1, -0.3], atol=1e-12)


def test_only_the_lowest_entry_of_a_composition_counts():
    counts = composition_counts(rows("Na", "O", "NaO", "Na2O2", "NaO"))
    small = Hull(counts, [0, 0, -0.2, -0.7, np.nan])
    assert len(small) == 3
    assert small.hull_energy([8, 11, 0]) == pytest.approx(-0.7)


def test_entries_of_a_system():
    counts = composition_counts(rows("Na", "O", "Cl", "NaO", "NaCl", "NaClO"))
    small = Hull(counts, np.zeros(6))
    assert small.num_entries([11]) == 1
    assert small.num_entries([8, 11, 8]) == 3
    assert small.num_entries([8, 11, 17]) == 6
    assert small.num_entries([]) == small.num_entries([119]) == 0


def test_what_has_no_reference_is_nan():
    small = Hull(composition_counts(rows("Na", "NaO")), [0.0, -0.5])
    energies = [np.nan, -1.0, -1.0, -1.0, 0.2]
    above = small.e_above_hull(rows("Na", "NaO", "Cl", "NaCl", "Na"), energies)
    np.testing.assert_allclose(above, [np.nan] * 4 + [0.2])
    assert np.isnan(small.e_above_hull(np.array([[0, 0], [-3, 11]]), [0, 0])).all()


def test_agrees_with_pymatgen(embedded):
    """200 entries of random systems, and compositions that are not on record."""
    rng = np.random.default_rng(0)
    present = embedded.counts > 0
    candidates = np.flatnonzero(present.sum(1) >= 2)
    for index in rng.choice(candidates, 200, replace=False):
        system = np.flatnonzero(present[index])
        inside = np.flatnonzero(present[:, system].sum(1) == present.sum(1))
        entries = [
            PDEntry(formula(embedded.counts[i]), e * embedded.counts[i].sum())
            for i, e in zip(inside, embedded.energies[inside], strict=True)
        ]
        diagram = PhaseDiagram(entries)
        other = np.zeros(118, int)
        other[system] = rng.integers(1, 6, len(system))
        for counts in (embedded.counts[index], other):
            expected = diagram.get_hull_energy_per_atom(formula(counts))
            atom_types = np.repeat(np.arange(1, 119), counts)
            assert abs(embedded.hull_energy(atom_types) - expected) < 1e-6
        assert embedded.num_entries(system + 1) == len(inside)


def formula(counts) -> Composition:
    return Composition({Element.from_Z(z + 1): counts[z] for z in counts.nonzero()[0]})


def test_many_elements(embedded):
    """Nine elements: no polytope is built, so the time does not explode."""
    atom_types = np.array([1, 3, 8, 11, 14, 17, 26, 29, 50])
    energy = embedded.hull_energy(atom_types)
    parts = [embedded.hull_energy([z]) for z in atom_types]
    assert energy < np.mean(parts)


def test_degenerate_entries_end():
    """Ternary entries on one line, at one energy, and queried on that line."""
    counts = composition_counts(
        rows("Na", "O", "Cl", *[f"Na{i}O{6 - i}" for i in range(1, 6)], "NaOCl")
    )
    flat = Hull(counts, np.zeros(9))
    for query in ("Na3O3Cl", "NaOCl", "Na2O4Cl6", "NaO"):
        assert flat.e_above_hull(rows(query), [0.25])[0] == pytest.approx(0.25)


def test_embedded_hull(embedded):
    assert len(embedded) == 12_149  # 11,383 of mp_mini, 89 elements, 677 binaries
    assert len(embedded.counts[(embedded.counts > 0).sum(1) == 1]) >= 89
    # Rock salt at its experimental cell is nearly the reference itself.
    assert abs(embedded.e_above_hull(rows("NaCl"), [-3.666])[0]) < 0.005


@pytest.mark.parametrize(
    ("name", "salt"), [("sevennet-l3i5", -3.388), ("sevennet-0", -3.384)]
)
def test_embedded_hulls_of_sevennet(name, salt):
    """Corrected, and of every crystal; mp_mini has neither polonium nor the like."""
    sevennet = load_hull(load_potential(name))
    assert sevennet.scheme == "MP2020" and len(sevennet) == 12_149
    assert (sevennet.counts > 0).sum(1).tolist().count(1) == 89
    # Rock salt as in mp_mini, uncorrected, and -0.614 eV for its anion.
    assert abs(sevennet.e_above_hull(rows("NaCl"), [salt - 0.307])[0]) < 0.005


@pytest.mark.parametrize("name", ["chgnet", "sevennet-l3i5", "sevennet-0"])
def test_binaries_that_the_data_set_lacks(name):
    """Formation energies, eV/atom, from enthalpies at 298 K, kJ/mol.

    Of the CRC Handbook, written down without it at hand: look them up before use.
    """
    known = load_hull(load_potential(name))
    for formula, enthalpy in {
        "Y2O3": -1905.3,
        "Sm2O3": -1823.0,
        "MoO3": -745.1,
        "CsF": -553.5,
        "ZrF4": -1911.3,
        "NdCl3": -1041.0,
        "CaI2": -533.5,
        "SrI2": -558.1,
    }.items():
        (types,) = rows(formula)
        elements = np.mean([known.hull_energy([z]) for z in types])
        formation = enthalpy / 96.485 / len(types)
        found = known.hull_energy(types) - elements
        assert found == pytest.approx(formation, abs=0.085), formula


@pytest.mark.parametrize("name", ["sevennet-l3i5", "sevennet-0"])
def test_a_salt_with_too_much_chlorine_is_stable_by_its_corrections(name):
    """KCl15 has -0.614 eV for each chlorine, of KCl and 7 Cl2 only the salt's."""
    potential = load_potential(f"{name}:uncorrected")
    raw, corrected = load_hull(potential), load_hull(load_potential(name))
    assert potential.scheme == raw.scheme == "uncorrected"
    assert len(raw) == len(corrected) == 12_149
    salt = rows("KCl15")[0]
    owed = corrected.hull_energy(salt) - raw.hull_energy(salt)
    assert owed == pytest.approx(-0.614 / 16, abs=1e-4)
    found = mp2020_correction(salt, np.zeros((16, 3)), 9.0 * np.eye(3))
    assert found - owed == pytest.approx(-0.614 * 14 / 16, abs=1e-4)


def toy_potential(name="toy"):
    """A potential whose energy is the mean atomic number, negated."""

    def energies(crystals):
        count = crystals.mask.sum(-1)
        energy = -crystals.atom_types.sum(-1) / count
        return energy.astype("float32"), (count * 0).astype("int32")

    return Potential(name, name * 8, energies)


@pytest.fixture
def salt():
    cell = Lattice.cubic(4.0)
    structures = [
        Structure(cell, ["Na"], [[0, 0, 0]]),
        Structure(cell, ["Cl"], [[0, 0, 0]]),
        Structure(cell, ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
    ]
    ids, split = np.array(["a", "b", "c"]), np.zeros(3, np.int8)
    return Dataset(from_structures(structures), {}, ids, split)


def test_hull_of_another_potential_is_evaluated_once(salt, tmp_path, monkeypatch):
    first = load_hull(toy_potential(), salt, tmp_path)
    assert first.hull_energy([11, 17]) == -14.0  # (11 + 17) / 2
    monkeypatch.setattr(hull, "evaluate", None)  # not called again
    again = load_hull(toy_potential(), salt, tmp_path)
    np.testing.assert_array_equal(again.energies, first.energies)
    assert again.potential_digest == "toy" * 8
    with pytest.raises(TypeError):
        load_hull(toy_potential("another"), salt, tmp_path)


def test_a_hull_that_is_cut_off_goes_on(salt, tmp_path):
    toy = toy_potential()

    def fails_for(size):
        def energies(crystals):
            if len(crystals.mask) == size:
                raise RuntimeError("cut off")
            return toy.energies(crystals)

        return dataclasses.replace(toy, energies=energies)

    with pytest.raises(RuntimeError):
        load_hull(fails_for(512), salt, tmp_path)  # a batch of the references
    (part,) = tmp_path.glob("*.parts/*.npz")
    done = load_hull(fails_for(len(salt)), salt, tmp_path)
    assert not part.parent.exists()
    whole = load_hull(toy, salt, tmp_path / "another")
    np.testing.assert_array_equal(done.energies, whole.energies)


def test_chgnet_hull_of_a_data_set_adds_to_the_embedded(
    salt, embedded, tmp_path, monkeypatch
):
    energies = np.array([-1.0, -1.0, -9.0]), np.array([0, 0, 0])
    monkeypatch.setattr(hull, "evaluate", lambda *_, **__: energies)
    both = load_hull(load_potential("chgnet"), salt, tmp_path)
    assert both.hull_energy([11, 17]) == -9.0
    assert both.hull_energy([14]) == embedded.hull_energy([14])


def test_damaged_files_are_named(tmp_path, monkeypatch):
    path = tmp_path / "hull.npz"
    path.write_bytes(b"PK no zip")
    with pytest.raises(UserError, match="hull.npz cannot be read as a hull"):
        hull.read_hull(path)
    monkeypatch.setattr(hull, "ASSETS", tmp_path)
    with pytest.raises(UserError, match="hull.npz was altered"):
        hull._embedded_hull.__wrapped__(load_potential("chgnet"))


# -------------------------------------------------------------- a user's own entries


def test_entries_of_a_csv_file(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(
        "id,composition,energy_per_atom\n"
        "a,Na,-1.0\nb,Cl,-2.0\nc,NaCl,-3.0\nd,Na2Cl2,-3.5\ne,Na(Cl)1,-3.25\n"
    )
    mine = read_hull_file(path, toy_potential())
    assert len(mine) == 3  # the lowest of each composition
    assert mine.hull_energy([11, 17]) == -3.5
    # A third Na, two thirds NaCl: (-1.0 - 2 * 3.5) / 3.
    assert mine.hull_energy([11, 11, 17]) == pytest.approx(-8 / 3)
    assert np.isnan(mine.hull_energy([11, 8]))


def test_entries_of_a_hull_are_those_of_its_potential(tmp_path, monkeypatch):
    toy, path = toy_potential(), tmp_path / "hull.npz"
    hull.save_hull(path, Hull(composition_counts(rows("Na")), [-1.0], toy.digest))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_hull_file("~/hull.npz", toy).hull_energy([11]) == -1.0
    with pytest.raises(UserError, match="not those of another"):
        read_hull_file(path, toy_potential("another"))


def test_a_hull_mixes_no_schemes(tmp_path):
    """Corrected entries under uncorrected crystals: every anion would look stable."""
    toy, path = toy_potential(), tmp_path / "hull.npz"
    counts = composition_counts(rows("Na"))
    hull.save_hull(path, Hull(counts, [-1.0], toy.digest, "MP2020"))
    with pytest.raises(UserError, match="'MP2020', those of toy 'own': a hull mixes"):
        read_hull_file(path, toy)
    corrected = dataclasses.replace(toy, scheme="MP2020")
    assert read_hull_file(path, corrected).scheme == "MP2020"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("formula,energy\nNa,-1", "no column 'composition'"),
        ("composition,energy\nNa,-1", "no column 'energy_per_atom'"),
        ("composition,energy_per_atom\n", "no hull entry"),
        ("composition,energy_per_atom\nNa,-1\nXx2,0", "row 2: 'Xx2' is no formula"),
        ("composition,energy_per_atom\nNa0.5Cl,0", "row 1: 'Na0.5Cl' is no formula"),
        ("composition,energy_per_atom\nNa1e400,0", "row 1: 'Na1e400' is no formula"),
        ("composition,energy_per_atom\nNa,nan", "row 1: energy_per_atom 'nan'"),
        ("composition,energy_per_atom\nNa", "row 1: energy_per_atom None"),
        ("composition,energy_per_atom\n" + "Na,x\n" * 7, "row 5: .*; and 2 more"),
    ],
)
def test_what_is_wrong_with_entries_is_said(tmp_path, text, message):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=f"mine.csv.*{message}"):
        read_hull_file(path, toy_potential())
    with pytest.raises(UserError, match="no such file of hull entries"):
        read_hull_file(tmp_path / "none.csv", toy_potential())

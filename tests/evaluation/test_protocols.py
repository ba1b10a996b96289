"""LeMat-GenBench's and MatterGen's numbers, recorded by tools/record_protocols.py."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from inline_pool import InlinePool
from paths import FIXTURES
from pymatgen.core import Lattice, Structure

from chemeleon_jax.data.crystals import formula_key, from_structures, take
from chemeleon_jax.data.dataset import Dataset, load_dataset
from chemeleon_jax.errors import UserError
from chemeleon_jax.evaluation.protocols import choice, disorder, lemat, lemat_checks
from chemeleon_jax.evaluation.protocols import mattergen as mattergen_module
from chemeleon_jax.evaluation.protocols.distributions import (
    entropy_of_bins,
    histogram,
    js_distance,
    mmd,
)
from chemeleon_jax.evaluation.protocols.lemat import LeMat
from chemeleon_jax.evaluation.protocols.lemat_checks import Checks, packing_factor
from chemeleon_jax.evaluation.protocols.lemat_scores import (
    crystal_system,
    displacement,
    hhi,
)
from chemeleon_jax.evaluation.protocols.mattergen import MatterGen
from chemeleon_jax.evaluation.protocols.mattergen_checks import (
    composition_valid,
    relaxation_rmsd,
)
from chemeleon_jax.evaluation.protocols.profile import profile_of_cells
from chemeleon_jax.evaluation.statistics import resample
from chemeleon_jax.evaluation.terms import Terms
from chemeleon_jax.potentials.hull import Hull, composition_counts
from chemeleon_jax.potentials.loading import load_potential
from chemeleon_jax.potentials.types import Potential
from chemeleon_jax.rewards.matches import index_references
from chemeleon_jax.workers.calculators import RelaxedStructure
from chemeleon_jax.workers.matching import cell_of, reduce_cell

JUDGES = ("chgnet", "sevennet-l3i5")
EXACT = {"rel": 0, "abs": 1e-6}


@pytest.fixture(scope="module")
def recorded():
    """Crystals and known ones, and what the packages say of them."""
    with np.load(FIXTURES / "protocols.npz") as file:
        arrays = dict(file)
    found = json.loads(arrays.pop("recorded").tobytes())
    types = arrays["structures:types"]
    for kind in ("structures", "relaxed", "deformed"):
        found[kind] = [
            Structure(Lattice(matrix), some[some > 0], frac[some > 0])
            for matrix, some, frac in zip(
                arrays[f"{kind}:matrix"], types, arrays[f"{kind}:frac"], strict=True
            )
        ]
    known = take(load_dataset("mp_mini").crystals, arrays["known_rows"])
    ids = arrays["known_rows"].astype(str)
    found["dataset"] = Dataset(known, {}, ids, np.zeros(len(ids), np.int8))
    found["references"] = index_references(known)
    return found | arrays


def judge_by(protocol, structures, recorded, judges=None):
    """Rows of structures judged by a protocol alone, and the context."""
    keys = [formula_key(s.atomic_numbers) for s in structures]
    known = recorded["references"]
    rows = []
    for structure, key in zip(structures, keys, strict=True):
        row = {"status": "", "valid": True, "structure": structure.as_dict(verbosity=0)}
        if keys.count(key) > 1 or key in known.by_formula:
            reduced = reduce_cell(cell_of(structure))
            row["reduced"] = [x.tolist() for x in reduced]
        rows.append(row)
    context = SimpleNamespace(pool=InlinePool(), references=known, judges=judges)
    protocol.judge(rows, structures, context)
    return rows, context


def compare(name, recorded, scores):
    theirs = recorded[name]["scores"]
    wanted = {
        f"{name}/{k}": theirs[there] for k, there in recorded["names"][name].items()
    }
    found = {k: scores[k].value for k in wanted}
    assert found == pytest.approx(wanted, **EXACT)


def test_scores_are_those_of_lemat_genbench(recorded, monkeypatch):
    """200 crystals; checks and relaxed crystals as recorded, all the rest is ours."""
    structures, found = recorded["structures"], recorded["lemat"]
    numbers = iter(found["space_group"])  # of valid ones
    checks = []
    for i, structure in enumerate(structures):
        some = [found[k][i] for k in ("charge", "distance", "plausible")]
        number = next(numbers) if all(some) else 0
        checks.append(Checks(*some, number, packing_factor(structure)))
    remaining = iter(checks)
    monkeypatch.setattr(lemat, "check", lambda cell: next(remaining))
    known = recorded["references"].cells
    profile = profile_of_cells(
        known, recorded["known_space_group"], np.full(len(known), 0)
    )
    monkeypatch.setattr(lemat, "profile_of_dataset", lambda *_: profile)
    counts = composition_counts(recorded["dataset"].crystals.atom_types)
    hulls = {k: (None, Hull(counts, recorded[f"energy:known:{k}"])) for k in JUDGES}

    moved = {
        id(structure): RelaxedStructure(after, 0, 0, 1, True)
        for structure, after in zip(structures, recorded["deformed"], strict=True)
    }
    relaxations = dict.fromkeys(JUDGES, lambda some: [moved[id(s)] for s in some])
    protocol = LeMat(recorded["dataset"], relaxations)
    rows, context = judge_by(protocol, structures, recorded, hulls)
    for name in JUDGES:
        for row, above in zip(rows, recorded[f"above:structures:{name}"], strict=True):
            row[f"e_above_hull:{name}"] = above
    protocol.finish(rows, context)
    scores = protocol.score(rows, context, resample(len(rows), 20, 0))
    compare("lemat", recorded, scores)
    assert protocol.is_of_reference("lemat/stable_ratio:chgnet")
    assert not protocol.is_of_reference("lemat/hhi_reserve")
    low, high = scores["lemat/sun_rate"][1:]
    assert 0 < low < scores["lemat/sun_rate"].value < high
    assert np.isnan(scores["lemat/js_average"].low)


def test_checks_are_those_of_lemat_genbench(recorded):
    """Every way to a verdict: metals, bond valences, both tables, contacts."""
    found = recorded["lemat"]
    picked = [i for i in range(200) if len(recorded["structures"][i]) < 9][:12]
    picked += [i for i in range(200) if not found["charge"][i]][:4]
    picked += [i for i in range(200) if not found["plausible"][i]][:2]
    for i in picked:
        checks = lemat_checks.check(cell_of(recorded["structures"][i]))
        assert checks.charge == found["charge"][i], i
        assert checks.distance == found["distance"][i], i
        assert checks.plausible == found["plausible"][i], i


def test_scores_are_those_of_mattergen(recorded, monkeypatch):
    """200 relaxed crystals; the distances that they moved as recorded."""
    found = recorded["mattergen"]["columns"]
    structures = recorded["relaxed"]
    validity = dict(
        zip(
            (formula_key(s.atomic_numbers) for s in structures),
            (bool(x) for x in found["comp_validity"]),
            strict=True,
        )
    )
    monkeypatch.setattr(mattergen_module, "composition_valid", validity.__getitem__)
    rows, context = judge_by(
        MatterGen(recorded["dataset"], False), structures, recorded
    )
    protocol = MatterGen(recorded["dataset"], True)
    moved = found["rmsd_from_relaxation"]
    above = recorded[f"above:relaxed:{JUDGES[0]}"]
    for row, distance, rmsd in zip(rows, above, moved, strict=True):
        row |= {"e_above_hull": distance, "mattergen/rmsd_from_relaxation": rmsd}
    protocol.finish(rows, context)
    scores = protocol.score(rows, context, resample(len(rows), 20, 0))
    compare("mattergen", recorded, scores)
    flags = ("unique", "novel", "structure_validity", "stable")
    for flag in flags:
        ours = [bool(row[f"mattergen/{flag}"]) for row in rows]
        assert ours == [bool(x) for x in found[flag]], flag


def test_checks_are_those_of_mattergen(recorded):
    found = recorded["mattergen"]
    for i in range(0, 200, 4):
        key = formula_key(recorded["relaxed"][i].atomic_numbers)
        assert composition_valid(key) == bool(found["columns"]["comp_validity"][i]), i
    for i in (0, 140, 170, 190):
        pair = (cell_of(recorded[kind][i]) for kind in ("structures", "relaxed"))
        rmsd = found["columns"]["rmsd_from_relaxation"][i]
        assert relaxation_rmsd(tuple(pair)) == pytest.approx(rmsd, **EXACT)


def test_alloys_match_as_mattergen_has_it(recorded):
    pairs = recorded["mattergen"]["pairs"]
    ordered = 0
    for i, j, match in pairs:
        one, other = (reduce_cell(cell_of(recorded["relaxed"][k])) for k in (i, j))
        assert disorder.fits(one, other) == match, (i, j)
        ordered += disorder.matching.fits(one, other)
    assert ordered < sum(match for *_, match in pairs) < len(pairs)


def test_distances_of_distributions_by_hand():
    assert js_distance(np.array([2, 2]), np.array([5, 5])) == pytest.approx(0)
    apart = js_distance(np.array([1, 0]), np.array([0, 3]))
    assert apart == pytest.approx(np.sqrt(np.log(2)))
    assert np.isnan(js_distance(np.zeros(2), np.ones(2)))
    near, far = np.exp(-0.5), np.exp(-2.0)
    # x = 0, 1 and y = 2: pairs of one with itself are counted.
    expected = (2 + 2 * near) / 4 + 1 - 2 * (far + near) / 2
    assert mmd(np.array([0.0, 1.0]), np.array([2.0])) == pytest.approx(expected)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=600), rng.normal(size=300)  # blocks of 256

    def kernel(a, b):
        return np.exp(-0.5 * (a[:, None] - b) ** 2).mean()

    expected = kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)
    assert mmd(x, y) == pytest.approx(expected, abs=1e-12)
    assert histogram([1, 3, 3], 3).tolist() == [1, 0, 2]
    assert entropy_of_bins(np.array([0.1, 0.4, 0.6]), 0.5) == pytest.approx(
        np.log(3) - 2 / 3 * np.log(2)
    )


def test_indices_of_elements_by_hand():
    counts = np.zeros((2, 118))
    counts[0, [10, 16]] = 1, 3  # NaCl3
    counts[1, 93] = 2  # Pu, which the table lacks
    assert hhi(counts) == pytest.approx(
        np.array([[(1.102 + 3 * 1.5) / 4, (0.5 + 3 * 1.5) / 4], [10, 10]])
    )
    groups = np.array([1, 2, 3, 15, 16, 74, 75, 142, 143, 167, 168, 194, 195, 230])
    assert crystal_system(groups).tolist() == np.repeat(np.arange(1, 8), 2).tolist()


def test_displacement_knows_no_rotation_and_no_handedness():
    """A cell as its parameters, atoms inside it: not metres away."""
    before = Structure(Lattice([[4, 0, 0], [1, 4, 0], [0, 1, 5]]), ["Na", "Cl"],
                       [[0.98, 0.1, 0.2], [0.5, 0.5, 0.5]])  # fmt: skip
    frac = before.frac_coords + [[0.04, 0, 0], [0, 0, 0]]
    moved = Structure(before.lattice, before.species, frac % 1)
    assert displacement(before, moved) == pytest.approx(4 * 0.04 / np.sqrt(2))
    plain = Lattice.from_parameters(*before.lattice.parameters)
    rotated = Structure(plain, before.species, frac % 1)
    assert displacement(before, rotated) == pytest.approx(4 * 0.04 / np.sqrt(2))
    mirrored = Structure(-before.lattice.matrix, before.species, -frac % 1)
    assert displacement(before, mirrored) == pytest.approx(4 * 0.04 / np.sqrt(2))
    stretched = Structure(before.lattice.matrix * 1.1, before.species, frac - 0)
    cart = before.cart_coords
    expected = 1.1 * (cart + [[0.16, 0, 0], [0, 0, 0]]) - cart
    assert displacement(before, stretched) == pytest.approx(
        np.sqrt((expected**2).sum(1).mean())
    )


def test_elements_that_may_substitute():
    assert disorder.may_substitute(26, 27)  # Fe, Co
    assert not disorder.may_substitute(11, 17)  # Na, Cl
    assert not disorder.may_substitute(2, 10)  # He and Ne have no radius
    # Cu goes with Ni and with Zn, whichever pair comes first: one group.
    assert disorder.substitutable((8, 28, 29, 30)) == (frozenset({28, 29, 30}),)


def test_mattergen_has_corrected_energies():
    cell = Lattice.from_parameters(2.97, 2.97, 2.97, 60, 60, 60)
    magnesia = Structure(cell, ["Mg", "O"], [[0, 0, 0], [0.5, 0.5, 0.5]])

    def energies(crystals):
        zero = crystals.lengths[:, 0] * 0
        return zero, zero.astype(np.int32)

    own = Potential("ase:a:b", "digest", energies)
    assert choice.with_corrections(own, "lemat") is own
    theirs = choice.with_corrections(own, "mattergen")
    assert theirs.scheme == "MP2020" and theirs.digest != own.digest
    energy, _ = theirs.energies(from_structures([magnesia]))
    assert float(energy[0]) == pytest.approx(-0.687 / 2)
    assert choice.with_corrections(theirs, "mattergen") is theirs
    bare = load_potential("sevennet-0:uncorrected")  # whose hull is another file
    assert choice.with_corrections(bare, "mattergen").name == "sevennet-0"


@pytest.mark.parametrize(("name", "relaxed"), [("lemat", False), ("mattergen", True)])
def test_crystals_are_relaxed_first_where_the_protocol_does(name, relaxed):
    assert Terms(protocol=name).relax is relaxed
    assert Terms(protocol=name, relax=True).relax
    with pytest.raises(UserError, match="--protocol=lemon: must be one of own, lemat"):
        Terms(protocol="lemon")

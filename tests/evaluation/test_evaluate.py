"""What the program says of crystals."""

import csv
import json

import numpy as np
import pytest
from crystal_sets import disguised
from evaluating import run
from known_crystals import CLASH, CSCL_TYPE, KNOWN, NACL, NEW, SODIUM, save
from paths import FIXTURES
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from chemeleon_jax import evaluate
from chemeleon_jax.data.crystals import take, to_structures
from chemeleon_jax.data.dataset import load_dataset
from chemeleon_jax.evaluation import inputs


@pytest.mark.parametrize(
    ("case", "names", "valid"),
    [
        (
            "folder_dots_in_names",
            ["gen_1.0.cif", "Li0.5Na0.5Cl.cif", "mp-22862.v2.cif", "NaCl.cif"],
            4,
        ),
        ("folder_upper_case", ["a.cif", "b.CIF", "c.Cif"], 3),
        (
            "xyz/bad_symbol_third.extxyz",
            [f"bad_symbol_third.extxyz:{i}" for i in range(1, 9)],
            7,
        ),
        ("cif/two_blocks.cif", ["two_blocks.cif:first", "two_blocks.cif:second"], 2),
        ("json/dataframe.json", ["0", "1"], 2),
        ("csv/plain.csv.gz", ["m0", "m1", "m2", "m3", "m4", "m5"], 6),
    ],
)
def test_the_counts_of_a_person(folder, capfd, caplog, case, names, valid):
    rows, summary = run(folder, FIXTURES / "cases" / case)
    assert [row["name"] for row in rows] == names
    assert [row["index"] for row in rows] == [str(i) for i in range(len(names))]
    assert summary["num_crystals"] == len(names)
    assert summary["scores"]["valid"]["value"] == valid / len(names)
    with open(folder / "out" / "structures.jsonl", encoding="utf-8") as file:
        assert [json.loads(line)["name"] for line in file] == names
    assert "hull of" not in capfd.readouterr().out  # without a potential
    assert ("1 of 8 crystals cannot be read" in caplog.text) == (valid < len(names))


def test_copies_are_known_however_they_are_written(folder):
    """Copied, translated, rotated, permuted, as supercells: the same flags."""
    rng = np.random.default_rng(1)
    copies = [
        copy
        for s in KNOWN
        for copy in (s, disguised(s, rng, supercell=False), disguised(s, rng))
    ]
    order = rng.permutation(len(copies))
    save(folder / "copies.json", [copies[i] for i in order])
    rows, summary = run(folder, "copies.json")
    assert {row["novel"] for row in rows} == {"False"}
    firsts = [int(np.flatnonzero(order // 3 == i)[0]) for i in range(len(KNOWN))]
    unique = [i for i, row in enumerate(rows) if row["unique"] == "True"]
    assert unique == sorted(firsts)
    assert summary["scores"]["novel"]["value"] == 0.0
    assert summary["scores"]["unique"]["value"] == pytest.approx(1 / 3)
    assert summary["status"] == {"ok": len(copies)}


@pytest.mark.slow
def test_five_hundred_copies_of_known_crystals(tmp_path):
    """Exact copies first, then the same in disguise: as many unique as are distinct."""
    rng, dataset = np.random.default_rng(2), load_dataset("mp_mini")
    picked = rng.choice(len(dataset), 500, replace=False)
    exact = to_structures(take(dataset.crystals, picked))
    distinct = len(StructureMatcher().group_structures(exact))
    save(tmp_path / "exact.json", exact)
    save(tmp_path / "disguised.json", [disguised(s, rng) for s in exact])
    argv = [str(tmp_path / f"{name}.json") for name in ("exact", "disguised")]
    flags = ["--potential=none", f"--out={tmp_path / 'out'}"]
    assert evaluate.main([*argv, *flags]) == 0
    for name in ("exact", "disguised"):
        summary = json.loads((tmp_path / "out" / name / "summary.json").read_text())
        assert summary["scores"]["novel"]["value"] == 0.0, name
        assert round(500 * summary["scores"]["unique"]["value"]) == distinct, name


def test_flags_of_a_mixed_set(folder, capsys):
    save(folder / "mixed.json", [NEW, CLASH, NACL, NEW, SODIUM])
    # Lennard-Jones: any elements, one energy per element pair, and quick.
    lennard_jones = "ase:ase.calculators.lj:LennardJones"
    rows, summary = run(folder, "mixed.json", potential=lennard_jones)
    found = {name: [row[name] for row in rows] for name in rows[0]}
    assert found["valid"] == ["True", "False", "True", "True", "True"]
    assert found["reason"][1] == "min_distance"
    assert found["unique"] == ["True", "False", "True", "False", "True"]
    assert found["novel"] == ["True", "False", "False", "True", "False"]
    assert found["smact_valid"] == ["True"] * 5
    assert found["formula"] == ["KBr", "NaCl", "NaCl", "KBr", "Na"]
    assert found["space_group"] == ["Pm-3m", "", "Fm-3m", "Pm-3m", "Im-3m"]
    # Every hull has the elements, potassium too. Sodium is on it.
    assert found["status"][0] == "ok"
    assert 0 < float(found["e_above_hull"][0]) < 0.01
    assert float(found["e_above_hull"][4]) == pytest.approx(0, abs=1e-6)
    assert found["stable"][4] == "True" and found["sun"][4] == "False"
    assert summary["scores"]["valid"]["value"] == 0.8
    # Of the valid ones' elements K, Br and Na are twice there, Cl once; of the
    # prototypes CsCl's twice, NaCl's and that of bcc once.
    p = np.array([2, 2, 2, 1]) / 7
    elements, prototypes = np.exp(-p @ np.log(p)), 8**0.5
    scores = summary["scores"]
    assert scores["effective_elements"]["value"] == pytest.approx(elements)
    assert scores["effective_prototypes"]["value"] == pytest.approx(prototypes)
    assert summary["num_crystals"] == 5
    assert summary["reasons"] == {"valid": 4, "min_distance": 1}
    assert summary["protocol"]["reference"]["size"] == 4
    shown = capsys.readouterr().out
    for part in ("known.json (4 crystals)", "ltol 0.2", "LennardJones", "not relaxed"):
        assert part in shown


def test_by_the_protocol_of_lemat_genbench(folder, capsys):
    save(folder / "mixed.json", [NEW, CLASH, NACL, NEW, SODIUM])
    rows, summary = run(folder, "mixed.json", "--protocol=lemat", "--export=lemat")
    found = {name: [row[name] for row in rows] for name in rows[0]}
    assert found["lemat/valid"] == ["True", "False", "True", "True", "True"]
    assert found["lemat/distance"][1] == "False"
    assert found["lemat/unique"] == ["True", "", "True", "False", "True"]
    assert found["lemat/novel"] == ["True", "", "False", "True", "False"]
    scores = summary["scores"]
    assert scores["lemat/overall_valid_ratio"]["value"] == 0.8
    assert scores["lemat/uniqueness_score"]["value"] == 0.75  # of the valid ones
    assert scores["lemat/js_average"]["low"] is None
    metrics_of = summary["protocol"]["metrics_of"]
    assert metrics_of["name"] == "lemat"
    assert "LeMat-Bulk" in metrics_of["reference_instead_of"]
    shown = capsys.readouterr().out
    assert f"* of --reference={folder / 'known.json'}" in shown
    cifs = sorted((folder / "out" / "lemat" / "cifs").iterdir())
    assert [file.name for file in cifs] == [f"{i:06d}.cif" for i in range(5)]
    assert Structure.from_file(cifs[2]).composition == NACL.composition
    with open(folder / "out" / "lemat" / "structures.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert table[2]["cif_string"] == cifs[2].read_text()


def test_by_the_protocol_of_mattergen(folder):
    save(folder / "mixed.json", [NEW, CLASH, NACL, NEW, SODIUM])
    rows, summary = run(folder, "mixed.json", "--protocol=mattergen")
    found = {name: [row[name] for row in rows] for name in rows[0]}
    assert found["mattergen/structure_validity"][1] == "False"
    assert found["mattergen/unique"] == ["True", "True", "True", "False", "True"]
    assert found["mattergen/novel"] == ["True", "True", "False", "True", "False"]
    scores = {k: s["value"] for k, s in summary["scores"].items() if "mattergen/" in k}
    assert scores["mattergen/precision"] == 0.4  # invalid ones count too
    assert scores["mattergen/recall"] == 0.5
    assert scores["mattergen/frac_unique_systems"] == 0.6
    assert scores["mattergen/frac_novel_systems"] == 0.2


def test_what_lies_far_below_the_hull_is_told_apart(folder):
    far = Structure(Lattice.cubic(6.6), ["Na"], [[0, 0, 0]])
    save(folder / "far.json", [far])
    for hull, below in ((0.1, "False"), (0.3, "True")):
        (folder / "hull.csv").write_text(f"composition,energy_per_atom\nNa,{hull}\n")
        flags = f"--hull={folder / 'hull.csv'}"
        (row,), _ = run(folder, "far.json", flags, potential="ase:argon:lennard_jones")
        assert row["msun"] == "True" and row["far_below_hull"] == below
        assert row["msun_near_hull"] == str(below == "False")


def test_what_is_little_more_than_one_element_is_told_apart(folder):
    places = [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5], [0.5, 0.5, 0.5]]
    three, four = (["Na"] * n + ["Cl"] for n in (3, 4))
    cell = Lattice.cubic(6.6)
    save(
        folder / "salts.json",
        [Structure(cell, x, places[: len(x)]) for x in (three, four)],
    )
    (folder / "hull.csv").write_text("composition,energy_per_atom\nNa,9\nCl,9\n")
    flags = f"--hull={folder / 'hull.csv'}"
    rows, summary = run(
        folder, "salts.json", flags, potential="ase:argon:lennard_jones"
    )
    assert [row["msun"] for row in rows] == ["True", "True"]
    assert [row["diluted"] for row in rows] == ["False", "True"]  # 75 and 80 %
    assert [row["msun_undiluted"] for row in rows] == ["True", "False"]
    assert summary["scores"]["msun_undiluted"]["value"] == 0.5
    assert summary["protocol"]["max_fraction"] == 0.75


def test_relaxed_with_an_ase_potential(folder):
    """Atoms like argon, drawn apart."""
    fcc = Lattice([[0, 2.75, 2.75], [2.75, 0, 2.75], [2.75, 2.75, 0]])
    sodium = Structure(fcc, ["Na"], [[0, 0, 0]])
    save(folder / "apart.json", [sodium, CLASH])
    (folder / "hull.csv").write_text("composition,energy_per_atom\nNa,-5.0\n")
    rows, summary = run(
        folder,
        "apart.json",
        f"--hull={folder / 'hull.csv'}",
        "--relax",
        "--relax_steps=60",
        potential="ase:argon:lennard_jones",
    )
    assert rows[0]["relaxed"] == "True" and 0 < int(rows[0]["relax_steps"]) <= 60
    assert float(rows[0]["energy"]) < float(rows[0]["energy_unrelaxed"]) - 0.001
    assert float(rows[0]["e_above_hull"]) == pytest.approx(float(rows[0]["energy"]) + 5)
    gained = float(rows[0]["energy_unrelaxed"]) - float(rows[0]["energy"])
    before, after = (
        float(rows[0][f"e_above_hull{when}"]) for when in ("_unrelaxed", "")
    )
    assert before - after == pytest.approx(gained, abs=1e-6)
    assert {"metastable_unrelaxed", "e_above_hull_unrelaxed"} <= set(summary["scores"])
    # The potential that relaxes is the one that judges.
    first = json.loads(
        (folder / "out" / "structures.jsonl").read_text().splitlines()[0]
    )
    before, after = (
        Structure.from_dict(first[name]) for name in ("initial_structure", "structure")
    )
    assert before == sodium and after.volume < before.volume
    assert rows[1]["reason"] == "min_distance" and rows[1]["relaxed"] == ""
    assert summary["protocol"]["relaxed"] is True
    assert rows[0]["space_group_unrelaxed"] == rows[0]["space_group"] == "Fm-3m"
    # The one atom of the cell cannot move within it.
    assert float(rows[0]["relax_rmsd"]) == pytest.approx(0, abs=1e-6)


def test_several_potentials_judge_what_one_has_relaxed(folder, capsys):
    """Lennard-Jones relaxes; a Morse potential, and itself, judge."""
    save(folder / "some.json", [SODIUM, CSCL_TYPE, NEW])
    names = ["ase:ase.calculators.morse:MorsePotential", "ase:argon:lennard_jones"]
    rows, summary = run(
        folder,
        "some.json",
        "--relax",
        "--relax_steps=3",
        f"--relax_with={names[1]}",
        potential=",".join(names),
    )
    protocol, scores = summary["protocol"], summary["scores"]
    assert list(protocol["potentials"]) == names
    assert protocol["relaxed_with"] == names[1]
    assert protocol["potentials"][names[0]]["corrections"] == "own"
    row = rows[0]
    assert row["energy"] == row[f"energy:{names[0]}"] != row[f"energy:{names[1]}"]
    both = [float(row[f"e_above_hull:{name}"]) for name in names]
    assert float(row["e_above_hull:spread"]) == pytest.approx(abs(both[0] - both[1]))
    for flag in ("metastable", "msun", "stable"):
        values = [scores[f"{flag}:{name}"]["value"] for name in (*names, "all")]
        assert values[2] <= min(values[:2])
    shown = capsys.readouterr().out
    assert f"rank_correlation:{','.join(names)}" in shown
    assert f"relaxed with {names[1]}" in shown


def test_crystals_of_too_many_atoms_are_unreadable(folder, monkeypatch):
    monkeypatch.setattr(inputs, "MAX_ATOMS", 8)
    save(folder / "large.json", [NACL * (2, 2, 2), NACL])
    rows, _ = run(folder, "large.json")
    assert [row["reason"] for row in rows] == ["unreadable", "valid"]
    assert rows[0]["status"] == "unreadable: more than 8 atoms"

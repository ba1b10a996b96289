import csv
import io
import json

import numpy as np
import pandas as pd
import pytest
from crystal_sets import disguised
from known_crystals import (
    CLASH,
    CSCL_TYPE,
    KNOWN,
    NACL,
    NEW,
    SODIUM,
    save,
)
from paths import FIXTURES
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from chemeleon_jax import evaluate, interface
from chemeleon_jax.data.crystals import take, to_structures
from chemeleon_jax.data.dataset import load_dataset
from chemeleon_jax.errors import UserError
from chemeleon_jax.evaluation import inputs, terms
from chemeleon_jax.interface import result
from chemeleon_jax.runs.directory import work_directory


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


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The known crystals, and a home for the hull that is computed of them."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(terms, "CHUNK", 16)
    save(tmp_path / "known.json", KNOWN)
    return tmp_path


def run(folder, crystals, *flags, potential="none"):
    argv = [str(folder / crystals), f"--reference={folder / 'known.json'}"]
    argv += [f"--potential={potential}", f"--out={folder / 'out'}", "--workers=1"]
    argv += [] if "--relax" in flags else ["--no-relax"]
    assert evaluate.main([*argv, *flags]) == 0
    with open(folder / "out" / "crystals.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return rows, json.loads((folder / "out" / "summary.json").read_text())


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


@pytest.mark.parametrize(
    ("flags", "potential", "relax"),
    [
        ([], "chgnet,sevennet-l3i5", True),
        (["--no-relax"], "chgnet,sevennet-l3i5", False),
        (["--hull=mine.csv"], "chgnet", True),
        (["--potential=none"], "none", False),
    ],
)
def test_crystals_are_relaxed_and_judged_twice_by_default(flags, potential, relax):
    args = evaluate.parse(["some.json", *flags])
    found = evaluate.read_terms(args)
    assert (found.potential, found.relax) == (potential, relax)
    assert found.relax_with == potential.partition(",")[0]


def test_an_evaluation_cut_off_goes_on(folder, monkeypatch):
    save(folder / "some.json", [NEW, NACL, NEW, CLASH, NEW])
    monkeypatch.setattr(terms, "CHUNK", 2)
    judged, judge_chunk = [], evaluate.judge_chunk

    def judge_some(items, *args):
        if len(judged) == 2:
            judged.append(None)
            raise KeyboardInterrupt
        judged.append(items)
        return judge_chunk(items, *args)

    monkeypatch.setattr(evaluate, "judge_chunk", judge_some)
    with pytest.raises(KeyboardInterrupt):
        run(folder, "some.json")
    rows, _ = run(folder, "some.json")
    assert [len(items) for items in judged if items] == [2, 2, 1]
    assert [row["formula"] for row in rows] == ["KBr", "NaCl", "KBr", "NaCl", "KBr"]
    flags = [[row[name] == "True" for row in rows] for name in ("unique", "novel")]
    assert flags[0] == [True, True, False, False, False]
    assert flags[1] == [True, False, True, False, True]
    assert not (folder / "out" / "partial").exists()


def test_two_sets_do_not_share_a_place(folder):
    for name in ("a.json", "b.json"):
        save(folder / name, KNOWN)
    paths = [folder / "a.json", folder / "b.json"]
    with pytest.raises(UserError, match="one by one"):
        evaluate.find_sets(paths, None)
    places = evaluate.find_sets(paths, folder / "out").values()
    assert [p.name for p in places] == ["a", "b"]
    (folder / "run" / "base").mkdir(parents=True)
    (folder / "run" / "base" / "crystals.jsonl").write_text("")
    assert list(evaluate.find_sets([folder / "run"], None).values()) == [
        folder / "run" / "evaluation",
        folder / "run" / "base" / "evaluation",
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--potential=mace"], "unknown potential"),
        (["--relax", "--potential=none"], "--relax"),
        (["--hull=x.csv", "--potential=none"], "--hull"),
        (["--hull=nowhere.csv"], "nowhere.csv"),
        (["--potential=chgnet,none"], "several must differ"),
        (["--relax_with=chgnet", "--no-relax"], "at odds with --no-relax"),
        (["--vae=mini:predictor"], "holds no VAE"),
        (["--reference=nowhere.json"], "nowhere.json"),
        (["--workers=0"], "--workers=0: must be above 0"),
        (["--relax_steps=-1"], "--relax_steps=-1: must be above 0"),
        (["--max_force=nan"], "--max_force=nan: must be above 0"),
    ],
)
def test_errors_of_the_command_line(folder, capsys, flags, message):
    argv = [str(folder / "known.json"), f"--reference={folder / 'known.json'}"]
    assert evaluate.main([*argv, *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_named_before_the_work(
    folder, capsys, monkeypatch
):
    monkeypatch.setattr(evaluate, "load_judges", None)  # would fail if it were called
    (folder / "file").write_text("")
    argv = [str(folder / "known.json"), f"--reference={folder / 'known.json'}"]
    assert evaluate.main([*argv, f"--out={folder / 'file' / 'out'}"]) == 2
    shown = capsys.readouterr().err
    assert "Not a directory" in shown and "give another --out" in shown
    assert shown.count("\n") == 1
    # The folder beside the crystals, which nobody named.
    (folder / "evaluation").write_text("")
    assert evaluate.main(argv) == 2
    assert "give another --out" in capsys.readouterr().err


def test_one_evaluation_at_a_time_in_a_folder(folder, capsys):
    with work_directory(folder / "out", option="--out", lock=evaluate.LOCK):
        argv = [str(folder / "known.json"), f"--reference={folder / 'known.json'}"]
        argv += ["--potential=none", f"--out={folder / 'out'}"]
        assert evaluate.main(argv) == 2
    shown = capsys.readouterr().err
    assert "another process runs here" in shown and "another --out" in shown


def test_crystals_of_too_many_atoms_are_unreadable(folder, monkeypatch):
    monkeypatch.setattr(inputs, "MAX_ATOMS", 8)
    save(folder / "large.json", [NACL * (2, 2, 2), NACL])
    rows, _ = run(folder, "large.json")
    assert [row["reason"] for row in rows] == ["unreadable", "valid"]
    assert rows[0]["status"] == "unreadable: more than 8 atoms"


# ----------------------------------------------------------------------- in Python


def test_python_gives_the_rows_of_the_program(folder):
    """Relaxed and judged by a hull, with one crystal that is none: every column."""
    potential = "ase:argon:lennard_jones"
    fcc = Lattice([[0, 2.75, 2.75], [2.75, 0, 2.75], [2.75, 2.75, 0]])
    given = [Structure(fcc, ["Na"], [[0, 0, 0]]), CLASH, CSCL_TYPE]
    save(folder / "some.json", given)
    (folder / "hull.csv").write_text("composition,energy_per_atom\nNa,-5.0\n")
    hull, flags = folder / "hull.csv", ["--relax", "--relax_steps=3"]
    _, summary = run(folder, "some.json", f"--hull={hull}", *flags, potential=potential)
    terms = {"potential": potential, "relax_steps": 3, "workers": 1}
    found = interface.evaluate(
        given, reference=folder / "known.json", hull=hull, **terms
    )
    written = pd.read_csv(folder / "out" / "crystals.csv")
    # The program names crystals by their file, and CSV has no dtypes.
    text = io.StringIO(found.table.assign(name=written["name"]).to_csv(index=False))
    pd.testing.assert_frame_equal(pd.read_csv(text), written)
    assert found.protocol == summary["protocol"]
    for name, score in summary["scores"].items():
        expected = [np.nan if x is None else x for x in score.values()]
        np.testing.assert_array_equal(found.scores.loc[name].to_numpy(), expected)
    relaxed = interface.relax([*given, None], **terms)
    names = ["energy_unrelaxed", "relax_steps", "relaxed", "relax_rmsd"]
    pd.testing.assert_frame_equal(
        relaxed.table[names][:3], found.table[names], check_dtype=False
    )
    assert relaxed.structures[:3] == found.structures
    assert relaxed.structures[1] == CLASH and relaxed.structures[3] is None
    assert list(relaxed.table["reason"]) == [
        *("valid", "min_distance", "valid", "unreadable")
    ]


def test_what_is_no_crystal_is_a_row(caplog):
    """The decoder's reason is kept; nothing raises but an empty list."""
    table = pd.DataFrame({"reason": ["valid", "volume"]})
    items = result.items_of(interface.Crystals([NACL, None], table))
    assert [item.problem for item in items] == ["", "volume"]
    mixed = Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])
    items = result.items_of([mixed, NACL * (8, 8, 8), "NaCl", None])
    assert [item.problem for item in items] == [
        "unreadable: disordered",
        "unreadable: more than 1000 atoms",
        "unreadable: str is no pymatgen structure",
        "unreadable: no structure",
    ]
    assert "structures: 4 of 4 crystals cannot be read" in caplog.text
    for wrong, message in (([], "there are none"), (NACL, "a list of")):
        with pytest.raises(UserError, match=message):
            result.items_of(wrong)
    with pytest.raises(UserError, match="at odds with --no-relax"):
        interface.evaluate([NACL], relax=False, relax_with="chgnet")

"""Each format by itself: what is a crystal in it, and what is none."""

import json
import logging

import numpy as np
import pandas as pd
import pytest
from crystal_files import (
    ATOMS,
    CUBIC,
    FRAME,
    KBR,
    LATTICE,
    NACL,
    cif,
    names,
    shown,
    written,
)
from pymatgen.core import Lattice, Structure

from chemeleon_jax.data.readers.files import read_crystals
from chemeleon_jax.errors import UserError

# --------------------------------------------------------------------------------- CIF


@pytest.mark.parametrize(
    ("sites", "formula"),
    [
        ("Na1 Na 0 0 0 .\nCl1 Cl 0.5 0.5 0.5 .", "NaCl"),
        ("Na1 Na 0 0 0 ?\nCl1 Cl 0.5 0.5 0.5 1.0(2)", "NaCl"),
        ("Na1 Na1+ 0 0 0 1\nCl1 Cl1- 0.5 0.5 0.5 1", "NaCl"),
        ("Na1 Na+ 0 0 0 1\nCl1 Cl- 0.5 0.5 0.5 1", "NaCl"),
        ("D1 D 0 0 0 1\nCl1 Cl 0.5 0.5 0.5 1", "HCl"),
        ("Na1 NA 0 0 0 1\nCl1 cl 0.5 0.5 0.5 1", "NaCl"),
        ("Na1 Na 0 0 0 0.5\nNa2 Na 0 0 0 0.5\nCl Cl 0.5 0.5 0.5 1", "NaCl"),
    ],
)
def test_sites_of_a_cif(tmp_path, sites, formula):
    assert shown(written(tmp_path / "x.cif", cif(sites))) == [formula]


@pytest.mark.parametrize(
    ("sites", "words"),
    [
        ("Na1 Na 0 0 0 1.001\nCl1 Cl 0.5 0.5 0.5 1", "Occupancy 1.001 exceeded"),
        ("Na1 Na 0 0 0 1\nCl1 Cl 0 0 0 1", "Occupancy 2.0 exceeded"),
        ("Na1 Na 0 0 0 -1\nCl1 Cl 0.5 0.5 0.5 1", "the occupancy of site 1 is '-1'"),
        ("Na1 Na 0 0 0 nan\nCl1 Cl 0.5 0.5 0.5 1", "the occupancy of site 1 is 'nan'"),
        ("Na1 Na 0 0 0 full\nCl1 Cl 0.5 0.5 0.5 1", "of site 1 is 'full'"),
        ("Na1 Na 0 0 ? 1\nCl1 Cl 0.5 0.5 0.5 1", "site 1 has no coordinate z"),
        ("Na1 Na 0 0 . 1\nCl1 Cl 0.5 0.5 0.5 1", "site 1 has no coordinate z"),
        ("Na1 OH 0 0 0 1\nCl1 Cl 0.5 0.5 0.5 1", "'OH', which is no element"),
        ("Na1 ? 0 0 0 1\nCl1 Cl 0.5 0.5 0.5 1", "'?', which is no element"),
        ("Na1 Qq 0 0 0 1\nCl1 Cl 0.5 0.5 0.5 1", "'Qq', which is no element"),
        ("Na1 Nq 0 0 0 1\nCl1 Cl 0.5 0.5 0.5 1", "'Nq', which is no element"),
        ("Na1 Wat 0 0 0 1\nCl1 Cl 0.5 0.5 0.5 1", "'Wat', which is no element"),
        ("Na1 Na 0 0 0 0.5\nCl1 Cl 0.5 0.5 0.5 1", "disordered"),
        ("Na1 Na 0 0 0 0\nCl1 Cl 0.5 0.5 0.5 0", "no site is occupied"),
        ("Na1 Na 0 0 nan 1\nCl1 Cl 0.5 0.5 0.5 1", ""),
        ("Na1 Na 0 0 0 1\nCl1 Cl 0.5 0.5", ""),
    ],
)
def test_a_site_is_never_left_out(tmp_path, sites, words):
    (problem,) = shown(written(tmp_path / "x.cif", cif(sites)))
    assert problem.startswith("unreadable: ") and words in problem
    assert "no structures" not in problem


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (cif().replace("data_x", ""), "no data_ block"),
        ("nothing at all", "no data_ block"),
        (cif().replace("length_a 3.5", "length_a 0"), ""),
        (cif().replace("_cell_length_a 3.5\n", ""), "no _cell_length_a"),
        (cif().replace("_atom_site_fract_x", "_atom_site_Cartn_x"), "no _atom_site_fr"),
        (cif().replace("_atom_site_label", "_atom_site_name"), "no _atom_site_label"),
        ("data_x\nloop_\n_atom_site_label\n_atom_site_fract_x\n", "without values"),
        ("data_x\n_cell_length_a 3", "no _atom_site_label"),
    ],
)
def test_a_cif_without_a_crystal_says_why(tmp_path, text, words):
    (problem,) = shown(written(tmp_path / "x.cif", text))
    assert problem.startswith("unreadable: ") and words in problem
    assert "no structures" not in problem


def test_blocks_of_a_cif(tmp_path):
    text = "data_global\n_publ_author_name 'A. B.'\n_publ_section_comment\n;\n"
    text += "data_collection took\na while\n;\n"
    assert shown(written(tmp_path / "a.cif", text + cif())) == ["NaCl"]
    assert names(tmp_path / "a.cif") == ["a.cif"]
    # Blocks of one name, one without, one in capitals; one of them damaged.
    blocks = [cif(), cif(), cif(name=""), cif().replace("data_", "DATA_")]
    blocks[1] = blocks[1].replace("Cl", "Qq")
    found = shown(written(tmp_path / "b.cif", "\n".join(blocks)))
    assert found[:1] + found[2:] == ["NaCl"] * 3
    assert found[1].startswith("unreadable: ")
    # A field of text that is never closed does not take the next block along.
    text = cif() + ";\n" + cif(name="second")
    assert len(shown(written(tmp_path / "c.cif", text))) == 2
    assert shown(written(tmp_path / "d.cif", cif().replace("loop_", "LOOP_"))) == [
        "NaCl"
    ]


# -------------------------------------------------------------------------------- XYZ


@pytest.mark.parametrize(
    ("text", "formulas"),
    [
        (f"{FRAME}\n\n{FRAME}   \n{FRAME}\n\n", ["NaCl"] * 3),
        (FRAME.replace("Na 0", "D 0"), ["HCl"]),
        (FRAME.replace("Na 0", "T 0"), ["HCl"]),
        (FRAME.replace("Na", "Na+").replace("Cl", "Cl1-"), ["NaCl"]),
        (FRAME.replace("Na", "NA").replace("Cl", "cl"), ["NaCl"]),
        (FRAME.replace("1.75", "1.75D0").replace("3.5", "0.35d+01"), ["NaCl"]),
        (FRAME.replace("1.75", "175.e-2").replace("3.5", ".35D1"), ["NaCl"]),
        (FRAME.replace("Properties", 'pbc="F F F" Properties'), ["NaCl"]),
        (f"2\n{LATTICE}\n{ATOMS}\n", ["NaCl"]),
        (FRAME.replace("\n", "  extra\n").replace("  extra", "", 1), ["NaCl"]),
        (
            f"2\nProperties=pos:R:3:species:S:1 {LATTICE}\n0 0 0 D\n1 1 1 Cl\n",
            ["HCl"],
        ),
        (f"2\n{LATTICE} Properties=Z:I:1:pos:R:3\n11 0 0 0\n17 1 1 1\n", ["NaCl"]),
    ],
)
def test_frames(tmp_path, text, formulas):
    assert shown(written(tmp_path / "x.extxyz", text)) == formulas


@pytest.mark.parametrize(
    "bad",
    [
        FRAME.replace("Na", "Qq"),
        FRAME.replace("1.75 1.75", "1.75 x"),
        FRAME.replace("1.75 1.75", "1,75 1,75"),
        FRAME.replace("1.75 1.75 1.75", "1.75"),
        FRAME.replace("2\n", "1\n", 1),
        FRAME.replace("2\n", "3\n", 1),
        FRAME.replace("2\n", "0\n", 1),
        FRAME.replace("2\n", "999999999999999999999\n", 1),
        FRAME.replace("2\n", "two\n", 1),
        FRAME.replace("2\n", "", 1),
        FRAME.replace("Na 0 0 0\n", ""),
        FRAME.replace("Na 0 0 0\n", "\n"),
        FRAME.replace("Lattice", "Latice"),
        FRAME.replace("3.5 0 0 0", "0 0 0 0"),
        FRAME.replace("3.5 0 0 0", "3.5 0 0"),
        FRAME.replace("3.5 0 0 0", "nan 0 0 0"),
        FRAME.replace("1.75 1.75", "inf 1.75"),
        FRAME.replace("pos:R:3", "pos:R:999999999"),
        FRAME.replace("pos:R:3", "pos:Q:3"),
    ],
)
def test_a_damaged_frame_is_one_crystal(tmp_path, bad):
    for text in (
        FRAME * 3 + bad + FRAME * 2,
        FRAME * 3 + "\n" + bad + "\n" + FRAME * 2,
    ):
        found = shown(written(tmp_path / "x.xyz", text))
        assert len(found) == 6
        assert found[:3] + found[4:] == ["NaCl"] * 5
        assert found[3].startswith(("unreadable: ", "non_finite"))
    last = shown(written(tmp_path / "x.xyz", FRAME * 3 + bad))
    assert len(last) == 4 and last[:3] == ["NaCl"] * 3


def test_frames_without_periodicity_are_told(tmp_path, caplog):
    text = FRAME + FRAME.replace("Properties", 'pbc="T T F" Properties')
    with caplog.at_level(logging.WARNING):
        assert shown(written(tmp_path / "x.extxyz", text)) == ["NaCl"] * 2
    assert "x.extxyz: 1 of 2 frames say pbc=F" in caplog.text
    assert read_crystals(tmp_path / "x.extxyz")[1].structure.lattice.pbc == (
        *(True, True, True),
    )


def test_names_of_frames(tmp_path):
    text = FRAME + FRAME.replace("Properties", "material_id=mp-1d5 Properties")
    assert names(written(tmp_path / "x.extxyz", text)) == ["x.extxyz:1", "mp-1d5"]


def test_another_format_under_this_suffix_is_refused(tmp_path):
    for text in (cif(), json.dumps(NACL.as_dict()), "hello"):
        with pytest.raises(UserError, match="x.xyz: no extended XYZ"):
            read_crystals(written(tmp_path / "x.xyz", text))


# ------------------------------------------------------------------------------- JSON

DICTS = [NACL.as_dict(), KBR.as_dict()]
RECORDS = [{"material_id": f"mp-{i}", "structure": d} for i, d in enumerate(DICTS)]
TABLE = pd.DataFrame({"structure": DICTS, "gap": [1.0, 2.0]}, index=["x", "y"])
CIFS = [cif(), cif().replace("Na", "K").replace("Cl", "Br")]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (DICTS, ["x.json:1", "x.json:2"]),
        ({"a": DICTS[0], "b": DICTS[1]}, ["a", "b"]),
        (RECORDS, ["mp-0", "mp-1"]),
        ({"data": RECORDS}, ["mp-0", "mp-1"]),
        ({"structures": {"a": DICTS[0], "b": DICTS[1]}, "version": 1}, ["a", "b"]),
        (CIFS, ["x.json:1", "x.json:2"]),
        ({"a": CIFS[0], "b": CIFS[1]}, ["a", "b"]),
        ([{"id": 7, "cif": c} for c in CIFS], ["7", "7"]),
        ([{"initial_structure": d, "energy": -1} for d in DICTS], None),
        ([{"initial_structure": KBR.as_dict(), "structure": d} for d in DICTS], None),
        ([{"optimised": d, "energy": -1} for d in DICTS], None),
        ([json.dumps(d) for d in DICTS], None),
        ([{"structure": json.dumps(d)} for d in DICTS], None),
        (json.loads(TABLE.to_json(default_handler=dict)), ["x", "y"]),
        (json.loads(TABLE.to_json(orient="records")), None),
        (json.loads(TABLE.to_json(orient="index")), ["x", "y"]),
        (json.loads(TABLE.to_json(orient="split")), None),
    ],
)
def test_structures_in_json(tmp_path, value, expected):
    path = written(tmp_path / "x.json", json.dumps(value))
    assert shown(path) == ["NaCl", "KBr"]
    assert names(path) == (expected or ["x.json:1", "x.json:2"])
    # A file with one value per line under this suffix, and the other way around.
    lines = "\n".join(json.dumps(v) for v in RECORDS)
    assert shown(written(tmp_path / "l.json", lines)) == ["NaCl", "KBr"]
    assert shown(written(tmp_path / "l.jsonl", json.dumps(RECORDS, indent=1))) == [
        *("NaCl", "KBr")
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("3", "holds 3; expected"),
        ("null", "holds None; expected"),
        ('"text"', "holds 'text'; expected"),
        ('{"lr": 0.1, "seed": 3}', "a mapping with 'lr', 'seed'; expected"),
        ("[1, 2]", "a list of 2, the first 1; expected"),
        ("[[]]", "the first a list; expected"),
        ('{"a": {"b": {}}}', "expected pymatgen"),
        ("[]", "no crystal in it"),
        ("{}", "no crystal in it"),
        ("[" * 100_000, "not JSON"),
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ("{", "not JSON"),
        ("9" * 5000, "not JSON"),
    ],
)
def test_json_without_crystals_is_refused_once(tmp_path, text, words):
    with pytest.raises(UserError, match="x.json: ") as caught:
        read_crystals(written(tmp_path / "x.json", text))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_bad_records_among_good_ones(tmp_path):
    bad = [3, None, [], {}, "text", {"structure": "text"}, {"structure": {"0": 1}}]
    bad += [{"lattice": 1, "sites": 2}, {"structure": None}, {**DICTS[0], "sites": []}]
    bad += [json.loads(json.dumps(DICTS[0]).replace('"occu": 1', '"occu": 0.5'))]
    bad += [json.loads(json.dumps(DICTS[0]).replace('"Na"', '"Xy"'))]
    for name, text in (
        ("x.json", json.dumps([*bad, DICTS[0]])),
        ("x.jsonl", "\n".join(json.dumps(v) for v in [*bad, DICTS[0]])),
    ):
        found = shown(written(tmp_path / name, text))
        assert len(found) == len(bad) + 1 and found[-1] == "NaCl"
        assert all(problem.startswith("unreadable: ") for problem in found[:-1])


def test_lines_end_at_line_feeds_alone(tmp_path):
    line = json.dumps({"note": "a\u2028b\x85c\x0cd", **DICTS[0]}, ensure_ascii=False)
    text = f"{line}\n\n{line[:-40]}\n{line}"
    assert [p[:10] for p in shown(written(tmp_path / "x.jsonl", text))] == [
        *("NaCl", "unreadable", "NaCl")
    ]


def test_isotopes_charges_and_a_cell_without_periodicity(tmp_path):
    heavy = Structure(Lattice.cubic(3.5), ["D", "Cl-"], CUBIC).as_dict()
    heavy["lattice"]["pbc"] = [False, False, True]
    (item,) = read_crystals(written(tmp_path / "x.json", json.dumps(heavy)))
    assert item.structure.composition.reduced_formula == "HCl"
    assert item.structure.lattice.pbc == (True, True, True)
    np.testing.assert_allclose(item.structure.volume, 3.5**3)


# -------------------------------------------------------------------------------- CSV


def test_tables(tmp_path):
    table = pd.DataFrame({"material_id": ["a", "b"], "structure": CIFS})
    for separator in ",;\t":
        path = tmp_path / "x.csv"
        table.to_csv(path, sep=separator, index=False)
        assert shown(path) == ["NaCl", "KBr"] and names(path) == ["a", "b"]
    table["structure"] = [json.dumps(d) for d in DICTS]
    table.loc[2] = ["c", ""]
    table.loc[3] = ["d", "data_x"]
    table.to_csv(path, index=False)
    found = shown(path)
    assert found[:2] == ["NaCl", "KBr"]
    assert found[2].startswith("unreadable") and found[3].startswith("unreadable")


@pytest.mark.parametrize(
    "text", ["material_id,gap\na,1\n", 'cif\n"data_x\n', "cif\n", "cif,cif\n1,2\n"]
)
def test_a_table_without_crystals_is_refused(tmp_path, text):
    with pytest.raises(UserError, match="x.csv"):
        read_crystals(written(tmp_path / "x.csv", text))

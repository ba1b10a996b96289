"""Files as people bring them: how many crystals a person counts in each.

The inputs in tests/fixtures/cases went wrong once; others are variants of the same.
"""

import bz2
import gzip
import json
import logging
import lzma
import os
import zipfile

import pandas as pd
import pytest
from crystal_files import FRAME, NACL, cif, names, shown, written
from paths import FIXTURES

from chemeleon_jax.data.readers.files import natural, read_crystals
from chemeleon_jax.errors import UserError

CASES = FIXTURES / "cases"


# -------------------------------------------------------------- inputs that went wrong


@pytest.mark.parametrize(
    ("case", "count"),
    [
        ("folder_dots_in_names", 4),
        ("folder_upper_case", 3),
        ("folder_latin1", 4),
        ("xyz/bom.extxyz", 2),
        ("cif/bom.cif", 1),
        ("cif/latin1_author.cif", 1),
        ("cif/occ_missing_dot.cif", 1),
        ("json/bom.json", 1),
        ("json/line_separator.jsonl", 2),
        ("json/dataframe.json", 2),
        ("json/list.json", 2),
        ("json/wrapped.json", 2),
    ],
)
def test_all_crystals_are_sodium_chloride(case, count):
    assert shown(CASES / case) == ["NaCl"] * count


@pytest.mark.parametrize("name", ["plain.csv", "plain.csv.gz", "utf16.csv"])
def test_a_table_is_a_set_of_crystals(name):
    found = ["NaCl", "KBr", "LiF", "CsI", "RbCl", "KF"]
    assert shown(CASES / "csv" / name) == found
    assert names(CASES / "csv" / name) == [f"m{i}" for i in range(6)]


def test_each_data_block_is_a_crystal():
    assert shown(CASES / "cif/two_blocks.cif") == ["NaCl", "KBr"]
    assert names(CASES / "cif/two_blocks.cif") == [
        "two_blocks.cif:first",
        "two_blocks.cif:second",
    ]


@pytest.mark.parametrize(
    ("case", "problem"),
    [
        ("bad_symbol_third", "'Qq' is no element"),
        ("wrong_count_third", "line 9 says 3 atoms, 2 follow"),
    ],
)
def test_a_bad_frame_leaves_the_others(case, problem):
    found = shown(CASES / f"xyz/{case}.extxyz")
    assert found[2] == f"unreadable: {problem}"
    assert found[:2] + found[3:] == ["NaCl"] * 7
    assert names(CASES / f"xyz/{case}.extxyz")[2] == f"{case}.extxyz:3"


# ---------------------------------------------------------------- folders and archives


def test_a_folder_is_read_whole(tmp_path):
    folder = tmp_path / "a folder, with spaces"
    for name in ("10.cif", "2.CIF", "1.v2.cif", "sub/x y.cif", "sub/deeper/é.Cif"):
        written(folder / name, cif())
    written(folder / "packed.cif.gz", gzip.compress(cif().encode()))
    written(folder / "PACKED.CIF.GZ", gzip.compress(cif().encode()))
    written(folder / "b.cif.bz2", bz2.compress(cif().encode()))
    written(folder / "x.cif.xz", lzma.compress(cif().encode()))
    written(folder / "frames.extxyz", FRAME * 2)
    os.symlink(folder / "2.CIF", folder / "linked.cif")
    os.symlink(folder, folder / "sub" / "circle")
    for name in ("._2.cif", ".hidden.cif", "3.cif.bak", "4.cif~", "notes.txt"):
        written(folder / name, cif())
    written(folder / ".git" / "5.cif", cif())
    written(folder / "__MACOSX" / "6.cif", cif())
    expected = ["1.v2.cif", "2.CIF", "10.cif", "b.cif.bz2"]
    expected += ["frames.extxyz:1", "frames.extxyz:2", "linked.cif"]
    expected += ["PACKED.CIF.GZ", "packed.cif.gz"]
    expected += ["sub/deeper/é.Cif", "sub/x y.cif", "x.cif.xz"]
    assert shown(folder) == ["NaCl"] * 12
    assert sorted(names(folder)) == sorted(expected)
    assert names(folder)[:4] == expected[:4]


def test_files_that_cannot_be_read_are_crystals_of_a_folder(tmp_path):
    written(tmp_path / "1.cif", cif())
    written(tmp_path / "2.cif.gz", gzip.compress(cif().encode())[:-9])
    os.symlink(tmp_path / "nowhere.cif", tmp_path / "3.cif")
    os.mkfifo(tmp_path / "4.cif")
    written(tmp_path / "5.cif", b"\x89PNG\0\0\0\1")
    written(tmp_path / "6.cif", "")
    written(tmp_path / "7.extxyz", "")
    found = shown(tmp_path)
    assert found[0] == "NaCl"
    for problem, words in zip(
        found[1:],
        ["damaged", "a link to", "no such file", "not text", "empty", "empty"],
        strict=True,
    ):
        assert problem.startswith("unreadable: ") and words in problem


def test_results_of_an_evaluation_are_no_crystals_of_its_folder(tmp_path, caplog):
    written(tmp_path / "a.cif", cif())
    written(tmp_path / "evaluation" / "summary.json", "{}")
    written(tmp_path / "evaluation" / "structures.jsonl", json.dumps(NACL.as_dict()))
    written(tmp_path / "other" / "partial" / "evaluation.json", "{}")
    written(tmp_path / "other" / "partial" / "0.json", json.dumps([NACL.as_dict()]))
    assert names(tmp_path) == ["a.cif"] and not caplog.text


def test_what_a_folder_leaves_out_is_told(tmp_path, caplog):
    written(tmp_path / "a.cif", cif())
    written(tmp_path / "settings.json", '{"lr": 0.1}')
    with caplog.at_level(logging.WARNING):
        assert names(tmp_path) == ["a.cif"]
    assert "1 of 2 files left out; the first: settings.json: holds" in caplog.text


def test_natural_order():
    assert sorted(["10.cif", "a2", "a10", "1.cif", "2.cif", "A1"], key=natural) == [
        *("1.cif", "2.cif", "10.cif", "A1", "a2", "a10")
    ]


def test_an_archive_is_read_like_a_folder(tmp_path):
    path = tmp_path / "crystals.ZIP"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("in/10.cif", cif())
        archive.writestr("in/2.CIF", b"\xef\xbb\xbf" + cif().encode())
        archive.writestr("in/3.cif.gz", gzip.compress(cif().encode()))
        archive.writestr("__MACOSX/in/._2.CIF", cif())
        archive.writestr("readme.txt", "")
        archive.writestr("bad.cif", "data_x")
    assert names(path) == ["bad.cif", "in/2.CIF", "in/3.cif.gz", "in/10.cif"]
    assert shown(path)[1:] == ["NaCl"] * 3
    whole = path.read_bytes()
    written(path, whole[:-30])
    with pytest.raises(UserError, match="no sound ZIP"):
        read_crystals(path)
    written(path, b"version https://git-lfs.github.com/spec/v1\noid sha256:00")
    with pytest.raises(UserError, match="git lfs pull"):
        read_crystals(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(tmp_path, encoding, ends):
    contents = {
        "a.cif": cif(),
        "a.extxyz": FRAME * 2,
        "a.json": json.dumps([NACL.as_dict()], indent=1),
        "a.jsonl": (json.dumps(NACL.as_dict()) + "\n") * 2,
        "a.csv": pd.DataFrame({"cif": [cif(), cif()]}).to_csv(index=False),
    }
    for name, text in contents.items():
        path = written(tmp_path / name, text.replace("\n", ends).encode(encoding))
        assert set(shown(path)) == {"NaCl"}, name
        packed = written(tmp_path / f"{name}.GZ", gzip.compress(path.read_bytes()))
        assert shown(packed) == shown(path)


def test_latin_1_in_any_format(tmp_path):
    value = json.dumps({"author": "Müller", **NACL.as_dict()}, ensure_ascii=False)
    contents = {
        "a.cif": "# Müller\n" + cif(),
        "a.extxyz": FRAME.replace("Properties", 'author="Müller" Properties'),
        "a.json": f"[{value}]",
        "a.jsonl": f"{value}\n{value}",
        "a.csv": pd.DataFrame({"by": ["Müller"], "cif": [cif()]}).to_csv(),
    }
    for name, text in contents.items():
        assert set(shown(written(tmp_path / name, text.encode("latin-1")))) == {"NaCl"}


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".extxyz", ".cif"])
def test_what_stands_for_a_file_is_named(tmp_path, suffix):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    page = "\n<!DOCTYPE html><html><body>Not found</body></html>"
    for text, words in ((pointer, "git lfs pull"), (page, "an HTML page")):
        path = written(tmp_path / "folder" / f"x{suffix}", text)
        with pytest.raises(UserError, match=words):
            read_crystals(path)


@pytest.mark.parametrize("suffix", ["", ".json", ".jsonl", ".csv", ".extxyz", ".xyz"])
def test_an_empty_file_is_refused(tmp_path, suffix):
    for name in (f"x{suffix}", f"x{suffix}.gz"):
        with pytest.raises(UserError, match=name):
            read_crystals(written(tmp_path / name, ""))

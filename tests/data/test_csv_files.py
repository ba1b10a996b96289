"""Tables as people bring them: packed, of other programs, with labels that are none."""

import bz2
import gzip
import logging
import lzma
import math
import os
import subprocess
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest
from crystal_files import cif, written
from paths import FIXTURES, ROOT

from chemeleon_jax.data import dataset as datasets
from chemeleon_jax.data.dataset import load_dataset, load_npz, save_npz
from chemeleon_jax.errors import UserError
from chemeleon_jax.evaluation.inputs import load_reference

CASES = FIXTURES / "cases" / "csv"
FORMULAS = [[11, 17], [19, 35], [3, 9], [55, 53], [37, 17], [19, 9]]


def atoms(dataset):
    return [sorted(row[row > 0].tolist()) for row in dataset.crystals.atom_types]


def load(path, tmp_path):
    return load_dataset(path, cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["plain.csv", "plain.csv.gz", "utf16.csv"])
def test_tables_that_went_wrong(tmp_path, name):
    expected = [sorted(f) for f in FORMULAS]
    for dataset in (load(CASES / name, tmp_path), load(CASES / name, tmp_path)):
        assert atoms(dataset) == expected  # the second time from the cache
    copy = written(tmp_path / name, (CASES / name).read_bytes())
    assert len(load_reference(str(copy))) == 6


def test_packed_tables(tmp_path):
    content = (CASES / "plain.csv").read_bytes()
    for name, packed in (
        ("x.csv.GZ", gzip.compress(content)),
        ("x.csv.bz2", bz2.compress(content)),
        ("x.csv.xz", lzma.compress(content)),
        ("no_gzip.csv.gz", content),
        ("x.CSV", content.replace(b"\n", b"\r\n")),
        ("bom.csv", b"\xef\xbb\xbf" + content),
    ):
        assert len(load(written(tmp_path / name, packed), tmp_path)) == 6
    for name in ("x.zip", "x.csv.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("inside.csv", content)
        assert len(load(tmp_path / name, tmp_path)) == 6
        assert len(load_reference(str(tmp_path / name))) == 6
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.csv", content)
        archive.writestr("b.csv", content)
    with pytest.raises(UserError, match="an archive of 2 files"):
        load(tmp_path / "two.zip", tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PAR1\0\0\0\0", "Parquet|damaged"),
        (b"\x1f\x8b\x08\0\0", "damaged"),
        (b"BZh9zzzzzzz", "damaged"),
        (b"PK\x03\x04zzzz", "damaged"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\x0d", "binary data"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<html></html>", "HTML page"),
        (b"", "no column 'cif'"),
        (b'cif\n"data_x\n', "not CSV"),
        (b"cif,gap,gap\na,1,2\n", "two columns are called 'gap'"),
        (b"cif\n", "none of its 0 rows"),
        (b"\x1b[31m,b\n1,2\n", r"Its columns: \?\[31m, b"),
    ],
)
def test_what_is_no_table_is_one_printable_line(tmp_path, content, words):
    path = written(tmp_path / "x.csv", content)
    with pytest.raises(UserError, match=words) as caught:
        load(path, tmp_path)
    assert str(path) in str(caught.value) and str(caught.value).isprintable()


def test_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    table = pd.read_csv(CASES / "plain.csv")
    table.to_parquet(tmp_path / "x.parquet")
    dataset = load(tmp_path / "x.parquet", tmp_path)
    assert atoms(dataset) == [sorted(f) for f in FORMULAS]


# ------------------------------------------------------------------------------ labels


@pytest.mark.parametrize("name", ["bool_labels.csv", "inf_labels.csv"])
def test_labels_that_are_no_numbers_name_row_and_column(tmp_path, name):
    table = pd.read_csv(CASES / name, dtype=str)
    row = next(
        i
        for i, text in enumerate(table["band_gap"], 1)
        if text in ("True", "False", "inf")
    )
    text = table["band_gap"][row - 1]
    for _ in range(2):  # the second time from the cache
        dataset = load(CASES / name, tmp_path)
        with pytest.raises(UserError) as caught:
            dataset.label("band_gap", "config.targets")
        assert str(caught.value).startswith(
            f"config.targets: label 'band_gap', row {row} (m{row - 1}): {text!r} is no "
        )


@pytest.mark.parametrize(
    ("cells", "bad"),
    [
        (["1.5", "2"], None),
        (["1.5", "", ], None),
        (["1.5", "nan"], None),
        (["1.5", "N/A"], None),
        ([" 1e-3 ", "None"], None),
        (["1,5", "2"], "row 1 (a): '1,5'"),
        (["2", "1,5"], "row 2 (b): '1,5'"),
        (["2", "unknown"], "row 2 (b): 'unknown'"),
        (["True", "False"], "row 1 (a): 'True'"),
        (["-inf", "2"], "row 1 (a): '-inf'"),
        (["2", "1e39"], "row 2 (b): '1e39'"),
        (["2", "1.5D0"], "row 2 (b): '1.5D0'"),
    ],
)  # fmt: skip
def test_cells_of_labels(tmp_path, cells, bad):
    table = pd.DataFrame({"material_id": ["a", "b"], "cif": [cif()] * 2, "gap": cells})
    table.to_csv(tmp_path / "x.csv", index=False)
    dataset = load(tmp_path / "x.csv", tmp_path)
    save_npz(tmp_path / "again.npz", dataset)
    for found in (dataset, load_npz(tmp_path / "again.npz"), dataset.subset([0])):
        if bad is None:
            assert math.isfinite(found.label("gap", "x")[0])
        else:
            with pytest.raises(UserError, match="x: label 'gap', ") as caught:
                found.label("gap", "x")
            assert bad in str(caught.value)
    with pytest.raises(UserError, match="no label 'egap'; it has (gap|none)"):
        dataset.label("egap", "x")


def test_infinite_labels_of_an_npz_are_named(tmp_path):
    dataset = load(CASES / "plain.csv", tmp_path)
    dataset.labels["band_gap"][2] = np.inf
    with pytest.raises(UserError, match="label 'band_gap' of m2 is infinite"):
        dataset.label("band_gap", "config.targets")


# ------------------------------------------------------------------------------- places


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, caplog):
    def full(path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("chemeleon_jax.runs.files.replacing", full)
    with caplog.at_level(logging.WARNING):
        assert len(load(CASES / "plain.csv", tmp_path)) == 6
    assert caplog.text.count("cannot be kept for the next run") == 1


def test_a_damaged_cache_is_made_anew(tmp_path, caplog):
    load(CASES / "plain.csv", tmp_path)
    (cached,) = (tmp_path / "cache").iterdir()
    cached.write_bytes(cached.read_bytes()[:-50])
    assert len(load(CASES / "plain.csv", tmp_path)) == 6
    assert "computed anew" in caplog.text


def test_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path / "x.csv", (CASES / "plain.csv").read_bytes())
    assert len(load("~/x.csv", tmp_path)) == 6
    with pytest.raises(UserError, match="~nobody-here/x.csv"):
        load("~nobody-here/x.csv", tmp_path)


@pytest.mark.parametrize("how", ["script", "stdin"])
def test_a_program_without_a_main_guard(tmp_path, how):
    """Worker processes do not start the program again."""
    row = '"' + cif().replace('"', '""') + '"\n'
    written(tmp_path / "x.csv", "cif\n" + row * 40)
    code = (
        "from chemeleon_jax.data import csv, dataset\n"
        "csv.POOL_THRESHOLD = 10\n"
        f"print(len(dataset.load_dataset({str(tmp_path / 'x.csv')!r})))\n"
    )
    written(tmp_path / "script.py", code)
    command = [sys.executable, str(tmp_path / "script.py") if how == "script" else "-"]
    result = subprocess.run(
        command,
        input=code if how == "stdin" else None,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert result.stdout == "40\n", result.stderr


def test_rows_are_those_of_the_pool(tmp_path, monkeypatch):
    rows = pd.DataFrame({"cif": [cif(), "data_x", cif(name="y")] * 5})
    rows.to_csv(tmp_path / "x.csv")
    alone = load(tmp_path / "x.csv", tmp_path)
    monkeypatch.setattr("chemeleon_jax.data.csv.POOL_THRESHOLD", 1)
    monkeypatch.setattr(datasets, "CSV_READER_VERSION", 99)
    together = load(tmp_path / "x.csv", tmp_path)
    assert alone.skipped == together.skipped and len(together) == 10
    assert alone.digest == together.digest

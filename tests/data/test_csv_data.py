import logging

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from chemeleon_jax.data import csv
from chemeleon_jax.data.crystals import to_structures
from chemeleon_jax.data.dataset import load_dataset
from chemeleon_jax.errors import UserError

NACL = Structure.from_spacegroup(
    "Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
).get_primitive_structure()
SILICON = Structure.from_spacegroup("Fd-3m", Lattice.cubic(5.43), ["Si"], [[0, 0, 0]])


def write_csv(path, rows, columns="material_id,cif,band_gap,note"):
    quoted = [",".join('"' + str(v).replace('"', '""') + '"' for v in r) for r in rows]
    path.write_text("\n".join([columns, *quoted]) + "\n")
    return path


def test_csv_with_bad_rows(tmp_path, caplog):
    cif = NACL.to(fmt="cif")
    alloy = Structure(Lattice.cubic(3), [{"Cu": 0.5, "Au": 0.5}], [[0] * 3])
    close = Structure(Lattice.cubic(3), ["Cu"] * 2, [[0] * 3, [0.1, 0, 0]])
    rows = [
        ("a", cif, 5.0, "salt"),
        ("b", "no crystal here", 1.0, ""),
        ("c", "", 1.0, ""),
        ("d", (SILICON * 2).to(fmt="cif"), 1.1, ""),
        ("e", alloy.to(fmt="cif"), 0, ""),
        ("f", close.to(fmt="cif"), 0, ""),
        ("g", SILICON.to(fmt="cif"), "", ""),
    ]
    path = write_csv(tmp_path / "set.csv", rows)
    with caplog.at_level(logging.WARNING):
        dataset = load_dataset(path)
    assert dataset.material_ids.tolist() == ["a", "g"]
    assert dataset.crystals.mask.sum(-1).tolist() == [2, 8]
    assert dataset.crystals.mask.shape == (2, 20)
    np.testing.assert_array_equal(dataset.labels["band_gap"], [5.0, np.nan])
    assert list(dataset.labels) == ["band_gap"]  # `note` holds no number
    assert [(s.row, s.material_id) for s in dataset.skipped] == [
        (2, "b"),
        (3, "c"),
        (4, "d"),
        (5, "e"),
        (6, "f"),
    ]
    assert [s.reason for s in dataset.skipped][1:] == [
        "empty cif",
        "64 atoms, more than max_atoms=20",
        "disordered: a site holds more than one element",
        "invalid crystal (min_distance)",
    ]
    assert "skipped 5 of 7 rows: row 2 (b)" in caplog.text


def test_csv_is_niggli_reduced(tmp_path):
    """A sheared primitive cell of rock salt gets its angles of 60 degrees back."""
    sheared = NACL.copy().make_supercell([[1, 0, 0], [2, 1, 0], [1, -1, 1]])
    path = write_csv(tmp_path / "set.csv", [("a", sheared.to(fmt="cif"), 5, "")])
    crystals = load_dataset(path).crystals
    np.testing.assert_allclose(crystals.angles[0], 60, atol=1e-3)
    np.testing.assert_allclose(crystals.lengths[0], 5.64 / np.sqrt(2), atol=1e-4)
    assert to_structures(crystals)[0].reduced_formula == "NaCl"


def test_csv_cache_is_keyed_by_content(tmp_path, monkeypatch):
    rows = [("a", NACL.to(fmt="cif"), 5.0, ""), ("b", "broken", 1.0, "")]
    path = write_csv(tmp_path / "set.csv", rows)
    first = load_dataset(path)
    assert len(list(tmp_path.glob("set-*.npz"))) == 1
    monkeypatch.setattr(csv, "parse_cif", None)  # would fail if it were called
    second = load_dataset(path)
    assert second.digest == first.digest and second.skipped == first.skipped
    monkeypatch.undo()
    rows[1] = ("b", SILICON.to(fmt="cif"), 1.0, "")
    assert len(load_dataset(write_csv(path, rows))) == 2


def test_csv_cache_elsewhere(tmp_path):
    path = write_csv(tmp_path / "set.csv", [("a", NACL.to(fmt="cif"), 5.0, "")])
    load_dataset(path, cache_dir=tmp_path / "cache")
    assert [f.parent.name for f in tmp_path.rglob("*.npz")] == ["cache"]


def test_csv_without_cif_column(tmp_path):
    path = write_csv(tmp_path / "set.csv", [("a", "x")], "material_id,structure")
    with pytest.raises(
        UserError, match=r"set.csv has no column 'cif'.*material_id, structure"
    ):
        load_dataset(path)


def test_csv_without_one_good_row(tmp_path):
    path = write_csv(tmp_path / "set.csv", [("a", "", 1, "")])
    with pytest.raises(UserError, match="none of its 1 rows gives a crystal.*empty"):
        load_dataset(path)


def test_csv_split_column(tmp_path):
    cif = NACL.to(fmt="cif")
    rows = [(cif, "train"), (cif, "val"), (cif, "test"), (cif, "dev")]
    dataset = load_dataset(write_csv(tmp_path / "set.csv", rows, "cif,split"))
    assert dataset.split.tolist() == [0, 1, 2]
    assert dataset.material_ids.tolist() == ["row-1", "row-2", "row-3"]
    assert dataset.skipped[0].reason.startswith("split is 'dev'")


def test_csv_in_worker_processes(tmp_path, monkeypatch):
    rows = [(f"m{i}", NACL.to(fmt="cif") if i % 5 else "", i, "") for i in range(20)]
    path = write_csv(tmp_path / "set.csv", rows)
    alone = load_dataset(path, cache_dir=tmp_path / "1")
    monkeypatch.setattr(csv, "POOL_THRESHOLD", 10)
    pooled = load_dataset(path, cache_dir=tmp_path / "2")
    assert pooled.digest == alone.digest and pooled.skipped == alone.skipped

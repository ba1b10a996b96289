import gzip
import json

import numpy as np
import pytest
from ase.io import write as write_ase
from known_crystals import KNOWN, NACL, save
from pymatgen.core import Lattice, Structure
from pymatgen.io.ase import AseAtomsAdaptor

from chemeleon_jax.data.readers.files import read_crystals
from chemeleon_jax.errors import UserError
from chemeleon_jax.evaluation.inputs import load_reference


def test_every_format_gives_the_same_crystals(tmp_path):
    dicts = [s.as_dict() for s in KNOWN]
    save(tmp_path / "a.json", KNOWN)
    with gzip.open(tmp_path / "b.json.gz", "wt") as file:
        json.dump({f"crystal-{i}": d for i, d in enumerate(dicts)}, file)
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps(d) for d in dicts))
    (tmp_path / "sampled").mkdir()
    (tmp_path / "sampled" / "crystals.jsonl").write_text(
        "\n".join(json.dumps({"index": 0, "structure": d}) for d in dicts)
    )
    atoms = [AseAtomsAdaptor.get_atoms(s) for s in KNOWN]
    write_ase(tmp_path / "d.extxyz", atoms, format="extxyz")
    (tmp_path / "cifs").mkdir()
    for i, structure in enumerate(KNOWN):
        structure.to(str(tmp_path / "cifs" / f"{i}.cif"))
    for name in ("a.json", "b.json.gz", "c.jsonl", "sampled", "d.extxyz", "cifs"):
        items = read_crystals(tmp_path / name)
        assert [i.problem for i in items] == [""] * 4, name
        for item, structure in zip(items, KNOWN, strict=True):
            assert item.structure.composition == structure.composition
            np.testing.assert_allclose(
                item.structure.lattice.abc, structure.lattice.abc, atol=1e-5
            )


def test_what_cannot_be_read_is_a_crystal_with_a_problem(tmp_path):
    NACL.to(str(tmp_path / "0.cif"))
    (tmp_path / "1.cif").write_text("data_nothing\n_cell_length_a what")
    disordered = Structure(Lattice.cubic(3), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])
    disordered.to(str(tmp_path / "2.cif"))
    problems = [i.problem for i in read_crystals(tmp_path)]
    assert problems[0] == ""
    assert problems[1].startswith("unreadable: ")
    assert problems[2] == "unreadable: disordered"
    lines = [
        "{not json",
        json.dumps({"structure": None, "reason": "cell_angles"}),
        json.dumps({"@module": "os", "@class": "system", "lattice": "echo"}),
        json.dumps(NACL.as_dict()).replace("5.6", "NaN"),
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    problems = [i.problem for i in read_crystals(tmp_path / "x.jsonl")]
    assert problems[1] == "cell_angles"
    assert all(p.startswith("unreadable: ") for p in (problems[0], problems[2]))


@pytest.mark.parametrize("name", ["nowhere", "x.txt", "empty", "bad.json"])
def test_what_holds_no_crystals_is_refused(tmp_path, name):
    (tmp_path / "x.txt").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text("[")
    with pytest.raises(UserError, match=name):
        read_crystals(tmp_path / name)


def test_what_is_left_out_of_the_reference_is_told(tmp_path, caplog):
    folder = tmp_path / "known"
    folder.mkdir()
    for i, structure in enumerate(KNOWN):
        structure.to(str(folder / f"{i}.cif"))
    (folder / "bad.cif").write_text("data_x")
    dataset = load_reference(folder)
    assert list(dataset.material_ids) == ["0.cif", "1.cif", "2.cif", "3.cif"]
    assert "1 of 5 crystals cannot be read: bad.cif: unreadable: no " in caplog.text
    for i in range(len(KNOWN)):
        (folder / f"{i}.cif").unlink()
    with pytest.raises(UserError, match="no readable crystal.*bad.cif: unreadable"):
        load_reference(folder)


def test_gzip_that_is_damaged_or_a_bomb_ends_in_one_line(tmp_path, monkeypatch):
    packed = gzip.compress(b"[" + b"1," * 1000 + b"1]")
    (tmp_path / "cut.json.gz").write_bytes(packed[:-9])
    (tmp_path / "flipped.json.gz").write_bytes(packed[:15] + b"\xff" + packed[16:])
    (tmp_path / "bomb.json.gz").write_bytes(packed)
    for name, limit, problem in (
        ("cut", 10_000, "damaged"),
        ("flipped", 10_000, "damaged"),
        ("bomb", 1_000, "unpacks to more"),
    ):
        monkeypatch.setattr("chemeleon_jax.runs.files.MAX_UNPACKED", limit)
        with pytest.raises(UserError, match=f"{name}.json.gz: .*{problem}"):
            read_crystals(tmp_path / f"{name}.json.gz")

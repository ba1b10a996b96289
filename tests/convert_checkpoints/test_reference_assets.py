"""The authors' archive, in small: a pickled phase diagram, and crystals."""

import gzip
import io
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
from pymatgen.analysis.phase_diagram import PatchedPhaseDiagram, PDEntry, PhaseDiagram
from pymatgen.core import Composition, Lattice, Structure

from chemeleon_jax.data import dataset
from chemeleon_jax.errors import UserError
from chemeleon_jax.potentials.hull import read_hull
from convert_checkpoints import reference_assets

ENTRIES = [  # formula, eV
    ("Li", -1.9),
    ("Li2", -3.7),
    ("O2", -9.8),
    ("Fe", -8.3),
    ("Li2O", -14.3),
    ("Li2O2", -19.0),
    ("FeO", -14.0),
    ("Fe2O3", -38.0),
    ("LiFeO2", -27.0),
    ("Li5FeO4", -52.0),
]
CRYSTAL = Structure(Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def entries():
    return [PDEntry(Composition(f), e) for f, e in ENTRIES]


def archive(path, members):
    """A tar.gz of gzipped members."""
    with tarfile.open(path, "w:gz") as file:
        for name, content in members.items():
            content = gzip.compress(content)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("kind", [PhaseDiagram, PatchedPhaseDiagram])
def test_hull_of_a_phase_diagram_that_pymatgen_pickled(kind):
    diagram = kind(entries())
    hull = reference_assets.read_phase_diagram(pickle.dumps(diagram))
    for formula in ("Li3FeO3", "LiFe2O3", "Li5FeO4", "Fe3O4", "Li4O"):
        composition = Composition(formula)
        atoms = [e.Z for e, n in composition.items() for _ in range(int(n))]
        expected = diagram.get_hull_energy_per_atom(composition)
        assert hull.hull_energy(atoms) == pytest.approx(expected, abs=1e-6)


def test_assets_of_an_archive(tmp_path, capsys):
    name = f"{reference_assets.PHASE_DIAGRAM_PREFIX}_250409.pkl.gz"
    path = archive(
        tmp_path / "benchmarks_mp_20.tar.gz",
        {
            f"assets/{name}": pickle.dumps(PatchedPhaseDiagram(entries())),
            f"assets/{reference_assets.STRUCTURES}": json.dumps(
                [CRYSTAL.as_dict()] * 3
            ).encode(),
            "assets/../../evil.gz": b"never written",
            "assets/mp_20_all_structure_features.pt.gz": b"not used",
        },
    )
    out = tmp_path / "out"
    command = ["mp-20", "--archive", str(path), "--out", str(out)]
    assert reference_assets.main(command) == 0
    assert sorted(p.name for p in out.iterdir()) == ["hull_mp.npz", "mp_20.npz"]
    assert str(out / "mp_20.npz") in capsys.readouterr().out
    found = dataset.load_dataset(out / "mp_20.npz")
    np.testing.assert_array_equal(found.crystals.atom_types, [[11, 17]] * 3)
    np.testing.assert_allclose(found.crystals.lengths, 5.6)
    hull = read_hull(out / "hull_mp.npz")
    # two Li entries: the lower one per atom, -1.9, is kept
    assert hull.hull_energy([3]) == pytest.approx(-1.9)


class Attack:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_hostile_pickle(tmp_path):
    trace = tmp_path / "trace"
    with pytest.raises(UserError, match="hostile"):
        reference_assets.read_phase_diagram(pickle.dumps(Attack(trace)))
    assert not trace.exists()
    with pytest.raises(UserError, match="no phase diagram"):
        reference_assets.read_phase_diagram(pickle.dumps({"all_entries": []}))


def test_damaged_archives(tmp_path, capsys):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(b"\x1f\x8b nothing")
    with pytest.raises(UserError, match="damaged"):
        reference_assets.read_archive(path)
    archive(path, {"other.txt": b""})
    command = ["mp-20", "--archive", str(path), "--out", str(tmp_path / "out")]
    assert reference_assets.main(command) == 2
    assert "neither" in capsys.readouterr().err


def test_out_of_reach_and_other_files(tmp_path, monkeypatch):
    path = tmp_path / "mp-20.tar.gz"
    missing = (tmp_path / "missing").as_uri()
    monkeypatch.setitem(reference_assets.ARCHIVES, "mp-20", (missing, None))
    with pytest.raises(UserError, match="--archive FILE"):
        reference_assets.download("mp-20", path)
    source = tmp_path / "source"
    source.write_bytes(b"content")
    monkeypatch.setitem(reference_assets.ARCHIVES, "mp-20", (source.as_uri(), "0" * 64))
    with pytest.raises(UserError, match="SHA-256"):
        reference_assets.download("mp-20", path)


def test_what_was_cut_off_on_the_way_is_not_kept(tmp_path, monkeypatch):
    path = tmp_path / "mp-20.tar.gz"
    reply = io.BytesIO(b"half")
    reply.headers = {"Content-Length": "8"}
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: reply)
    with pytest.raises(UserError, match="cut off after 4 of 8 bytes"):
        reference_assets.download("mp-20", path)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_nobody_knows_is_the_first_one_fetched(
    tmp_path, monkeypatch, caplog
):
    path, source = tmp_path / "mp-20.tar.gz", tmp_path / "source"
    source.write_bytes(b"content")
    monkeypatch.setitem(reference_assets.ARCHIVES, "mp-20", (source.as_uri(), None))
    reference_assets.download("mp-20", path)
    assert "nobody has recorded" in caplog.text
    # printf content | sha256sum
    sha256 = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
    kept = tmp_path / "mp-20.tar.gz.sha256"
    assert kept.read_text() == f"{sha256}  mp-20.tar.gz\n"
    reference_assets.download("mp-20", path)  # is the same
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"not {sha256}"):
        reference_assets.download("mp-20", path)
    path.unlink()
    source.write_bytes(b"another")
    with pytest.raises(UserError, match=f"not {sha256}"):
        reference_assets.download("mp-20", path)

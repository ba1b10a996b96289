"""Nothing in the package runs, unpickles or unpacks what a file says."""

import contextlib
import json
import subprocess
import sys

import numpy as np
import paths
import pytest
from pymatgen.core import Lattice, Structure

from chemeleon_jax.data.crystals import read_structure
from chemeleon_jax.data.csv import parse_cif
from chemeleon_jax.data.dataset import load_dataset
from chemeleon_jax.data.readers.files import read_crystals
from chemeleon_jax.errors import UserError
from chemeleon_jax.models import loading
from chemeleon_jax.models.loading import load_checkpoint
from chemeleon_jax.potentials.hull import read_hull
from chemeleon_jax.report import parts

ROOT = paths.ROOT


def faults(source, where):
    """The rules that a file of the package would break, by ruff's own count."""
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--select=S,TID251",
        "--output-format=json",
    ]
    result = subprocess.run(
        [*command, f"--stdin-filename={where}", "-"],
        input=source,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    return {fault["code"] for fault in json.loads(result.stdout)}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pymatgen.core import Structure\nStructure.from_dict(json.loads(text))",
        "from monty.json import MontyDecoder",
        "def f():\n    from torch import load",
        "import torch.serialization",
        "eval(text)",
        "import builtins\nbuiltins.exec(text)",
        "import tarfile",
        "import zipfile\nzipfile.ZipFile(path).extractall(folder)",
        "import shutil\nshutil.unpack_archive(path)",
        "import numpy as np\nnp.load(path)",
        "import numpy\nnumpy.load(path, allow_pickle=True)",
        "import pandas as pd\npd.read_pickle(path)",
        "import subprocess\nsubprocess.run(text, shell=True)",
        "import os\nos.system(text)",
        "from os import system",
        "import importlib\nimportlib.import_module(name)",
        "import yaml\nyaml.load(text)",
    ],
)
def test_the_linter_finds_what_trusts_a_file(source):
    assert faults(source, "chemeleon_jax/train.py")
    assert not faults("import re\nre.compile(text)", "chemeleon_jax/train.py")


# ---------------------------------------------------------------- the same, at run


class Bomb:
    """Leaves a file behind wherever it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return (open, (self.mark, "w"))


@pytest.mark.parametrize("read", [load_dataset, read_hull])
def test_arrays_of_objects_are_not_unpickled(tmp_path, read):
    mark, path = tmp_path / "mark", tmp_path / "bomb.npz"
    bomb = np.array([Bomb(mark)], object)
    names = ("counts", "energies", "potential_digest", "atom_types", "frac_coords")
    names += ("lengths", "angles", "mask", "ids", "split", "num_atoms")
    np.savez(path, **dict.fromkeys(names, bomb))
    with pytest.raises(UserError, match=str(path)):
        read(path)
    assert not mark.exists()
    np.load(path, allow_pickle=True)["counts"].item().close()
    assert mark.exists()  # the bomb is live


def test_a_structure_in_json_imports_nothing(tmp_path, monkeypatch):
    mark = tmp_path / "mark"
    (tmp_path / "hostile.py").write_text(
        f"class Bomb:\n    open({str(mark)!r}, 'w').close()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    bomb = {"@module": "hostile", "@class": "Bomb"}
    value = Structure(Lattice.cubic(3), ["Fe"], [[0, 0, 0]]).as_dict()
    value |= {"properties": {"bomb": bomb}}
    value["sites"][0] |= {"properties": {"bomb": bomb}, "label": "Fe1"}
    value = json.loads(json.dumps(value))
    again = read_structure(value)
    assert again.formula == "Fe1" and again.volume == pytest.approx(27)
    path = tmp_path / "crystals.json"
    path.write_text(json.dumps([value]))
    assert len(read_crystals(path)) == 1
    assert not mark.exists()
    with contextlib.suppress(Exception):
        Structure.from_dict(value)
    assert mark.exists()  # the bomb is live


def test_a_cif_is_not_executed(tmp_path):
    """As in CVE-2024-23346, where pymatgen evaluated a transformation string."""
    mark = tmp_path / "mark"
    code = f"open('{mark}','w')"
    cif = f"""data_x
_cell_length_a {code}
_cell_length_b 4
_cell_length_c 4
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_space_group_magn.transform_BNS_Pp_abc 'a,b,{code};0,0,0'
_space_group_magn.number_BNS {code}
_symmetry_space_group_name_H-M "{code}"
loop_
_symmetry_equiv_pos_as_xyz
'x,y,{code}'
loop_
_atom_site_label
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_moment_label
Fe 0 0 {code} Fe
"""
    for text in (cif, cif.replace(f"_a {code}", "_a 4").replace(f"0 {code} Fe", "0 0")):
        assert isinstance(parse_cif(text, 20), str)
    assert not mark.exists()


def test_an_altered_viewer_is_not_put_into_a_report(monkeypatch):
    assert "3Dmol" in parts._viewer()
    monkeypatch.setattr(parts, "VIEWER_SHA256", "0" * 64)
    with pytest.raises(UserError, match="3Dmol-min.js was altered"):
        parts._viewer()


@pytest.mark.parametrize("name", loading.MINI_MODELS)
@pytest.mark.parametrize("file", ["config.json", "params.safetensors"])
def test_an_altered_embedded_model_is_refused(tmp_path, monkeypatch, name, file):
    folder = tmp_path / name
    folder.mkdir()
    source = ROOT / "chemeleon_jax" / "assets" / "mini" / name
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(loading, "MINI", tmp_path)
    assert load_checkpoint(f"mini:{name}").config["kind"]
    content = bytearray((folder / file).read_bytes())
    content[-10] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=f"{file}.*(altered|checksum)"):
        load_checkpoint(f"mini:{name}")

"""Nothing in the package runs, unpickles or unpacks what a file says."""

import ast
import contextlib
import json

import numpy as np
import paths
import pytest
from pymatgen.core import Lattice, Structure

from chemeleon_jax.data.crystals import read_structure
from chemeleon_jax.data.csv import parse_cif
from chemeleon_jax.data.dataset import load_dataset
from chemeleon_jax.errors import UserError
from chemeleon_jax.evaluation.inputs import read_crystals
from chemeleon_jax.models import store
from chemeleon_jax.potentials.hull import read_hull
from chemeleon_jax.report import page

ROOT = paths.ROOT
SOURCES = sorted(
    path
    for package in ("chemeleon_jax", "convert_checkpoints", "configs")
    for path in (ROOT / package).rglob("*.py")
)

# Modules that run what they read.
MODULES = (
    *("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal"),
    *("shelve", "torch", "yaml", "xmlrpc", "pty"),
)
# Functions by their own name, whatever they belong to.
FUNCTIONS = (
    *("eval", "exec", "compile", "__import__", "extract", "extractall"),
    # pymatgen's and monty's readers of JSON import what it names.
    *("from_dict", "process_decoded", "loadfn", "MontyDecoder"),
    *("unpack_archive", "read_pickle", "to_pickle", "system", "popen", "urlretrieve"),
)
ALLOWED = {
    ("chemeleon_jax/data/crystals.py", "Structure.from_dict"),  # without properties
}
# What a program and its own workers tell each other; none of it comes from a file.
PICKLERS = {"chemeleon_jax/workers/pool.py", "chemeleon_jax/workers/ray_pool.py"}
# Where archives are opened: members are read, checked, and never written out.
ARCHIVES = {
    "convert_checkpoints/reference_assets.py": {"tarfile"},
    "convert_checkpoints/unpickle.py": {"zipfile"},
    "chemeleon_jax/runs/files.py": {"zipfile"},
}
# Modules by a name from elsewhere: what the user's own config or code asks for.
IMPORTERS = {
    "chemeleon_jax/__init__.py",
    "chemeleon_jax/rewards/__init__.py",
    "chemeleon_jax/workers/custom.py",
    "chemeleon_jax/potentials/ase.py",
    "chemeleon_jax/workers/calculators.py",
    "convert_checkpoints/__init__.py",
}


def faults(source: str, where: str) -> list[str]:
    """What a file must not contain, as `line: what`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        imported = ()
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            imported = [node.module or ""]
        for module in imported:
            top = module.partition(".")[0]
            archive = top in ("tarfile", "zipfile") and top not in ARCHIVES.get(
                where, ()
            )
            pickled = top == "pickle" and where in PICKLERS
            if (top in MODULES and not pickled) or archive:
                found.append(f"{node.lineno}: import {module}")
        if isinstance(node, ast.ImportFrom):  # from os import system
            found += [
                f"{node.lineno}: {alias.name}"
                for alias in node.names
                if alias.name in FUNCTIONS
            ]
        if not isinstance(node, ast.Call):
            continue
        name = _last_name(node.func)
        full = ast.unparse(node.func)
        options = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
        harmless = name == "compile" and full != name  # of re, of jax
        if name in FUNCTIONS and not harmless and (where, full) not in ALLOWED:
            found.append(f"{node.lineno}: {full}")
        if options.get("allow_pickle", False) is not False or options.get("shell"):
            found.append(f"{node.lineno}: {full} with {options}")
        # Of NumPy's, the default has changed once; and it may be np or numpy.
        if full in ("np.load", "numpy.load") and "allow_pickle" not in options:
            found.append(f"{node.lineno}: {full} without allow_pickle=False")
        if name == "import_module" and where not in IMPORTERS:
            found.append(f"{node.lineno}: {full}")
    return found


def _last_name(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def test_the_package_trusts_no_file():
    assert len(SOURCES) > 50
    found = {
        str(path.relative_to(ROOT)): faults(
            path.read_text(), str(path.relative_to(ROOT))
        )
        for path in SOURCES
    }
    assert {where: what for where, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "Structure.from_dict(json.loads(text))",
        "from monty.json import MontyDecoder",
        "def f():\n    from torch import load",
        "import torch.serialization",
        "eval(text)",
        "builtins.exec(text)",
        "__import__(name)",
        "import tarfile",
        "archive.extractall(folder)",
        "archive.extract(member)",
        "shutil.unpack_archive(path)",
        "np.load(path)",
        "numpy.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=trusted)",
        "pd.read_pickle(path)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "from os import system",
        "importlib.import_module(name)",
        "yaml.load(text)\nimport yaml",
    ],
)
def test_the_search_finds(source):
    assert faults(source, "chemeleon_jax/train.py")


# ------------------------------------------------------------------- the same, at run


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
    assert "3Dmol" in page._viewer()
    monkeypatch.setattr(page, "VIEWER_SHA256", "0" * 64)
    with pytest.raises(UserError, match="3Dmol-min.js was altered"):
        page._viewer()


@pytest.mark.parametrize("name", store.MINI_MODELS)
@pytest.mark.parametrize("file", ["config.json", "params.safetensors"])
def test_an_altered_embedded_model_is_refused(tmp_path, monkeypatch, name, file):
    folder = tmp_path / name
    folder.mkdir()
    source = ROOT / "chemeleon_jax" / "assets" / "mini" / name
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(store, "MINI", tmp_path)
    assert store.load(f"mini:{name}").config["kind"]
    content = bytearray((folder / file).read_bytes())
    content[-10] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=f"{file}.*(altered|checksum)"):
        store.load(f"mini:{name}")

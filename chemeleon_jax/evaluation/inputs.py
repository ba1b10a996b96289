"""Crystals from files of any generator.

Files are data: classes that a JSON file names are not looked up, nothing is unpickled.
"""

import io
import json
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase.io import iread
from pymatgen.core import Structure
from pymatgen.io.ase import AseAtomsAdaptor

from chemeleon_jax.data import crystals, dataset
from chemeleon_jax.errors import UserError
from chemeleon_jax.runs.files import gunzip

FORMATS = (".cif", ".jsonl", ".json", ".extxyz", ".xyz")


class Item(NamedTuple):
    """One crystal of a file, or why there is none."""

    structure: Structure | None
    problem: str = ""


def read_crystals(path: str | Path) -> list[Item]:
    """Crystals in the order of their file, or of the names of CIF files.

    Args:
      path: a directory that `chemeleon_jax.sample` wrote, a folder of CIF files, or a
        file: CIF, extended XYZ, JSON lines, JSON (a list of pymatgen structures, or a
        mapping to them); each also as .gz.

    Raises:
      UserError: there is no such file, or it is none of these. A single crystal that
        cannot be read is an `Item` with a problem.
    """
    path = Path(path)
    if path.is_dir():
        if (path / "crystals.jsonl").is_file():
            path = path / "crystals.jsonl"
        else:
            return _read_folder(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file or directory")
    kind = next((s for s in FORMATS if s in path.suffixes[-2:]), None)
    if kind is None:
        raise UserError(
            f"{path}: crystals are read from {', '.join(FORMATS)} (also .gz), from a "
            "folder of CIF files, or from what chemeleon_jax.sample wrote"
        )
    try:
        text = _read_text(path)
        if kind == ".cif":
            items = [_parse(lambda: _from_cif(text))]
        elif kind == ".jsonl":
            lines = (line for line in text.splitlines() if line.strip())
            items = [_parse(lambda v=v: _from_json(json.loads(v))) for v in lines]
        elif kind == ".json":
            items = [_parse(lambda v=v: _from_json(v)) for v in _entries(text, path)]
        else:
            items = list(_from_xyz(text))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if not items:
        raise UserError(f"{path}: no crystal in it")
    return items


def _read_folder(path: Path) -> list[Item]:
    files = sorted(f for f in path.iterdir() if f.suffixes[-2:][:1] == [".cif"])
    files = files or sorted(f for f in path.iterdir() if f.suffix == ".cif")
    if not files:
        raise UserError(f"{path}: holds neither crystals.jsonl nor a CIF file")
    return [_parse(lambda f=f: _from_cif(_read_text(f))) for f in files]


def _read_text(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gunzip(content, str(path))
    return content.decode()


def _parse(read) -> Item:
    """The crystal that `read()` gives, or what is wrong with it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the CIF reader, about roundings
            item = read()
    except Exception as error:  # parsers raise anything on damaged text
        return Item(None, f"unreadable: {type(error).__name__}: {error}"[:200])
    return item if isinstance(item, Item) else _checked(item)


def _checked(structure: Structure) -> Item:
    if not structure.is_ordered:
        return Item(None, "unreadable: disordered")
    if not len(structure):
        return Item(None, "unreadable: no atoms")
    if any(getattr(site.specie, "Z", 0) not in range(1, 119) for site in structure):
        return Item(None, "unreadable: an unknown element")
    numbers = np.concatenate([structure.lattice.matrix, structure.frac_coords])
    if not np.isfinite(numbers).all():
        return Item(None, "non_finite")
    return Item(structure.remove_oxidation_states())


def _from_cif(text: str) -> Structure:
    return Structure.from_str(text, fmt="cif")


def _from_json(value: Any) -> Structure | Item:
    """A structure as pymatgen writes it, or a line of ours, which says "structure"."""
    if "lattice" in value:
        return crystals.read_structure(value)
    if value.get("structure") is None:
        return Item(None, str(value.get("reason") or "unreadable: no structure"))
    return crystals.read_structure(value["structure"])


def _entries(text: str, path: Path) -> Iterable[Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if isinstance(value, dict) and "lattice" in value:
        return [value]
    return value.values() if isinstance(value, dict) else value


def _from_xyz(text: str) -> Iterator[Item]:
    frames = iread(io.StringIO(text), index=":", format="extxyz")
    while True:
        try:
            atoms = next(frames)
        except StopIteration:
            return
        except Exception as error:  # the rest of the file cannot be found any more
            yield Item(None, f"unreadable: {type(error).__name__}: {error}"[:200])
            return
        yield _parse(lambda atoms=atoms: AseAtomsAdaptor.get_structure(atoms))


def load_reference(source: str) -> dataset.Dataset:
    """The known crystals: "mp_mini", a CSV or npz data set, or any file of crystals.

    Raises:
      UserError: it cannot be read.
    """
    name = str(source)
    if name == "mp_mini" or name.removesuffix(".gz").endswith((".csv", ".npz")):
        return dataset.load_dataset(name)
    structures = [i.structure for i in read_crystals(source) if i.structure is not None]
    if not structures:
        raise UserError(f"--reference={source}: no readable crystal in it")
    batch = crystals.from_structures(structures)
    ids = np.array([str(i) for i in range(len(structures))])
    return dataset.Dataset(batch, {}, ids, np.zeros(len(ids), np.int8))

"""How chemeleon_jax/assets/mp_mini.npz was made, from two packages of the Python index.

Sources, all of them Materials Project crystals:
  fairchem-data-oc 0.0.1 (wheel)  the bulk crystals of OC20, a pickle of ASE atoms
  matminer 0.3.7 (sdist)          four CSV files with DFT labels

`canonicalise` says how each crystal is written down.
"""

import ast
import io
import pickle
import tarfile
import zipfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import spglib
from numpy._core.multiarray import _reconstruct
from pymatgen.core import Element, Lattice, Structure
from pymatgen.io.vasp import Poscar

from chemeleon_jax.data.crystals import from_structures, niggli_reduce
from chemeleon_jax.data.dataset import Dataset, save_npz, split_by_chemical_system

OC20_WHEEL = "fairchem_data_oc-0.0.1-py2.py3-none-any.whl"
OC20_PICKLE = "fairchem/data/oc/databases/pkls/bulks.pkl"
MATMINER_SDIST = "matminer-0.3.7.tar.gz"
MATMINER_FILES = "matminer-0.3.7/matminer/datasets/{}.csv"

MAX_ATOMS = 20
# A bulk whose calculation went wrong says nothing true about its geometry either.
ENERGY_RANGE = (-20.0, 0.0)  # eV/atom
MAX_FORCE = 2.0  # eV/Å, the largest on any atom

# {data set: {label here: column there}}. The first set that has a material gives its
# geometry, so that labels and geometry come from the same calculation.
LABELS = {
    "flla_2015": {
        "formation_energy": "formation_energy_per_atom",  # eV/atom
        "e_above_hull_dft": "e_above_hull",  # eV/atom
    },
    "elastic_tensor": {"bulk_modulus": "K_VRH", "shear_modulus": "G_VRH"},  # GPa
    "dielectric_constant": {"band_gap": "band_gap"},  # eV
    "piezoelectric_tensor": {},
}
MENDELEEV = {z: int(Element.from_Z(z).mendeleev_no or 0) for z in range(1, 104)}


class _Record:
    """Stands in for a pickled object: keeps its state, runs nothing."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        self.__dict__.update(state)


class _Parameters(_Record, dict):
    """ASE's calculator parameters, a dict that nobody reads."""


class _AtomsUnpickler(pickle.Unpickler):
    """Loads arrays and inert records; any other name in the file is an error."""

    _allowed = {
        ("ase.atoms", "Atoms"): _Record,
        ("ase.cell", "Cell"): _Record,
        ("ase.calculators.singlepoint", "SinglePointCalculator"): _Record,
        ("ase.calculators.calculator", "Parameters"): _Parameters,
        # the pickle asks for a bound method of the calculator, which nobody calls
        ("builtins", "getattr"): lambda obj, name: None,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    }

    def find_class(self, module, name):
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed here")
        return self._allowed[module, name]


def read_oc20(packages: Path) -> dict[str, Structure]:
    """OC20 bulks with at most 20 atoms by material id, failed calculations dropped."""
    with zipfile.ZipFile(packages / OC20_WHEEL) as wheel:
        rows = _AtomsUnpickler(io.BytesIO(wheel.read(OC20_PICKLE))).load()
    structures, dropped = {}, 0
    for row in rows:
        atoms = row["atoms"]
        numbers = atoms.arrays["numbers"]
        results = atoms._calc.results
        force = np.linalg.norm(results["forces"], axis=-1).max()
        low, high = ENERGY_RANGE
        sane = low < results["energy"] / len(numbers) < high and force < MAX_FORCE
        dropped += not sane
        if sane and len(numbers) <= MAX_ATOMS:
            structures[row["src_id"]] = Structure(
                Lattice(atoms._cellobj.array),
                numbers,
                atoms.arrays["positions"],
                coords_are_cartesian=True,
            )
    print(f"OC20 bulks: {len(rows)}, failed calculations dropped: {dropped}")
    return structures


def read_matminer(packages: Path) -> tuple[dict[str, Structure], dict[str, dict]]:
    """Crystals with at most 20 atoms, and their labels {id: {label: value}}."""
    structures: dict[str, Structure] = {}
    labels: dict[str, dict[str, float]] = {}
    with tarfile.open(packages / MATMINER_SDIST) as sdist:
        for name, columns in LABELS.items():
            file = sdist.extractfile(MATMINER_FILES.format(name))
            if file is None:
                raise FileNotFoundError(f"{MATMINER_SDIST} has no {name}.csv")
            table = pd.read_csv(file, skiprows=1)  # line 1 is the citation
            table = table[table["nsites"] <= MAX_ATOMS]
            for row in table.to_dict("records"):
                key = row["material_id"]
                if key not in structures:
                    structures[key] = _matminer_structure(row)
                labels.setdefault(key, {}).update(
                    {label: float(row[column]) for label, column in columns.items()}
                )
            print(f"{name}: {len(table)} crystals, labels {list(columns)}")
    return structures, labels


def _matminer_structure(row: dict) -> Structure:
    if "poscar" in row:
        return Poscar.from_str(row["poscar"]).structure
    return Structure.from_dict(ast.literal_eval(row["structure"]))


def canonicalise(structure: Structure) -> Structure:
    """One way to write a crystal down, so that equal crystals look equal.

    1. The primitive cell, symmetrised within 0.01 Å (spglib).
    2. The Niggli cell, rebuilt from its parameters.
    3. Atoms ordered by Mendeleev number (metals first, halogens last: atoms of the same
       role share their place in many compounds), then by coordinates.
    4. The origin on an atom of the rarest element. Of all such atoms, and of all proper
       rotations that map the lattice onto itself, the choice whose sorted coordinates
       come first in the dictionary.
    """
    cell = (structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers)
    primitive = spglib.find_primitive(cell, symprec=0.01)
    if primitive is not None and len(primitive[2]) <= len(structure):
        structure = Structure(Lattice(primitive[0]), primitive[2], primitive[1])
    reduced = niggli_reduce(structure)
    coords = reduced.frac_coords % 1.0
    numbers = np.array(reduced.atomic_numbers)
    order = np.array([MENDELEEV[z] for z in numbers])
    kinds, counts = np.unique(order, return_counts=True)
    anchors = coords[order == kinds[np.argmin(counts)]]
    best, best_key = coords, None
    for rotation in _proper_lattice_symmetries(reduced.lattice.matrix):
        for anchor in anchors:
            # rows transform as x -> R x, so that a rotated copy fits the same lattice
            moved = (coords - anchor) @ rotation.T
            grid = np.round(moved % 1.0, 3) % 1.0
            rank = np.lexsort((*grid.T[::-1], order))
            key = grid[rank].ravel().tolist()
            if best_key is None or key < best_key:
                best, best_key, best_rank = moved, key, rank
    return Structure(reduced.lattice, numbers[best_rank], best[best_rank] % 1.0)


def _proper_lattice_symmetries(matrix: np.ndarray) -> np.ndarray:
    """Integer matrices R with x -> R x a proper rotation of the empty lattice."""
    found = spglib.get_symmetry((matrix, [[0, 0, 0]], [1]), symprec=0.01)
    if found is None:
        return np.eye(3, dtype=int)[None]
    rotations = found["rotations"]
    return rotations[np.round(np.linalg.det(rotations)) == 1]


def build_crystals(packages: Path, out: Path) -> None:
    """Reads the packages, writes mp_mini.npz."""
    structures, labels = read_matminer(packages)
    structures = read_oc20(packages) | structures
    ids = sorted(structures, key=lambda key: (len(key), key))
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        canonical = list(
            pool.map(canonicalise, [structures[i] for i in ids], chunksize=64)
        )
    crystals = from_structures(canonical, MAX_ATOMS)
    names = [label for columns in LABELS.values() for label in columns]
    dataset = Dataset(
        crystals=crystals,
        labels={
            name: np.array([labels.get(i, {}).get(name, np.nan) for i in ids], "f4")
            for name in names
        },
        material_ids=np.array(ids),
        split=split_by_chemical_system(crystals.atom_types),
    )
    save_npz(out, dataset, quantise=True)
    elements = len(np.unique(crystals.atom_types[crystals.mask]))
    print(f"{out}: {len(ids)} crystals of {elements} elements, {out.stat().st_size} B")

"""Composition, size and symmetry of many crystals: what distributions are made of."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from pymatgen.core import Element

from chemeleon_jax.data.dataset import Dataset
from chemeleon_jax.evaluation.judge import Row
from chemeleon_jax.evaluation.protocols.lemat_checks import space_group_of
from chemeleon_jax.evaluation.scores import structure_types
from chemeleon_jax.runs.files import cache_folder, from_cache, read_npz, to_cache
from chemeleon_jax.workers.matching import Cell
from chemeleon_jax.workers.outcome import Status
from chemeleon_jax.workers.pool import Pool

NUM_ELEMENTS = 118
_AMU_PER_CUBIC_ANGSTROM = 1.66053906660  # g/cm³ (CODATA 2018)


class Profile(NamedTuple):
    """What n crystals are like."""

    counts: np.ndarray  # [n, 118] atoms of each element
    lengths: np.ndarray  # [n, 3] Å, of the cell
    volume: np.ndarray  # [n] Å³, of the cell
    space_group: np.ndarray  # [n] numbers, 0 where there is none
    packing: np.ndarray  # [n] packing factors, NaN where there is none

    @property
    def num_atoms(self) -> np.ndarray:
        """Of the cell, [n]."""
        return self.counts.sum(1)

    @property
    def density(self) -> np.ndarray:
        """In g/cm³, [n]."""
        return self.counts @ _MASSES * _AMU_PER_CUBIC_ANGSTROM / self.volume

    @property
    def atom_density(self) -> np.ndarray:
        """Atoms per Å³, [n]."""
        return self.num_atoms / self.volume


_MASSES = np.array([float(Element.from_Z(z).atomic_mass) for z in range(1, 119)])


def profile_of_rows(rows: list[Row], among: np.ndarray) -> Profile:
    """Profile of the crystals `among` [n] bool that LeMat-GenBench's checks are of."""
    some = [row for row, chosen in zip(rows, among, strict=True) if chosen]
    cells = [
        Cell(
            np.array(row["structure"]["lattice"]["matrix"]),
            structure_types(row["structure"]),
            np.zeros((0, 3)),
        )
        for row in some
    ]
    packing = [row["lemat/packing"] for row in some]
    return profile_of_cells(
        cells,
        [row["lemat/space_group"] for row in some],
        [np.nan if x is None else x for x in packing],
    )


def profile_of_dataset(dataset: Dataset, cells: list[Cell], pool: Pool) -> Profile:
    """Profile of the known crystals, whose space groups are found once and kept."""
    path = Path(cache_folder()) / f"space_groups_{dataset.digest[:16]}.npz"
    kept = from_cache(path, lambda file: read_npz(file, "space groups", ("number",)))
    if kept is None or len(kept["number"]) != len(cells):
        outcomes = pool.map(space_group_of, cells)
        found = [o.value if o.status == Status.OK else 0 for o in outcomes]
        kept = {"number": np.array(found, np.int16)}
        to_cache(path, lambda temporary: _save(temporary, kept))
    return profile_of_cells(cells, kept["number"], np.full(len(cells), np.nan))


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with open(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def profile_of_cells(cells: list[Cell], space_group, packing) -> Profile:
    """Profile of crystals [n], given their space groups [n] and packing factors [n]."""
    counts = np.zeros((len(cells), NUM_ELEMENTS))
    for row, cell in zip(counts, cells, strict=True):
        np.add.at(row, np.asarray(cell.atom_types) - 1, 1)
    matrices = np.array([cell.matrix for cell in cells], float).reshape(-1, 3, 3)
    return Profile(
        counts,
        np.linalg.norm(matrices, axis=-1),
        np.abs(np.linalg.det(matrices)),
        np.array(space_group, int),
        np.array(packing, float),
    )

"""Convex hull of reference energies, and the energy of a crystal above it.

NumPy on the host. The energies of hull and crystal must come from one potential, and
contain the same corrections: a DFT hull under CHGNet energies would reward the
difference between the two.
"""

import os
import shutil
from functools import cache, lru_cache, partial
from importlib.resources import files
from pathlib import Path

import jax
import numpy as np
from scipy.optimize import linprog
from tqdm import tqdm

from chemeleon_jax.data.crystals import take
from chemeleon_jax.data.dataset import Dataset, load_dataset
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.devices import distributed
from chemeleon_jax.errors import UserError
from chemeleon_jax.potentials.types import Potential, Status
from chemeleon_jax.runs.files import (
    cache_folder,
    from_cache,
    read_npz,
    read_packaged,
    to_cache,
)

ASSETS = files("chemeleon_jax") / "assets"
HULLS = {  # of the embedded crystals, by potential: file, SHA-256
    "chgnet": (
        "hull.npz",
        "2281294298fdb35737e98d69c902b3642e797a245434a775fad997fb2c046c24",
    ),
    "sevennet-l3i5": (
        "hull-sevennet-l3i5.npz",
        "6385ff7896302a934e2457107604f2dba68f3cfa8a341091646654277d4f2592",
    ),
    "sevennet-0": (
        "hull-sevennet-0.npz",
        "1998dc3c7d8db0d6883f6bed90e7b8cb2a57a7138c77f07f75d1c23326adf790",
    ),
    "sevennet-l3i5:uncorrected": (
        "hull-sevennet-l3i5-uncorrected.npz",
        "4ba1d8bdd347d4c6ee0e5ca327a4a107ccfe337f093ddf6ea3460899e3c774a0",
    ),
    "sevennet-0:uncorrected": (
        "hull-sevennet-0-uncorrected.npz",
        "24431c67f7a03ddcd41a86593ec8b2fa26d5f2050b6c9540be92884dd8daecb2",
    ),
}
REFERENCES = "references.npz"  # of every hull, from tools/build_references.py
REFERENCES_SHA256 = "c50da7943e08fbf40674636336d87bbee38f4e0448e82ef652a969121dd9280b"
NUM_ELEMENTS = 118


class Hull:
    """Lowest reference energies per atom, by composition.

    Of entries with the same composition only the lowest is kept; no other can matter.
    """

    def __init__(self, counts, energies, potential_digest: str = "", scheme: str = ""):
        """Keeps the lowest finite energy of each composition.

        Args:
          counts: [M, 118] integers, atoms of each element; column 0 is hydrogen.
          energies: [M], eV/atom; NaN entries are left out.
          potential_digest: of the potential that gave the energies; "" if unknown.
          scheme: of the corrections that they contain; "" if unknown.
        """
        counts, energies = np.asarray(counts), np.asarray(energies, np.float64)
        rows = np.argsort(energies, kind="stable")
        rows = rows[np.isfinite(energies[rows])]
        reduced = counts[rows] // np.gcd.reduce(counts[rows], axis=1, keepdims=True)
        self.counts, lowest = np.unique(reduced, axis=0, return_index=True)  # [M, 118]
        self.energies = energies[rows][lowest]  # [M]
        self.fractions = self.counts / self.counts.sum(1, keepdims=True)  # [M, 118]
        self.potential_digest, self.scheme = potential_digest, scheme
        self._present = self.fractions > 0
        self._system = lru_cache(maxsize=4096)(self._find_system)
        self._energy = lru_cache(maxsize=65536)(self._find_energy)

    def __len__(self) -> int:
        return len(self.energies)

    def _find_system(self, elements: tuple[int, ...]):
        """Compositions [m, k], energies [m] of the entries made of k elements only."""
        columns = np.array(elements) - 1
        rows = np.flatnonzero(self._present[:, columns].sum(1) == self._present.sum(1))
        return self.fractions[np.ix_(rows, columns)], self.energies[rows]

    def _find_energy(self, elements: tuple[int, ...], counts: tuple[int, ...]) -> float:
        compositions, energies = self._system(elements)
        target = np.array(counts) / sum(counts)
        return hull_energy(compositions, energies, target)

    def num_entries(self, elements) -> int:
        """Compositions on record in a chemical system, its elements included.

        Args:
          elements: atomic numbers, in any order, repeats allowed.
        """
        system = tuple(sorted({int(z) for z in elements}))
        if not system or system[0] < 1 or system[-1] > NUM_ELEMENTS:
            return 0
        return len(self._system(system)[1])

    def hull_energy(self, atom_types) -> float:
        """Energy of the hull at the composition of some atoms, eV/atom.

        Args:
          atom_types: atomic numbers, zeros ignored.

        Returns:
          NaN if the atoms have no composition on the hull: there are none, or one is of
          an element without a reference.
        """
        atom_types = np.asarray(atom_types)
        elements, counts = np.unique(atom_types[atom_types != 0], return_counts=True)
        if len(elements) == 0 or elements[0] < 1 or elements[-1] > NUM_ELEMENTS:
            return np.nan
        return self._energy(tuple(elements.tolist()), tuple(counts.tolist()))

    def e_above_hull(self, atom_types, energies) -> np.ndarray:
        """Energy above the hull of the references, eV/atom.

        Negative for a crystal more stable than every mixture of the references.

        Args:
          atom_types: [B, N] atomic numbers, 0 for padding.
          energies: [B], eV/atom.

        Returns:
          [B] float64, NaN where the energy is NaN or the hull does not reach.
        """
        energies = np.asarray(energies, np.float64)
        hull = [
            self.hull_energy(types) if np.isfinite(energy) else np.nan
            for types, energy in zip(np.asarray(atom_types), energies, strict=True)
        ]
        return np.where(np.isfinite(energies), energies - np.array(hull), np.nan)


def hull_energy(compositions, energies, target) -> float:
    """Lowest energy per atom of any mixture of entries with composition `target`.

    min_w  w . energies  with  w . compositions = target,  w >= 0

    by the revised simplex method. It starts from the pure elements, and at each step
    the basis is a set of k entries in equilibrium, whose energies fix the chemical
    potentials mu; an entry below the plane that mu spans enters. Optimal when none is.

    Args:
      compositions: [m, k] atomic fractions.
      energies: [m], eV/atom.
      target: [k] atomic fractions, all positive.

    Returns:
      eV/atom; NaN if an element has no entry of its own.
    """
    k = len(target)
    is_element = compositions == 1
    if not is_element.any(0).all():
        return np.nan
    basis = np.where(is_element, energies[:, None], np.inf).argmin(0)
    for _ in range(20 * k + 100):
        mu = np.linalg.solve(compositions[basis], energies[basis])
        excess = energies - compositions @ mu
        entering = int(excess.argmin())
        if excess[entering] > -1e-10:
            return float(mu @ target)
        columns = np.stack([target, compositions[entering]], 1)
        weight, direction = np.linalg.solve(compositions[basis].T, columns).T
        grows = direction > 1e-10
        limit = np.where(grows, weight / np.where(grows, direction, 1.0), np.inf)
        basis[int(limit.argmin())] = entering
    # Degenerate entries can make the rule above go round in circles.
    solution = linprog(energies, A_eq=compositions.T, b_eq=target, method="highs")
    return float(solution.fun) if solution.success else np.nan


def composition_counts(atom_types) -> np.ndarray:
    """Atoms of each element, [B, 118], of atomic numbers [B, N] with 0 for padding."""
    atom_types = np.asarray(atom_types)
    rows = np.broadcast_to(np.arange(len(atom_types))[:, None], atom_types.shape)
    counts = np.zeros((len(atom_types), NUM_ELEMENTS + 1), np.int32)
    np.add.at(counts, (rows, atom_types), 1)
    return counts[:, 1:]


def evaluate(
    potential: Potential,
    crystals: CrystalBatch,
    *,
    batch_size: int = 512,
    folder: Path | None = None,
):
    """Energies of many crystals, on the host.

    With a `folder` it shows how far it is, and leaves each batch there: cut off, it
    goes on.

    Returns:
      energies [M] in eV/atom and statuses [M], NumPy.
    """
    energies = jax.jit(potential.energies)
    size = len(crystals.atom_types)
    batch_size = min(batch_size, size)
    results = []
    silent = folder is None or not distributed.is_first()
    title = f"hull of {potential.name}"
    with tqdm(total=size, desc=title, unit=" crystals", disable=silent) as progress:
        for start in range(0, size, batch_size):
            # Rows repeated at the end keep the shape, so that nothing compiles twice.
            rows = np.minimum(np.arange(start, start + batch_size), size - 1)
            part = folder / f"{start:08d}.npz" if folder else None
            found = part and from_cache(part, read_entries)
            if not found:
                found = jax.device_get(energies(take(crystals, rows)))
                if part:
                    to_cache(part, partial(save_entries, found))
            results.append(found)
            progress.update(min(batch_size, size - start))
    energy, status = (
        np.concatenate(column)[:size] for column in zip(*results, strict=True)
    )
    return energy, status


# ---------------------------------------------------------------- on disk


def save_hull(path: str | os.PathLike, hull: Hull) -> None:
    """Write a hull as npz: reduced formulas (uint8) and energies (float32)."""
    np.savez_compressed(
        path,
        counts=hull.counts.astype(np.uint8),
        energies=hull.energies.astype(np.float32),
        potential_digest=np.array(hull.potential_digest),
        scheme=np.array(hull.scheme),
    )


def save_entries(found, path: Path) -> None:
    """Writes energies and statuses of some crystals."""
    np.savez(path, energies=found[0], statuses=found[1])


def read_entries(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads what `save_entries` wrote; a damaged file raises `UserError`."""
    arrays = read_npz(path, "hull entries", ("energies", "statuses"))
    return arrays["energies"], arrays["statuses"]


def read_hull(path) -> Hull:
    """Read what `save_hull` wrote, from a path or the bytes of a file.

    Raises:
      UserError: the file is missing or damaged, or its arrays do not fit.
    """
    arrays = read_npz(path, "a hull", ("counts", "energies", "potential_digest"))
    try:
        counts, energies = arrays["counts"].astype(np.int32), arrays["energies"]
        digest, scheme = arrays["potential_digest"], arrays.get("scheme", "")
        return Hull(counts, energies, str(digest), str(scheme))
    except (ValueError, TypeError, IndexError) as error:
        raise UserError(f"{path} is not a hull: {error}") from error


def check_hull(hull: Hull, potential: Potential, file) -> Hull:
    """The hull, if its energies are those of the potential, as far as it can tell.

    Raises:
      UserError: they are another potential's, or of another scheme of corrections.
    """
    if hull.potential_digest not in ("", potential.digest):
        raise UserError(f"{file}: its energies are not those of {potential.name}")
    if hull.scheme not in ("", potential.scheme):
        raise UserError(
            f"{file}: its energies contain the corrections {hull.scheme!r}, those of "
            f"{potential.name} {potential.scheme!r}: a hull mixes no schemes"
        )
    return hull


def load_hull(
    potential: Potential,
    dataset: Dataset | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> Hull:
    """The hull whose entries `potential` itself has evaluated.

    Hulls of the embedded crystals are embedded, for the embedded potentials. Any other
    hull takes one energy per crystal of the data set and of `reference_crystals`, once:
    it is kept in `cache_dir` under a name made of the digests of all three; what is cut
    off on the way goes on. The embedded entries of a potential are added to it.

    Args:
      potential: of the crystals to be judged.
      dataset: of the references; None for the embedded crystals.
      cache_dir: by default ~/.cache/chemeleon_jax.

    Raises:
      UserError: a file was altered or cannot be read.
    """
    embedded = _embedded_hull(potential) if potential.name in HULLS else None
    if dataset is None and embedded is not None:
        return embedded
    dataset = dataset or load_dataset("mp_mini")
    folder = Path(cache_dir or cache_folder())
    digests = dataset.digest[:16], potential.digest[:16], REFERENCES_SHA256[:8]
    path = folder / f"hull_{'_'.join(digests)}.npz"
    kept = from_cache(path, read_hull)
    if kept is not None:
        return check_hull(kept, potential, path)
    parts = path.with_suffix(".parts")
    counts, energies = evaluate_entries(potential, dataset.crystals, parts)
    more = (
        evaluate_entries(potential, reference_crystals())
        if embedded is None
        else (embedded.counts, embedded.energies)
    )
    counts, energies = (
        np.concatenate(pair) for pair in zip((counts, energies), more, strict=True)
    )
    hull = Hull(counts, energies, potential.digest, potential.scheme)
    to_cache(path, lambda temporary: save_hull(temporary, hull))
    shutil.rmtree(parts, ignore_errors=True)
    return hull


def evaluate_entries(
    potential: Potential, crystals: CrystalBatch, folder: Path | None = None
):
    """Compositions [M, 118] and energies [M] of crystals, NaN where there is none."""
    energies, status = evaluate(potential, crystals, folder=folder)
    energies = np.where(status == Status.OK, energies, np.nan)
    return composition_counts(crystals.atom_types), energies


def reference_crystals() -> CrystalBatch:
    """What every hull has besides its data set: elements, and simple compounds.

    A ground state of each of 89 elements by PBE, and binary compounds that mp_mini
    lacks (Y2O3, CaI2, CsF) in their best prototype by SevenNet-l3i5. Without these,
    whatever holds yttrium and oxygen looks stable.
    """
    arrays = read_npz(
        read_packaged(ASSETS / REFERENCES, REFERENCES_SHA256),
        "reference crystals",
        ("atom_types", "frac_coords", "lengths", "angles"),
    )
    atom_types = arrays["atom_types"].astype(np.int32)
    return CrystalBatch(
        atom_types=atom_types,
        frac_coords=arrays["frac_coords"],
        lengths=arrays["lengths"],
        angles=arrays["angles"],
        mask=atom_types > 0,
    )


@cache
def _embedded_hull(potential: Potential) -> Hull:
    file, sha256 = HULLS[potential.name]
    hull = read_hull(read_packaged(ASSETS / file, sha256))
    return check_hull(hull, potential, f"{file} (made by tools/build_hull.py)")

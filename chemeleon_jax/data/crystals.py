"""Padded arrays to and from pymatgen, and which crystals are physically possible.

NumPy on the host. Axes as in `types.py`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import chex
import numpy as np
from pymatgen.core import Element, Lattice, Structure

from chemeleon_jax.data.lattice import lattice_matrix, volume
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.workers.elongation import check_elongation

# Code k of `validity` means VALIDITY_REASONS[k]; the first that applies is given.
VALIDITY_REASONS = (
    "valid",
    "non_finite",  # NaN or infinity in coordinates, lengths or angles
    "cell_angles",  # impossible or extreme angles; a flat cell, a length below zero
    "volume",  # too little or too much volume per atom, or no atom at all
    "min_distance",  # two atoms, images included, too close
    "element",  # atomic number outside 1..94
)

MIN_DISTANCE = 0.5  # Å between two atoms of a crystal that could be
MAX_ATOMIC_NUMBER = 94  # plutonium: the last that CHGNet and the MP sets know
FLAT_CELL = 0.1  # Å; also bounds how many images `minimum_distance` looks at
SYMBOLS = tuple(Element.from_Z(z).symbol for z in range(1, 119))


def niggli_reduce(structure: Structure) -> Structure:
    """Niggli-reduced cell in the canonical orientation of `lattice_matrix`.

    Where the Niggli algorithm fails on a near-degenerate cell, the LLL-reduced cell is
    given, which is the same crystal.

    Raises:
      ValueError: the cell is so elongated that pymatgen would take all the memory.
    """
    check_elongation(structure.lattice)
    try:
        reduced = structure.get_reduced_structure("niggli")
    except ValueError:
        reduced = structure.get_reduced_structure("LLL")
    return Structure(
        Lattice.from_parameters(*reduced.lattice.parameters),
        [site.species for site in reduced],
        _right_handed_coords(reduced),
    )


def _right_handed_coords(structure: Structure) -> np.ndarray:
    """Fractional coordinates in the cell of the same parameters and positive volume.

    Cell parameters forget handedness. Negating all three vectors and all coordinates
    gives the same crystal, where dropping the sign would give its mirror image.
    """
    sign = np.sign(np.linalg.det(structure.lattice.matrix))
    return sign * structure.frac_coords


def wrap(frac_coords: np.ndarray) -> np.ndarray:
    """Fractional coordinates into [0, 1), as float32 (which could round up to 1)."""
    wrapped = np.asarray(frac_coords % 1.0, np.float32)
    return np.where(wrapped >= 1.0, np.float32(0.0), wrapped)


def from_structures(
    structures: Sequence[Structure | None],
    max_atoms: int | None = None,
    size: int | None = None,
) -> CrystalBatch:
    """Structures -> padded batch of NumPy arrays, coordinates wrapped into [0, 1).

    Args:
      structures: ordered structures, whose oxidation states are dropped; None becomes
        a crystal without atoms.
      max_atoms: width N of the batch; the largest crystal's atom count by default.
      size: B, if more than there are: the rest are without atoms.

    Raises:
      ValueError: a structure is disordered or has more than `max_atoms` atoms.
    """
    counts = [0 if s is None else len(s) for s in structures]
    width = max(counts, default=1) if max_atoms is None else max_atoms
    batch = empty_batch(size or len(structures), width)
    for i, structure in enumerate(structures):
        if structure is None:
            continue
        if not structure.is_ordered:
            raise ValueError(
                f"structure {i} ({structure.formula}) is disordered: "
                "every site must hold one element"
            )
        if counts[i] > width:
            raise ValueError(
                f"structure {i} ({structure.formula}) has {counts[i]} atoms, "
                f"more than max_atoms={width}"
            )
        batch.atom_types[i, : counts[i]] = [site.specie.Z for site in structure]
        batch.frac_coords[i, : counts[i]] = wrap(_right_handed_coords(structure))
        batch.lengths[i] = structure.lattice.lengths
        batch.angles[i] = structure.lattice.angles
        batch.mask[i, : counts[i]] = True
    return batch


def read_structure(value: dict[str, Any]) -> Structure:
    """The structure of what `Structure.as_dict()` gave, from a file of anyone.

    Properties are left out: pymatgen imports the modules, and calls the classes, that
    properties of sites name.

    Raises:
      Exception: of any kind, where the value is no structure.
    """
    sites = [{k: v for k, v in s.items() if k != "properties"} for s in value["sites"]]
    return Structure.from_dict({**value, "sites": sites, "properties": None})


def crystals_of(arrays: Mapping[str, np.ndarray]) -> CrystalBatch:
    """The batch whose arrays are among those of a file."""
    names = [field.name for field in dataclasses.fields(CrystalBatch)]
    return CrystalBatch(**{name: arrays[name] for name in names})


def empty_batch(size: int, width: int) -> CrystalBatch:
    """All-padding batch of NumPy arrays, to be filled in place."""
    return CrystalBatch(
        atom_types=np.zeros((size, width), np.int32),
        frac_coords=np.zeros((size, width, 3), np.float32),
        lengths=np.ones((size, 3), np.float32),
        angles=np.full((size, 3), 90, np.float32),
        mask=np.zeros((size, width), bool),
    )


def to_numpy(batch: CrystalBatch) -> CrystalBatch:
    """The batch with float64 coordinates and cells on the host."""
    batch.assert_shapes()
    return CrystalBatch(
        atom_types=np.asarray(batch.atom_types),
        frac_coords=np.asarray(batch.frac_coords, np.float64),
        lengths=np.asarray(batch.lengths, np.float64),
        angles=np.asarray(batch.angles, np.float64),
        mask=np.asarray(batch.mask, bool),
    )


def to_structures(batch: CrystalBatch) -> list[Structure | None]:
    """Batch -> one pymatgen Structure per crystal.

    Never raises: a crystal without atoms, with a number that is not finite, an atomic
    number that is no element or a cell without volume becomes None.
    """
    batch = to_numpy(batch)
    finite = _is_finite(batch)
    with np.errstate(all="ignore"):
        matrices = lattice_matrix(batch.lengths, batch.angles)
        usable = finite & (batch.lengths > 0).all(-1) & (volume(matrices) > 1e-6)
    structures = []
    for i in range(len(usable)):
        types = batch.atom_types[i, batch.mask[i]]
        elements = types.size and types.min() >= 1 and types.max() <= len(SYMBOLS)
        if not (usable[i] and elements):
            structures.append(None)
            continue
        symbols = [SYMBOLS[z - 1] for z in types]
        coords = batch.frac_coords[i, batch.mask[i]]
        structures.append(Structure(Lattice(matrices[i]), symbols, coords))
    return structures


def validity(
    batch: CrystalBatch,
    *,
    min_distance: float = MIN_DISTANCE,
    volume_per_atom: tuple[float, float] = (2.0, 300.0),
    angle_range: tuple[float, float] = (10.0, 170.0),
) -> np.ndarray:
    """Why each crystal is impossible, or 0 where nothing speaks against it.

    Args:
      batch: crystals.
      min_distance: shortest distance allowed between atoms, images included, Å.
      volume_per_atom: least and most, Å^3. Diamond has 5.7, solid xenon 60.
      angle_range: least and most, degrees.

    Returns:
      [B] int32, indices into VALIDITY_REASONS.
    """
    batch = to_numpy(batch)
    finite = _is_finite(batch)
    with np.errstate(all="ignore"):
        flat = plane_spacings(batch).min(-1) < FLAT_CELL
        low, high = angle_range
        angles = ((batch.angles < low) | (batch.angles > high)).any(-1) | flat
        per_atom = volume(batch.lattice) / batch.mask.sum(-1)
    low, high = volume_per_atom
    bad_volume = ~((per_atom >= low) & (per_atom <= high))
    types = np.where(batch.mask, batch.atom_types, 1)
    element = ((types < 1) | (types > MAX_ATOMIC_NUMBER)).any(-1)

    measurable = finite & ~angles & ~bad_volume
    close = np.zeros(len(finite), bool)
    close[measurable] = (
        minimum_distance(take(batch, measurable), cutoff=min_distance) < min_distance
    )
    checks = [~finite, angles, bad_volume, close, element]
    return np.select(checks, range(1, 6), 0).astype(np.int32)


def _is_finite(batch: CrystalBatch) -> np.ndarray:
    coords = np.where(batch.mask[..., None], batch.frac_coords, 0.0)
    cell = np.concatenate([batch.lengths, batch.angles], -1)
    return np.isfinite(coords).all((1, 2)) & np.isfinite(cell).all(-1)


def take(batch: CrystalBatch, rows) -> CrystalBatch:
    """Crystals of a NumPy batch by index or Boolean mask."""
    return CrystalBatch(**{name: x[rows] for name, x in vars(batch).items()})


def plane_spacings(batch: CrystalBatch) -> np.ndarray:
    """Distance between opposite faces of the cell, Å, [B, 3]; 0 for impossible angles.

    The volume here is not clipped, as that of `lattice_matrix` is.
    """
    cos, sin = (f(np.deg2rad(batch.angles)) for f in (np.cos, np.sin))
    squared = 1 - (cos**2).sum(-1) + 2 * cos.prod(-1)  # (volume / abc)^2
    unit_volume = np.sqrt(np.maximum(squared, 0.0))
    return batch.lengths * unit_volume[..., None] / sin


def minimum_distance(batch: CrystalBatch, *, cutoff: float) -> np.ndarray:
    """Shortest distance between two atoms, periodic images included, [B] in Å.

    Exact up to `cutoff` for cells of any shape; longer distances are given as `cutoff`.
    An atom and its own images count. Two points closer than r differ by less than r / h
    along an axis whose planes are h apart, which bounds the images that matter.

    Raises:
      ValueError: a cell is flat (planes closer than 0.1 Å) or not finite.
    """
    batch = to_numpy(batch)
    spacing = plane_spacings(batch)
    if not (_is_finite(batch) & (spacing.min(-1) >= FLAT_CELL)).all():
        raise ValueError("minimum_distance needs finite crystals with cells not flat")
    reach = np.floor(cutoff / spacing + 0.5).astype(int)  # [B, 3] images per direction
    shortest = np.empty(len(reach))
    for images in np.unique(reach, axis=0):
        rows = np.flatnonzero((reach == images).all(-1))
        chunk = max(1, 4_000_000 // (batch.mask.shape[1] ** 2 * 27))  # ~100 MB
        for start in range(0, len(rows), chunk):
            part = rows[start : start + chunk]
            shortest[part] = _shortest_vector(take(batch, part), images)
    return np.minimum(shortest, cutoff)


def _shortest_vector(batch: CrystalBatch, images: np.ndarray) -> np.ndarray:
    """Shortest vector between atoms over images -n..n per axis, [B] in Å."""
    matrix = batch.lattice
    axes = [np.arange(-n, n + 1) for n in images]
    shifts = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3) @ matrix
    first, second = np.triu_indices(batch.mask.shape[1], k=1)
    frac = batch.frac_coords[:, first] - batch.frac_coords[:, second]
    pairs = (frac - np.round(frac)) @ matrix  # [B, P, 3]
    # |d + s|^2 = |d|^2 + 2 d.s + |s|^2, as a matrix product: [B, P, S]
    squared = (
        (pairs**2).sum(-1)[..., None]
        + 2 * pairs @ shifts.swapaxes(1, 2)
        + (shifts**2).sum(-1)[:, None]
    )
    real = batch.mask[:, first] & batch.mask[:, second]
    between = np.where(real[..., None], squared, np.inf).min((1, 2), initial=np.inf)
    own = (shifts**2).sum(-1)
    own[:, len(shifts[0]) // 2] = np.inf  # the shift by nothing
    return np.sqrt(np.maximum(np.minimum(between, own.min(-1)), 0.0))


def formula_key(atomic_numbers) -> tuple[int, ...]:
    """Reduced composition as (Z1, n1, Z2, n2, ...), Z ascending.

    Equal for two crystals exactly where pymatgen's `reduced_formula` is: hash tables by
    formula need no Composition objects. Padding (0) is ignored.
    """
    return formula_keys(np.asarray(atomic_numbers, int)[None])[0]


def formula_keys(atomic_numbers: np.ndarray) -> list[tuple[int, ...]]:
    """`formula_key` of M crystals, [M, N]; of all at once, since M may be large."""
    chex.assert_rank(atomic_numbers, 2, custom_message="atomic_numbers [M, N]")
    rows, columns = np.nonzero(atomic_numbers > 0)
    numbers = atomic_numbers[rows, columns]
    counts = np.zeros((len(atomic_numbers), numbers.max(initial=0) + 1), int)
    np.add.at(counts, (rows, numbers), 1)
    rows, numbers = np.nonzero(counts)
    divisors = np.gcd.reduce(counts, axis=1)[rows]
    pairs = np.stack([numbers, counts[rows, numbers] // divisors], 1)
    ends = np.searchsorted(rows, np.arange(1, len(atomic_numbers)))
    parts = np.split(pairs, ends)[: len(atomic_numbers)]
    return [tuple(part.ravel().tolist()) for part in parts]


def chemical_system(atomic_numbers) -> str:
    """Element symbols in alphabetical order, joined: "Cl-Na". Padding is ignored."""
    numbers = np.unique(np.asarray(atomic_numbers))
    return "-".join(sorted(SYMBOLS[z - 1] for z in numbers if z > 0))

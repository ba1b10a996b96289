"""Templates: how a space group acts on the atoms of crystals that are known to have it.

A space group alone does not say where atoms may be. So each crystal to be made is given
the symmetry of one crystal of a data set: its operations, and which atoms they take to
which. Of its elements and its lattice nothing is taken.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pymatgen.core import Element

from chemeleon_jax.data.crystals import formula_key, formula_keys, to_structures
from chemeleon_jax.data.dataset import Dataset
from chemeleon_jax.data.formula import parse_chemical_system, parse_composition
from chemeleon_jax.data.symmetry import (
    TIME_LIMIT,
    crystal_systems,
    read_crystal_system,
    read_space_group,
    space_group_numbers,
)
from chemeleon_jax.data.types import SymmetryTemplate
from chemeleon_jax.errors import UserError
from chemeleon_jax.workers.matching import cell_of
from chemeleon_jax.workers.outcome import Status
from chemeleon_jax.workers.pool import WorkerPool
from chemeleon_jax.workers.symmetry import Sites, symmetric_sites

ANY = "any"  # space group: that of any known crystal


class AskedSymmetry(NamedTuple):
    """The symmetry that crystals should have, and of which elements; None for any."""

    space_group: str | None = None  # international symbol, number, or `ANY`
    crystal_system: str | None = None
    composition: str | None = None  # a formula
    chemical_system: str | None = None  # such as Li-Mn-O

    def __str__(self):
        """As flags, for messages."""
        given = ((k, v) for k, v in self._asdict().items() if v is not None)
        return " ".join(f"--{name}={value}" for name, value in given)


def draw_templates(
    key: jax.Array,
    count: int,
    dataset: Dataset,
    shares: np.ndarray,
    asked: AskedSymmetry,
) -> tuple[np.ndarray, SymmetryTemplate]:
    """Atom counts [count] and templates of crystals, drawn from a data set.

    Atom counts are drawn in the `shares` [N] of 1, 2, ..., N atoms, as far as the data
    set has crystals of the symmetry with so many; of those with the same count any is
    as likely. The i-th depends on the key and i alone. Templates for a composition are
    of its stoichiometry, those for a chemical system of as many elements; which of
    their elements stands for which of those asked for is drawn, too.

    Raises:
      UserError: no crystal of the data set has what is asked for.
    """
    num_atoms, width = dataset.crystals.mask.sum(-1), len(shares)
    rows = np.flatnonzero(_fitting(dataset, asked) & (num_atoms <= width))
    counts = np.bincount(num_atoms[rows], minlength=width + 1)
    likely = (shares / np.maximum(counts[1:], 1))[num_atoms[rows] - 1]
    if not likely.sum() > 0:
        raise UserError(
            f"{asked}: no crystal of the data set that symmetry is taken from is like "
            f"this and as large as asked for ({_told_counts(counts)}); give another "
            "--num_atoms or --dataset"
        )
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
    odds = jnp.asarray(likely / likely.sum())
    draw = jax.jit(jax.vmap(lambda k: jax.random.choice(k, len(rows), p=odds)))
    rows, index = np.unique(rows[np.asarray(draw(keys))], return_inverse=True)
    crystals = dataset.subset(rows).crystals
    types = np.where(crystals.mask, crystals.atom_types, 0)[index, :width]
    types = np.pad(types, ((0, 0), (0, width - types.shape[1])))
    elements = _elements(np.asarray(jax.random.key_data(key)), types, asked)
    sites = _sites(crystals, asked)
    return num_atoms[rows][index], _padded([sites[i] for i in index], elements)


def _told_counts(counts: np.ndarray) -> str:
    known = ", ".join(map(str, np.flatnonzero(counts)))
    return f"there are some with {known} atoms" if known else "there are none at all"


def _fitting(dataset: Dataset, asked: AskedSymmetry) -> np.ndarray:
    """Whether each crystal of a data set may be a template, [M]."""
    group = system = None
    try:
        if asked.space_group not in (None, ANY):
            group = read_space_group(asked.space_group)
        if asked.crystal_system is not None:
            system = read_crystal_system(asked.crystal_system)
    except ValueError as error:
        raise UserError(f"{asked}: {error}") from error
    numbers = space_group_numbers(dataset, whole=True)
    fits = np.isfinite(numbers)
    if group is not None:
        fits &= numbers == group
    if system is not None:
        fits &= crystal_systems(numbers) == system
    if asked.composition is None and asked.chemical_system is None:
        return fits
    crystals = dataset.crystals
    keys = formula_keys(np.where(crystals.mask, crystals.atom_types, 0))
    if asked.composition is not None:
        atoms, _ = parse_composition(asked.composition)
        wanted = sorted(formula_key(_numbers(atoms.items()))[1::2])
        return fits & np.array([sorted(key[1::2]) == wanted for key in keys])
    size = len(parse_chemical_system(asked.chemical_system))
    return fits & np.array([len(key) == 2 * size for key in keys])


def _numbers(atoms) -> list[int]:
    return [element.Z for element, amount in atoms for _ in range(round(amount))]


def _elements(seed: np.ndarray, types: np.ndarray, asked: AskedSymmetry) -> np.ndarray:
    """The elements asked for in the places of a template's: [B, N], 0 for any."""
    if asked.composition is not None:
        atoms, _ = parse_composition(asked.composition)
        amounts = {element.Z: amount for element, amount in atoms.items()}
    elif asked.chemical_system is not None:
        symbols = sorted(parse_chemical_system(asked.chemical_system))
        amounts = {Element(symbol).Z: 0 for symbol in symbols}
    else:
        return np.zeros_like(types)
    elements = np.zeros_like(types)
    for i, row in enumerate(types):
        mixed = np.random.default_rng([*seed, i]).permutation(list(amounts))
        old, old_amounts = np.unique(row[row > 0], return_counts=True)
        if asked.composition is not None:  # the rarest in the rarest's place
            old = old[np.argsort(old_amounts, kind="stable")]
            mixed = sorted(mixed, key=lambda number: amounts[number])
        for present, wanted in zip(old, mixed, strict=True):
            elements[i, row == present] = wanted
    return elements


def _sites(crystals, asked: AskedSymmetry) -> list[Sites]:
    """Of crystals, found in worker processes."""
    cells = [cell_of(structure) for structure in to_structures(crystals)]
    with WorkerPool(time_limit=TIME_LIMIT) as pool:
        outcomes = pool.map(symmetric_sites, cells)
    for outcome in outcomes:
        if outcome.status != Status.OK:
            raise UserError(
                f"{asked}: the symmetry of a crystal of the data set cannot be told "
                f"({outcome.message}); give another --dataset"
            )
    return [outcome.value for outcome in outcomes]


def _padded(sites: list[Sites], elements: np.ndarray) -> SymmetryTemplate:
    """Templates of crystals with these sites and elements [B, N]."""
    size, width = elements.shape
    order = max(len(own.rotations) for own in sites)
    coords = np.zeros((size, width, 3), np.float32)
    rotations = np.zeros((size, order, 3, 3), np.int8)
    images = np.broadcast_to(np.arange(width, dtype=np.int8), (size, order, width))
    images = images.copy()  # padding stays where it is
    for i, own in enumerate(sites):
        count, atoms = own.images.shape
        coords[i, :atoms] = own.frac_coords
        rotations[i, :count] = own.rotations
        images[i, :count, :atoms] = own.images
    return SymmetryTemplate(coords, rotations, images, elements)

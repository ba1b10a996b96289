"""One crystal of a file, or why there is none."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from pymatgen.core import DummySpecies, Lattice, Structure

from chemeleon_jax.data.crystals import SYMBOLS
from chemeleon_jax.errors import one_line, printable

MAX_PROBLEM = 200  # characters


class Item(NamedTuple):
    """One crystal of a file, or why there is none."""

    structure: Structure | None
    problem: str = ""
    name: str = ""  # of the file, its record, or its material


def unreadable(reason, name: str = "") -> Item:
    """An item without a crystal, for a reason on one line."""
    return Item(None, f"unreadable: {one_line(reason)}"[:MAX_PROBLEM], printable(name))


def parse(read: Callable[[], Structure | Item], name: str = "") -> Item:
    """The crystal that `read()` gives, or what is wrong with it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the parsers, about roundings
            found = read()
            item = found if isinstance(found, Item) else checked(found)
    except Exception as error:  # parsers raise anything on damaged text
        reason = f"{type(error).__name__}: {error}" if str(error) else repr(error)
        item = unreadable(str(error) if type(error) is ValueError else reason)
    return item._replace(name=printable(item.name or name))


def checked(structure: Structure) -> Item:
    """The crystal as atoms in a cell, if it is one.

    Oxidation states and properties are left out, isotopes are their element, and the
    cell is periodic.
    """
    if not len(structure):
        return unreadable("no atoms")
    if not structure.is_ordered:
        return unreadable("disordered")
    species = [site.specie for site in structure]
    if any(isinstance(s, DummySpecies) or s.Z not in range(1, 119) for s in species):
        return unreadable("an unknown element")
    matrix = structure.lattice.matrix
    if not np.isfinite(np.concatenate([matrix, structure.frac_coords])).all():
        return Item(None, "non_finite")
    symbols = [SYMBOLS[s.Z - 1] for s in species]
    return Item(Structure(Lattice(matrix), symbols, structure.frac_coords))

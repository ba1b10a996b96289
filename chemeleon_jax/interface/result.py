"""What the functions for Python take and return."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd
from pymatgen.core import Structure

from chemeleon_jax.data.crystals import VALIDITY_REASONS
from chemeleon_jax.data.readers.item import Item, checked, parse, unreadable
from chemeleon_jax.errors import UserError
from chemeleon_jax.evaluation.inputs import of_possible_size, warn_of_unreadable


class Crystals(NamedTuple):
    """Crystals, and a table with a row for each, in their order."""

    structures: list[Structure | None]  # None: numbers that make no crystal
    table: pd.DataFrame


def items_of(structures: Crystals | Sequence[Structure | None]) -> list[Item]:
    """Structures as the programs read them from files; what is none says why.

    Raises:
      UserError: there is no structure, or no list of them.
    """
    reasons: Sequence[str] = ()
    if isinstance(structures, Crystals):
        reasons = list(structures.table.get("reason", ()))
        structures = structures.structures
    if isinstance(structures, Structure):
        raise UserError("structures: a list of pymatgen structures, not one of them")
    others = str, bytes, Mapping, pd.DataFrame
    named = isinstance(structures, tuple) and hasattr(structures, "structures")
    if isinstance(structures, others) or named or not isinstance(structures, Iterable):
        kind = type(structures).__name__
        hint = "; give its .structures" if named else ""
        raise UserError(f"structures: a list of pymatgen structures, not {kind}{hint}")
    items = []
    for i, structure in enumerate(structures):
        if structure is None:
            why = reasons[i] if i < len(reasons) else ""
            if why in ("", VALIDITY_REASONS[0]):
                why = "unreadable: no structure"
            items.append(Item(None, why, str(i)))
        elif isinstance(structure, Structure):
            item = parse(lambda s=structure: checked(s), str(i))
            items.append(of_possible_size(item))
        else:
            kind = type(structure).__name__
            items.append(unreadable(f"{kind} is no pymatgen structure", str(i)))
    if not items:
        raise UserError("structures: there are none")
    warn_of_unreadable("structures", items)
    return items

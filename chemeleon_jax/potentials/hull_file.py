"""Hull entries of a user's own: compositions and energies per atom, in a CSV file."""

import csv
import math
import os
from pathlib import Path

import numpy as np
from pymatgen.core import Composition, Element

from chemeleon_jax.errors import UserError
from chemeleon_jax.potentials.hull import NUM_ELEMENTS, Hull, check_hull, read_hull
from chemeleon_jax.potentials.types import Potential
from chemeleon_jax.runs.files import user_path

COLUMNS = ("composition", "energy_per_atom")
_NAMED = 5  # bad rows that an error names
_MAX_ATOMS = 10**6  # of an element in a formula


def read_hull_file(path: str | os.PathLike, potential: Potential) -> Hull:
    """Reads hull entries: CSV, or npz as `hull.save_hull` writes it.

    The CSV has a column `composition`, a formula of whole numbers of atoms such as
    Na2O, and a column `energy_per_atom`, eV; others are ignored. Entries of the same
    composition may repeat, the lowest counts.

    Args:
      path: the file.
      potential: that the energies have to be of. A CSV file cannot tell.

    Raises:
      UserError: there is no such file or column, its energies are another potential's,
        or rows cannot be read. One left out would change the hull unseen.
    """
    path = user_path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file of hull entries")
    if path.suffix == ".npz":
        return check_hull(read_hull(path), potential, path)
    return _read_csv(path)


def _read_csv(path: Path) -> Hull:
    counts, energies, bad = [], [], []
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        rows = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
        if missing:
            raise UserError(
                f"{path} has no column {missing[0]!r}: hull entries are CSV, with "
                f"the columns {' and '.join(COLUMNS)} (eV)"
            )
        for number, row in enumerate(rows, 1):
            try:
                counts.append(_atoms(row["composition"]))
                energies.append(_energy(row["energy_per_atom"]))
            except ValueError as error:
                bad.append(f"row {number}: {error}")
    if bad:
        more = f"; and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        raise UserError(f"{path}: {'; '.join(bad[:_NAMED])}{more}")
    if not counts:
        raise UserError(f"{path}: holds no hull entry")
    return Hull(np.array(counts), energies)


def _atoms(formula: str | None) -> np.ndarray:
    """Atoms of each element, [118]."""
    problem = f"{formula!r} is no formula of whole numbers of atoms, such as Na2O"
    try:
        amounts = dict(Composition(formula or "").items())
    except ValueError:
        raise ValueError(problem) from None
    counts = np.zeros(NUM_ELEMENTS, np.int64)
    for element, amount in amounts.items():
        # Composition makes a dummy of a symbol that it does not know.
        known = isinstance(element, Element) and 0 < amount < _MAX_ATOMS
        if not known or amount != round(amount):
            raise ValueError(problem)
        counts[element.Z - 1] = round(amount)
    return counts


def _energy(text: str | None) -> float:
    """EV per atom."""
    try:
        energy = float(text or "")
    except ValueError:
        energy = math.nan
    if not math.isfinite(energy):
        raise ValueError(f"energy_per_atom {text!r} is no number")
    return energy

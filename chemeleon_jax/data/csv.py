"""Chemeleon2-style CSV files: their rows as structures and labels."""

import csv
import io
import os
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
from pymatgen.core import Structure

from chemeleon_jax.data.crystals import (
    VALIDITY_REASONS,
    from_structures,
    niggli_reduce,
    validity,
)
from chemeleon_jax.errors import UserError

POOL_THRESHOLD = 2000  # rows from which worker processes pay off
RESERVED_COLUMNS = ("material_id", "cif", "split")
SPLITS = ("train", "validation", "test")
SPLIT_CODES = {name: code for code, name in enumerate(SPLITS)} | {"val": 1}


@dataclass(frozen=True)
class SkippedRow:
    """A row of a CSV file that gave no crystal."""

    row: int  # 1 is the first row below the header
    material_id: str
    reason: str


class Table(NamedTuple):
    """What a file holds: M crystals, and the rows that gave none."""

    structures: list[Structure]
    labels: dict[str, np.ndarray]  # [M] float32, NaN where missing
    material_ids: list[str]
    split: list[int] | None  # indices into SPLITS; None without that column
    skipped: tuple[SkippedRow, ...]


def read_table(path: os.PathLike, content: bytes, max_atoms: int) -> Table:
    """Reads what `dataset.load_csv` describes.

    Args:
      path: of the file, for messages.
      content: of the file.
      max_atoms: crystals with more atoms are skipped.

    Raises:
      UserError: there is no `cif` column, or no row gives a crystal.
    """
    text = content.decode("utf-8-sig", errors="replace")
    csv.field_size_limit(2**31 - 1)  # a CIF can be longer than the default 128 kB
    reader = csv.DictReader(io.StringIO(text, newline=""))  # any system's line ends
    columns = [c for c in reader.fieldnames or [] if c]
    if "cif" not in columns:
        raise UserError(
            f"{path} has no column 'cif', which holds the crystals as CIF text. "
            f"Its columns: {', '.join(columns) or 'none'}"
        )
    rows = list(reader)
    ids = [row.get("material_id") or f"row-{i}" for i, row in enumerate(rows, 1)]
    good, structures, skipped = [], [], []
    results = _parse_all([row["cif"] for row in rows], max_atoms)
    for i, (row, result) in enumerate(zip(rows, results, strict=True)):
        if row.get("split", "train") not in SPLIT_CODES:
            result = f"split is {row['split']!r}, not one of {', '.join(SPLIT_CODES)}"
        if isinstance(result, str):
            skipped.append(SkippedRow(i + 1, ids[i], result))
        else:
            good.append(i)
            structures.append(result)
    if not good:
        why = f"; the first: {skipped[0].reason}" if skipped else ""
        raise UserError(f"{path}: none of its {len(rows)} rows gives a crystal{why}")
    rows = [rows[i] for i in good]
    split = [SPLIT_CODES[row["split"]] for row in rows] if "split" in columns else None
    labels = _numeric_columns(rows, [c for c in columns if c not in RESERVED_COLUMNS])
    return Table(structures, labels, [ids[i] for i in good], split, tuple(skipped))


def parse_cif(cif: str, max_atoms: int) -> Structure | str:
    """A CIF's Niggli-reduced crystal, or in words why it gives none."""
    if not (cif or "").strip():
        return "empty cif"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            structure = Structure.from_str(cif, fmt="cif")
            if not structure.is_ordered:
                return "disordered: a site holds more than one element"
            if len(structure) > max_atoms:
                return f"{len(structure)} atoms, more than max_atoms={max_atoms}"
            structure = niggli_reduce(structure)
            found = from_structures([structure], max_atoms)
    except Exception as error:  # a CIF parser can fail in any way; the row is named
        return f"{type(error).__name__}: {error}".splitlines()[0]
    code = validity(found)[0]
    return structure if code == 0 else f"invalid crystal ({VALIDITY_REASONS[code]})"


def _parse_all(cifs: list[str], max_atoms: int) -> list[Structure | str]:
    if len(cifs) < POOL_THRESHOLD:
        return [parse_cif(cif, max_atoms) for cif in cifs]
    # spawn: JAX has threads, which a fork would not survive
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        return list(pool.map(parse_cif, cifs, repeat(max_atoms), chunksize=100))


def _numeric_columns(rows: list[dict], names: list[str]) -> dict[str, np.ndarray]:
    """Columns that hold a number in some row; text in a numeric column is NaN."""

    def number(text) -> float:
        try:
            return float(text)
        except (TypeError, ValueError):
            return np.nan

    labels = {n: np.array([number(row[n]) for row in rows], "f4") for n in names}
    return {name: v for name, v in labels.items() if np.isfinite(v).any()}

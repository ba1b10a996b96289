"""Chemeleon2-style CSV files: their rows as structures and labels."""

import io
import math
import os
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple

import numpy as np
import pandas as pd
from pymatgen.core import Structure

from chemeleon_jax.data.crystals import (
    VALIDITY_REASONS,
    from_structures,
    niggli_reduce,
    validity,
)
from chemeleon_jax.data.readers.cif import read_structure
from chemeleon_jax.data.readers.content import to_text
from chemeleon_jax.data.readers.records import read_rows
from chemeleon_jax.errors import UserError, one_line
from chemeleon_jax.workers.pool import WorkerContext

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
    bad_labels: dict[str, str]  # of columns: the first value that is no number


def read_table(path: os.PathLike, content: bytes, max_atoms: int) -> Table:
    """Reads what `dataset.load_csv` describes, from the content of the file `path`.

    Raises:
      UserError: there is no `cif` column, or no row gives a crystal.
    """
    columns, rows = _read_rows(path, content)
    if "cif" not in columns:
        raise UserError(
            f"{path} has no column 'cif', which holds the crystals as CIF text. "
            f"Its columns: {one_line(', '.join(columns))[:200] or 'none'}"
        )
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
    numbers = [i + 1 for i in good]
    rows = [rows[i] for i in good]
    split = [SPLIT_CODES[row["split"]] for row in rows] if "split" in columns else None
    labels, bad_labels = {}, {}
    for name in columns:
        if name in RESERVED_COLUMNS:
            continue
        values = [_number(row[name]) for row in rows]
        if any(math.isfinite(value) for value in values):
            labels[name] = _float32(values)
        bad = [(n, row[name]) for n, row in zip(numbers, rows, strict=True)]
        bad = [(n, text) for n, text in bad if not _is_label(text)]
        if bad:
            row, text = bad[0]
            bad_labels[name] = f"row {row} ({ids[row - 1]}): {one_line(text)[:40]!r}"
    ids = [ids[i] for i in good]
    return Table(structures, labels, ids, split, tuple(skipped), bad_labels)


def _read_rows(path, content: bytes) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and rows of a table, as text.

    Raises:
      UserError: it is no table.
    """
    if content.startswith(b"PAR1"):
        try:
            table = pd.read_parquet(io.BytesIO(content))
        except ImportError as error:
            raise UserError(
                f"{path}: Parquet is read by pyarrow: install it, or write CSV"
            ) from error
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: damaged ({one_line(error)})") from error
        table = table.astype(object).where(table.notna(), "").astype(str)
        return list(map(str, table.columns)), table.to_dict("records")
    return read_rows(to_text(content, str(path)), str(path))


def parse_cif(cif: str, max_atoms: int) -> Structure | str:
    """A CIF's Niggli-reduced crystal, or in words why it gives none."""
    if not (cif or "").strip():
        return "empty cif"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            structure = read_structure(cif)
            if not structure.is_ordered:
                return "disordered: a site holds more than one element"
            if len(structure) > max_atoms:
                return f"{len(structure)} atoms, more than max_atoms={max_atoms}"
            structure = niggli_reduce(structure)
            found = from_structures([structure], max_atoms)
    except Exception as error:  # a CIF parser can fail in any way; the row is named
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        return one_line(f"{kind}{error}")[:200]
    code = validity(found)[0]
    return structure if code == 0 else f"invalid crystal ({VALIDITY_REASONS[code]})"


def _parse_all(cifs: list[str], max_atoms: int) -> list[Structure | str]:
    if len(cifs) < POOL_THRESHOLD:
        return [parse_cif(cif, max_atoms) for cif in cifs]
    with ProcessPoolExecutor(mp_context=WorkerContext()) as pool:
        return list(pool.map(parse_cif, cifs, repeat(max_atoms), chunksize=100))


MISSING = ("", "-", "na", "n/a", "nan", "none", "null", "<na>", "?")  # in lower case


def _number(text: str | None) -> float:
    """The number that a cell holds; NaN where it is missing or none."""
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _is_label(text: str | None) -> bool:
    """Whether a cell holds a finite float32, or says that there is none."""
    missing = (text or "").strip().lower() in MISSING
    return missing or bool(np.isfinite(_float32(_number(text))))


def _float32(values) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.array(values, np.float32)

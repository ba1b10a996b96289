"""Chemeleon2-style CSV files -> Dataset: parsing, skipping bad rows, caching."""

import csv
import hashlib
import io
import logging
import os
import warnings
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from pymatgen.core import Structure

from chemeleon_jax.data.crystals import (
    VALIDITY_REASONS,
    from_structures,
    niggli_reduce,
    validity,
)
from chemeleon_jax.data.dataset import (
    SPLITS,
    Dataset,
    SkippedRow,
    load_npz,
    save_npz,
    split_by_chemical_system,
)
from chemeleon_jax.errors import UserError
from chemeleon_jax.runs.files import cache_folder, replacing

logger = logging.getLogger(__name__)

CSV_READER_VERSION = 1  # raise when the reader's result changes: caches go stale
POOL_THRESHOLD = 2000  # rows from which worker processes pay off
RESERVED_COLUMNS = ("material_id", "cif", "split")
SPLIT_CODES = {name: code for code, name in enumerate(SPLITS)} | {"val": 1}


def load_csv(
    path: str | os.PathLike, *, max_atoms: int = 20, cache_dir: str | None = None
) -> Dataset:
    """Reads a Chemeleon2-style CSV: `material_id`, `cif`, numeric property columns.

    Every crystal is Niggli-reduced and rebuilt from its cell parameters. An optional
    `split` column holds "train", "validation" (or "val") or "test"; without it the
    split is drawn by chemical system. A row that gives no crystal is skipped, counted
    and named in `Dataset.skipped` and in a warning.

    Args:
      path: the file; a missing `material_id` column is replaced by row numbers.
      max_atoms: crystals with more atoms are skipped.
      cache_dir: see `load_dataset`. The cache is keyed by the file's content.

    Raises:
      UserError: there is no `cif` column, or no row gives a crystal.
    """
    path = Path(path)
    content = path.read_bytes()
    version = f"{CSV_READER_VERSION} {max_atoms} ".encode()
    key = hashlib.sha256(version + content).hexdigest()[:16]
    cache = _cache_folder(path, cache_dir) / f"{path.stem}-{key}.npz"
    if cache.exists():
        dataset = load_npz(cache)
    else:
        dataset = _parse_csv(
            path, content.decode("utf-8-sig", errors="replace"), max_atoms
        )
        with replacing(cache) as temporary:
            save_npz(temporary, dataset)
    if dataset.skipped:
        first = "; ".join(
            f"row {s.row} ({s.material_id}): {s.reason}" for s in dataset.skipped[:5]
        )
        total = len(dataset) + len(dataset.skipped)
        logger.warning(
            "%s: skipped %d of %d rows: %s%s",
            *(path, len(dataset.skipped), total, first),
            "; ..." if len(dataset.skipped) > 5 else "",
        )
    return dataset


def _parse_csv(path: Path, text: str, max_atoms: int) -> Dataset:
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
    kept, structures, skipped = [], [], []
    results = _parse_all([row["cif"] for row in rows], max_atoms)
    for i, (row, result) in enumerate(zip(rows, results, strict=True)):
        if row.get("split", "train") not in SPLIT_CODES:
            result = f"split is {row['split']!r}, not one of {', '.join(SPLIT_CODES)}"
        if isinstance(result, str):
            skipped.append(SkippedRow(i + 1, ids[i], result))
        else:
            kept.append(i)
            structures.append(result)
    if not kept:
        why = f"; the first: {skipped[0].reason}" if skipped else ""
        raise UserError(f"{path}: none of its {len(rows)} rows gives a crystal{why}")
    rows = [rows[i] for i in kept]
    crystals = from_structures(structures, max_atoms)
    if "split" in columns:
        split = np.array([SPLIT_CODES[row["split"]] for row in rows], np.int8)
    else:
        split = split_by_chemical_system(crystals.atom_types)
    labels = _numeric_columns(rows, [c for c in columns if c not in RESERVED_COLUMNS])
    return Dataset(
        crystals, labels, np.array([ids[i] for i in kept]), split, tuple(skipped)
    )


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


def _cache_folder(path: Path, cache_dir: str | None) -> Path:
    if cache_dir is not None:
        return Path(cache_dir)
    if os.access(path.parent, os.W_OK):
        return path.parent
    return cache_folder()

"""JSON, JSON lines and tables: records that hold a structure each."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from pymatgen.core import Structure

from chemeleon_jax.data.crystals import VALIDITY_REASONS, read_structure
from chemeleon_jax.data.readers import cif
from chemeleon_jax.data.readers.item import Item, checked, parse, unreadable
from chemeleon_jax.errors import UserError, one_line

# Where a record has its crystal, if not under a name of its own; the first wins.
STRUCTURE_KEYS = ("structure", "cif", "relaxed_structure", "final_structure")
STRUCTURE_KEYS += ("initial_structure", "cif_string", "crystal")
NAME_KEYS = ("material_id", "mp_id", "entry_id", "id", "name", "index")
LIST_KEYS = ("structures", "crystals", "data", "entries", "materials")  # of a file
EXPECTED = (
    "expected pymatgen structures (as_dict), CIF text, or records that have one under "
    "'structure' or 'cif': a list of them, a mapping of names to them, or one a line"
)


def read_json(text: str, name: str) -> list[Item]:
    """The crystals of a JSON file's text.

    Those without a name of their own are `name:1`, `name:2` and so on.

    Raises:
      UserError: it is no JSON, or nothing in it is a crystal.
    """
    try:
        value = _loads(text)
    except ValueError as error:
        first = next((line for line in text.split("\n") if line.strip()), "")
        if _is_json(first):  # a value per line, under the wrong suffix
            return read_json_lines(text, name)
        raise UserError(f"{name}: not JSON ({one_line(error)})") from error
    return _read_all(list(_records(value, name)), name, value)


def read_json_lines(text: str, name: str) -> list[Item]:
    r"""The crystals of a file with a JSON value in each line, which ends at \n.

    Raises:
      UserError: nothing in it is a crystal.
    """
    lines = [line for line in text.split("\n") if line.strip()]
    if lines and not _is_json(lines[0]) and _is_json(text):
        return read_json(text, name)  # one value, over several lines
    records = []
    for line in lines:
        try:
            records.append(("", _loads(line)))
        except ValueError as error:
            records.append(("", unreadable(f"not JSON ({error})")))
    return _read_all(records, name, [value for _, value in records])


def read_table(text: str, name: str) -> list[Item]:
    """The crystals of a CSV file, one per row.

    Raises:
      UserError: it is no CSV, or none of its columns holds crystals.
    """
    columns, rows = read_rows(text, name)
    if rows and not any(_find(row) for row in rows):
        raise UserError(
            f"{name}: no column holds crystals: expected 'cif' or 'structure', found "
            f"{one_line(', '.join(columns))[:200]}"
        )
    return _read_all([("", row) for row in rows], name, rows)


def read_rows(text: str, name: str) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a CSV file; its separator is what its header has most of.

    Raises:
      UserError: it is no CSV, or two columns have one name.
    """
    csv.field_size_limit(2**31 - 1)  # a CIF can be longer than the default 128 kB
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)
    lines = io.StringIO(text, newline="")
    reader = csv.DictReader(lines, delimiter=separator, strict=True)
    try:
        columns = [column for column in reader.fieldnames or () if column]
        rows = list(reader)
    except csv.Error as error:
        raise UserError(f"{name}: not CSV ({error})") from error
    if len(set(columns)) < len(columns):
        twice = next(c for c in columns if columns.count(c) > 1)
        raise UserError(f"{name}: two columns are called {one_line(twice)!r}")
    return columns, rows


# -------------------------------------------------------------------------- records


def _records(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Names and values of what a JSON file holds.

    Raises:
      UserError: neither a list nor a mapping.
    """
    if isinstance(value, str) and _find(value):
        yield "", value
    elif isinstance(value, list):
        yield from (("", v) for v in value)
    elif not isinstance(value, dict):
        raise UserError(f"{name}: holds {_describe(value)}; {EXPECTED}")
    elif _is_structure(value):
        yield "", value
    elif columns := _table(value):
        yield from columns
    elif len(keys := [k for k in LIST_KEYS if isinstance(value.get(k), list)]) == 1:
        yield from (("", v) for v in value[keys[0]])
    elif len(inner := [k for k in LIST_KEYS if isinstance(value.get(k), dict)]) == 1:
        yield from _records(value[inner[0]], name)
    elif any(key in value for key in STRUCTURE_KEYS):
        yield "", value
    else:
        yield from value.items()


def _table(value: dict) -> list[tuple[str, dict]]:
    """Rows of what pandas writes: {column: {row: value}}, or columns beside data."""
    if isinstance(value.get("columns"), list) and isinstance(value.get("data"), list):
        rows = [r for r in value["data"] if isinstance(r, list)]
        return [("", dict(zip(value["columns"], r, strict=False))) for r in rows]
    column = next((k for k in STRUCTURE_KEYS if isinstance(value.get(k), dict)), None)
    if column is None or _find({column: value[column]}):
        return []
    columns = {k: v for k, v in value.items() if isinstance(v, dict)}
    return [
        (str(row), {k: v[row] for k, v in columns.items() if row in v})
        for row in value[column]
    ]


def _read_all(records: list[tuple[str, Any]], name: str, whole: Any) -> list[Item]:
    """An item per record, if any is one at all."""
    items = []
    for i, (key, value) in enumerate(records, 1):
        named = _name(value) or key or (f"{name}:{i}" if len(records) > 1 else name)
        if isinstance(value, Item):
            items.append(value._replace(name=named))
        else:
            items.append(parse(lambda v=value: _read(v), named))
    if items and not any(_is_record(value) for _, value in records):
        raise UserError(f"{name}: holds {_describe(whole)}; {EXPECTED}")
    return items


def _read(value: Any) -> Structure | Item:
    """The crystal of a record, or a line of ours, which has a reason instead."""
    if not isinstance(value, str | dict):
        return unreadable(f"{_describe(value)}, not a structure")
    if isinstance(value, dict) and value.get("structure", 0) is None:
        reason = one_line(value.get("reason") or "")
        if reason in ("", VALIDITY_REASONS[0]):
            reason = "unreadable: no structure"
        return Item(None, reason)
    found = _find(value)
    if found is None:
        return unreadable(f"{_describe(value)}, not a structure")
    if isinstance(found, dict):
        return checked(read_structure(found))
    if found.lstrip().startswith("{"):
        return checked(read_structure(_loads(found)))
    items = cif.read_cif(found, "")
    if len(items) > 1:
        return unreadable(f"a CIF of {len(items)} crystals in one record")
    return items[0]


def _find(value: Any) -> Any:
    """What of a record is its crystal: a mapping or text; None if nothing is."""
    if isinstance(value, str):
        start = value.lstrip()[:1]
        return value if start == "{" or cif.split_blocks(value) else None
    if not isinstance(value, dict):
        return None
    if _is_structure(value):
        return value
    for key in STRUCTURE_KEYS:
        inner = value.get(key)
        if inner is None:
            continue
        if _is_structure(inner) or (isinstance(inner, str) and inner.strip()):
            return inner
    others = [v for v in value.values() if _is_structure(v)]
    return others[0] if len(others) == 1 else None


def _is_structure(value: Any) -> bool:
    return isinstance(value, dict) and "lattice" in value and "sites" in value


def _is_record(value: Any) -> bool:
    """Whether it is a crystal, or says that it is none."""
    if isinstance(value, dict) and "structure" in value:
        return True
    return isinstance(value, Item) or _find(value) is not None


def _name(value: Any) -> str:
    if not isinstance(value, dict):
        return ""
    for key in NAME_KEYS:
        if isinstance(value.get(key), str | int) and str(value[key]).strip():
            return one_line(value[key])
    return ""


def _describe(value: Any) -> str:
    """What was found, in a few words."""
    if isinstance(value, dict):
        keys = ", ".join(repr(k) for k in list(value)[:5])
        return one_line(f"a mapping with {keys or 'nothing'}")[:100]
    if isinstance(value, list):
        first = f" of {len(value)}, the first {_describe(value[0])}" if value else ""
        return one_line(f"a list{first}")[:150]
    return one_line(repr(value))[:60]


# ----------------------------------------------------------------------------- JSON


def _loads(text: str) -> Any:
    """JSON in which no key stands twice, which would hide a crystal.

    Raises:
      ValueError: it is none.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one mapping")
    return unique


def _is_json(text: str) -> bool:
    try:
        _loads(text)
    except ValueError:
        return False
    return True

"""Structures screened: `screen`."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from pymatgen.core import Structure

from chemeleon_jax.data.crystals import read_structure
from chemeleon_jax.evaluation.inputs import known_of, load_reference
from chemeleon_jax.interface.result import Crystals, items_of
from chemeleon_jax.screening.results import (
    ALL_COLUMNS,
    candidate_table,
    distance_columns,
)
from chemeleon_jax.screening.steps import screen_items
from chemeleon_jax.screening.terms import ScreeningTerms


class Screening(NamedTuple):
    """The candidates, as `candidates.csv` has them, and what became of the others."""

    structures: list[Structure]  # primitive cells of the candidates, best first
    table: pd.DataFrame  # a row for each of them
    all: pd.DataFrame  # a row for each crystal: how far it came, and why no further
    summary: dict[str, Any]  # protocol, funnel


def screen(
    structures: Crystals | Sequence[Structure | None],
    *,
    reference: str | Path | Sequence[Structure] = "mp_mini",
    **terms: Any,
) -> Screening:
    """Screens crystals as `python -m chemeleon_jax.screen` does; leaves no files.

    Args:
      structures: of any generator, or what `sample` or `relax` returned.
      reference: known crystals: "mp_mini", a folder or file, or structures.
      **terms: the program's flags, see `ScreeningTerms`: `potential`, `num_candidates`,
        `max_e_above_hull`, `keep_known` and so on.

    Raises:
      UserError: a value is out of range, or a file cannot be read. A crystal raises
        none.
      TypeError: an unknown flag.
    """
    given = not isinstance(reference, str | Path)
    name = "structures" if given else str(reference)
    asked = ScreeningTerms(reference=name, **terms)
    items = items_of(structures)
    known = known_of(items_of(reference), name) if given else load_reference(name)
    with tempfile.TemporaryDirectory() as folder:
        rows, candidates, summary = screen_items(items, asked, known, Path(folder))
    judges = list(summary["protocol"]["potentials"])
    columns = [*ALL_COLUMNS, *distance_columns(judges)]
    return Screening(
        [read_structure(record["primitive"]) for record in candidates],
        candidate_table(candidates, judges),
        pd.DataFrame(rows, columns=columns),
        summary,
    )

"""The steps of a screening, each kept on disk, so that one cut off goes on."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from pymatgen.core import Structure

from chemeleon_jax.data.crystals import from_structures, read_structure
from chemeleon_jax.data.dataset import Dataset
from chemeleon_jax.data.readers.item import Item
from chemeleon_jax.evaluation import opinions
from chemeleon_jax.evaluation.judge import (
    EvaluationContext,
    Row,
    find_energies,
    judge_chunk,
    judge_set,
)
from chemeleon_jax.evaluation.partial import in_chunks, prepare_partial
from chemeleon_jax.evaluation.terms import TIME_LIMIT, load_judges, make_context
from chemeleon_jax.potentials.types import Potential
from chemeleon_jax.rewards.matches import match_references
from chemeleon_jax.screening import sieve, stability
from chemeleon_jax.screening.descent import MAX_DESCENTS, descend_all
from chemeleon_jax.screening.known import nearest_known
from chemeleon_jax.screening.symmetry import symmetrise_all
from chemeleon_jax.screening.terms import ScreeningTerms, load_stability
from chemeleon_jax.workers.matching import cell_of
from chemeleon_jax.workers.outcome import Outcome, Status
from chemeleon_jax.workers.pool import WorkerPool

CHUNK = 64  # crystals of up to 20 atoms judged, and kept on disk, at once
NEW = Outcome(Status.OK, False)  # matches no known crystal
EXAMINED = 8  # crystals whose stability is looked at, likewise


class Screened(NamedTuple):
    """What a screening found."""

    rows: list[Row]  # of all crystals
    candidates: list[Row]  # those of them that passed, best first
    summary: dict[str, Any]  # protocol, counts


def screen_items(
    items: list[Item], terms: ScreeningTerms, dataset: Dataset, folder: Path
) -> Screened:
    """Takes crystals through the steps.

    Args:
      items: crystals as they were read.
      terms: what is asked of them.
      dataset: the known crystals.
      folder: where finished work is kept; the same terms and crystals go on from it.
    """
    with WorkerPool(terms.workers, time_limit=TIME_LIMIT) as pool:
        judges = load_judges(terms.judging, dataset)
        steadier, note = load_stability(terms.stability_with)
        inputs = terms.describe_inputs(dataset, judges)
        context = make_context(terms.judging, dataset, None, judges, pool, items)
        chunk = max(CHUNK * 20 // context.width, 1)
        context = dataclasses.replace(context, chunk=chunk)
        prepare_partial(folder, items, inputs)

        rows = look_first(items, pool, folder)
        judge(rows, items, context, folder)
        for row in open_rows(rows):
            found = sieve.second_look(row, list(judges), terms.limits)
            row["reason"], row["detail"] = found
        ranked = sorted(open_rows(rows), key=lambda row: row["e_above_hull:mean"])
        candidates = examine(ranked, context, steadier, terms, folder)
        describe(candidates, judges, dataset)
    protocol = inputs | terms.describe_rest()
    notes = [note] if note else []
    return Screened(rows, candidates, summarise(rows, candidates, protocol, notes))


def look_first(items: list[Item], pool: WorkerPool, folder: Path) -> list[Row]:
    """A row for each crystal; those that are impossible or twice there are dropped."""
    found = in_chunks(
        folder / "first_look",
        items,
        partial(sieve.first_look, pool=pool),
        size=len(items),
        title="validity, copies",
    )
    return [
        {
            "index": i,
            "name": item.name,
            "formula": formula_of(item.structure),
            "num_atoms": len(item.structure or ()),
            "stage": "read",
            **look,
        }
        for i, (item, look) in enumerate(zip(items, found, strict=True))
    ]


def formula_of(structure: Structure | None) -> str:
    """Reduced, "" without a crystal."""
    return structure.composition.reduced_formula if structure else ""


def open_rows(rows: list[Row]) -> list[Row]:
    """Those that were not dropped."""
    return [row for row in rows if not row["reason"]]


def judge(
    rows: list[Row], items: list[Item], context: EvaluationContext, folder: Path
) -> None:
    """Relaxes what is left, and adds to its rows what the potentials say."""
    left, judges = open_rows(rows), list(context.judges)
    found = in_chunks(
        folder / "judged",
        [items[row["index"]] for row in left],
        lambda some: judge_chunk(some, [True] * len(some), context),
        size=context.chunk,
        title="relaxation, energies",
    )
    judge_set(found, context.pool)
    add_opinions(found, judges)
    for row, result in zip(left, found, strict=True):
        row |= {k: v for k, v in result.items() if k != "reason"}
        row |= {"stage": "relaxed", "relaxed_reason": result["reason"]}


def add_opinions(rows: list[Row], judges: list[str]) -> None:
    """As `opinions.add_opinions`, of a single potential too."""
    if len(judges) == 1:
        for row in rows:
            for what in ("energy", "e_above_hull"):
                row[f"{what}:{judges[0]}"] = row.get(what)
    opinions.add_opinions(rows, judges)


def examine(
    ranked: list[Row],
    context: EvaluationContext,
    steadier: Potential | None,
    terms: ScreeningTerms,
    folder: Path,
) -> list[Row]:
    """Symmetry and stability, best first, until as many as are wanted have passed."""
    limits, wanted = terms.limits, terms.num_candidates
    prepare_partial(
        folder / "examined",
        (),
        {
            "ranked": [row["index"] for row in ranked],
            "steadier": steadier and steadier.digest,
            "softness": [limits.min_frequency, limits.min_stiffness],
            "descents": MAX_DESCENTS,
        },
    )
    look = partial(
        sieve.last_look, judges=list(context.judges), limits=limits, pool=context.pool
    )
    records = in_chunks(
        folder / "examined",
        ranked,
        partial(examine_some, context=context, steadier=steadier, limits=limits),
        size=EXAMINED,
        title="symmetry, stability",
        enough=lambda records: sum(not reason for reason, _ in look(records)) >= wanted,
    )
    passed: list[Row] = []
    for row, record, found in zip(ranked, records, look(records), strict=False):
        row |= record | {"stage": "examined"}
        row["reason"], row["detail"] = found
        if not row["reason"] and len(passed) < wanted:
            passed.append(row)
    passed.sort(key=lambda row: row["e_above_hull:mean"])  # some have come lower
    for row in ranked:
        if not row["reason"] and all(row is not other for other in passed):
            row["reason"], row["detail"] = "ranked_lower", ""
    return passed


def examine_some(
    rows: list[Row],
    context: EvaluationContext,
    steadier: Potential | None,
    limits: sieve.Limits,
) -> list[dict]:
    """Symmetry and, with a potential for it, stability of a few crystals.

    Those that are not stable within the limits come with their `descents`. Those of
    them that came to rest lower come with what the potentials say of them there, and
    those that became another crystal on the way with whether this is `new_at_rest`.
    """
    structures = [read_structure(row["structure"]) for row in rows]
    records = symmetrise_all(structures, energies_of(context), context.pool)
    if steadier is None:
        return records
    primitives = [read_structure(record["primitive"]) for record in records]
    settled = stability.settle(primitives, steadier, EXAMINED)
    for record, found in zip(records, settled, strict=True):
        record["stability"] = found.record
    fallen = descend_all(settled, limits, steadier, context.pool, EXAMINED)
    for record, found in zip(records, fallen, strict=True):
        record |= found
    judge_at_rest(rows, records, context)
    others = [r for r in records if sieve.is_another(r["descents"])]
    cells = [cell_of(read_structure(record["primitive"])) for record in others]
    valid = np.ones(len(cells), bool)
    known = match_references(cells, valid, context.references, context.pool).known
    for i, record in enumerate(others):
        record["new_at_rest"] = known.get(i, NEW) == NEW
    return records


def judge_at_rest(
    rows: list[Row], records: list[dict], context: EvaluationContext
) -> None:
    """Adds the potentials' opinions of crystals that came to rest lower than before."""
    lower = [i for i, r in enumerate(records) if sieve.total_drop(r["descents"]) > 0]
    if not lower:
        return
    structures = [read_structure(records[i]["primitive"]) for i in lower]
    # Few shapes, each compiled for a minute: a cell may have doubled on the way.
    width = context.width * -(-max(map(len, structures)) // context.width)
    crystals = from_structures(structures, width, max(context.chunk, EXAMINED))
    flags = ("unique", "novel", "diluted")
    found = [{flag: rows[i][flag] for flag in flags} | {"status": ""} for i in lower]
    find_energies(crystals, np.ones(len(lower), bool), found, context)
    add_opinions(found, list(context.judges))
    for i, opinion in zip(lower, found, strict=True):
        problem = opinion.pop("status")
        records[i] |= opinion | ({"status": f"at rest: {problem}"} if problem else {})


def energies_of(context: EvaluationContext) -> Callable[[list[Structure]], np.ndarray]:
    """Energies in eV/atom by the potential that relaxes; in one shape, compiled."""
    energies = context.energies[context.relaxer]

    def evaluate(structures: list[Structure]) -> np.ndarray:
        found = []
        for start in range(0, len(structures), context.chunk):
            some = structures[start : start + context.chunk]
            batch = from_structures(some, context.width, context.chunk)
            energy, _ = jax.device_get(energies(batch))
            found.append(energy[: len(some)].astype(float))
        return np.concatenate(found) if found else np.zeros(0)

    return evaluate


def describe(candidates: list[Row], judges, dataset: Dataset) -> None:
    """Adds rank, and the known compounds nearest to each candidate."""
    known = nearest_known(
        [read_structure(row["primitive"]) for row in candidates],
        [{name: row[f"energy:{name}"] for name in judges} for row in candidates],
        {name: hull for name, (_, hull) in judges.items()},
        dataset,
    )
    for rank, (row, near) in enumerate(zip(candidates, known, strict=True), 1):
        row |= near | {"rank": rank, "stage": "candidate"}


def summarise(
    rows: list[Row], candidates: list[Row], protocol: dict[str, Any], notes: list[str]
) -> dict[str, Any]:
    """Protocol, counts, and how the candidates stand."""
    return {
        "protocol": protocol,
        "num_crystals": len(rows),
        "num_candidates": len(candidates),
        "funnel": sieve.funnel([row["reason"] for row in rows]),
        "symmetry_problems": dict(
            Counter(problem for row in rows if (problem := row.get("symmetry_problem")))
        ),
        "ranked_by": "e_above_hull:mean, eV/atom, of the potentials",
        "candidates": [
            {"rank": row["rank"], "formula": row["formula"]}
            | {"stability": row.get("stability")}
            for row in candidates
        ],
        "notes": notes,
    }

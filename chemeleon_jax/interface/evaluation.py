"""Structures judged: `evaluate`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from pymatgen.core import Structure

from chemeleon_jax.data.crystals import read_structure
from chemeleon_jax.evaluation.description import describe_protocol
from chemeleon_jax.evaluation.inputs import known_of, load_reference
from chemeleon_jax.evaluation.results import columns_of
from chemeleon_jax.evaluation.scores import features_of_known
from chemeleon_jax.evaluation.sets import judge_items, score_rows
from chemeleon_jax.evaluation.terms import (
    TIME_LIMIT,
    Terms,
    load_judges,
    load_vae,
    make_context,
)
from chemeleon_jax.interface.result import Crystals, items_of
from chemeleon_jax.potentials.relax import MAX_FORCE
from chemeleon_jax.runs.files import user_path
from chemeleon_jax.workers import calculators
from chemeleon_jax.workers.pool import WorkerPool


class Evaluation(NamedTuple):
    """What crystals are worth, as `crystals.csv` and `summary.json` have it."""

    structures: list[Structure | None]  # as they were judged: relaxed
    table: pd.DataFrame  # a row for each
    scores: pd.DataFrame  # value, low, high (95 % interval) of each score
    protocol: dict[str, Any]  # what the numbers depend on


def evaluate(
    structures: Crystals | Sequence[Structure | None],
    *,
    reference: str | Path | Sequence[Structure] = "mp_mini",
    potential: str | None = None,
    hull: str | Path | None = None,
    relax: bool | None = None,
    relax_with: str | None = None,
    relax_steps: int | None = None,
    max_force: float = MAX_FORCE,
    relax_time_limit: float = calculators.TIME_LIMIT,
    vae: str = "mini:vae",
    workers: int | None = None,
    protocol: str = "own",
) -> Evaluation:
    """Judges crystals as `python -m chemeleon_jax.evaluate` does, without files.

    Args:
      structures: of any generator, or what `sample` or `relax` returned.
      reference: known crystals: "mp_mini", a folder or file, or structures.
      potential: that judges; several, the main one first, are split by commas. By
        default "chgnet,sevennet-0:uncorrected"; "none" for no energies.
      hull: a file of entries of the same potential.
      relax: whether crystals are relaxed first; by default where there is a potential.
      relax_with: the potential that relaxes, by default the first.
      relax_steps: energies at most: 100 by default, 200 with an ASE potential.
      max_force: eV/Å, to stop at.
      relax_time_limit: s, for a crystal, with an ASE potential.
      vae: whose features are compared.
      workers: processes; by default as many as CPUs.
      protocol: "lemat" or "mattergen", whose metrics are added.

    Raises:
      UserError: a value is out of range or at odds with another, or a file cannot be
        read. A crystal raises none.
    """
    given = not isinstance(reference, str | Path)
    terms = Terms(
        reference="structures" if given else str(reference),
        potential=potential,
        hull=None if hull is None else user_path(hull),
        relax=relax,
        relax_with=relax_with,
        relax_steps=relax_steps,
        max_force=max_force,
        relax_time_limit=relax_time_limit,
        vae=vae,
        workers=workers,
        protocol=protocol,
    )
    items, network = items_of(structures), load_vae(terms)
    dataset = (
        known_of(items_of(reference), terms.reference)
        if given
        else load_reference(terms.reference)
    )
    judges = load_judges(terms, dataset)
    depends_on = describe_protocol(terms, dataset, network[1], judges)
    with WorkerPool(terms.workers, time_limit=TIME_LIMIT) as pool:
        context = make_context(terms, dataset, network, judges, pool, items)
        rows = judge_items(items, context)
        scores = score_rows(rows, context, features_of_known(network, dataset))
    judged = [row.get("structure") for row in rows]
    return Evaluation(
        [None if s is None else read_structure(s) for s in judged],
        pd.DataFrame(
            [{"index": i} | row for i, row in enumerate(rows)],
            columns=list(columns_of(depends_on)),
        ),
        pd.DataFrame({k: s._asdict() for k, s in scores.items()}).T,
        depends_on,
    )

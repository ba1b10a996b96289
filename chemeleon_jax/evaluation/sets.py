"""A set of crystals: judged in chunks, then as a whole, then scored."""

from collections import Counter

import numpy as np

from chemeleon_jax.data.crystals import formula_key
from chemeleon_jax.data.readers.item import Item
from chemeleon_jax.evaluation import opinions, statistics
from chemeleon_jax.evaluation.judge import (
    EvaluationContext,
    Row,
    judge_chunk,
    judge_set,
)
from chemeleon_jax.evaluation.scores import (
    RESAMPLES,
    SEED,
    score_set,
    score_unrelaxed,
)


def share_formulas(items: list[Item]) -> list[bool]:
    """Whether each crystal shares its reduced formula with another of the set."""
    keys = [
        formula_key(i.structure.atomic_numbers) if i.structure else () for i in items
    ]
    counts = Counter(keys)
    return [counts[key] > 1 for key in keys]


def judge_items(items: list[Item], context: EvaluationContext) -> list[Row]:
    """Rows of all crystals, in this process."""
    shared, rows = share_formulas(items), []
    for start in range(0, len(items), context.chunk):
        part = slice(start, start + context.chunk)
        rows += judge_chunk(items[part], shared[part], context)
    return complete_rows(items, rows, context)


def complete_rows(
    items: list[Item], rows: list[Row], context: EvaluationContext
) -> list[Row]:
    """The rows of `judge_chunk` with what depends on the whole set, and names."""
    judge_set(rows, context.pool)
    if len(context.judges) > 1:
        opinions.add_opinions(rows, list(context.judges))
    if context.protocol:
        context.protocol.finish(rows, context)
    return [{"name": item.name} | r for item, r in zip(items, rows, strict=True)]


def score_rows(
    rows: list[Row], context: EvaluationContext, known: dict[str, np.ndarray]
) -> dict[str, statistics.Score]:
    """Every score of a set; `known`: see `features_of_known`."""
    judges = list(context.judges)
    scores = score_set(rows, context.vae, known, bool(judges))
    draws = statistics.resample(len(rows), RESAMPLES, SEED)
    if len(judges) > 1:
        scores |= opinions.score_opinions(rows, judges, draws)
    if context.relax is not None and context.relaxer in judges:
        scores |= score_unrelaxed(rows, draws)
    if context.protocol:
        scores |= context.protocol.score(rows, context, draws)
    return scores

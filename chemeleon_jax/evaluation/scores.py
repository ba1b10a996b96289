"""What a set of crystals is worth: shares, means, distances, each with an interval."""

from typing import Any

import numpy as np
from pymatgen.core import Composition, Element

from chemeleon_jax.data.dataset import Dataset
from chemeleon_jax.evaluation import statistics
from chemeleon_jax.evaluation.judge import Row
from chemeleon_jax.models.vae import VAE
from chemeleon_jax.rewards.features import (
    NUM_ELEMENTS,
    composition_fractions,
    embedding_root,
    encode_references,
)
from chemeleon_jax.rewards.stability import is_metastable

RESAMPLES, SEED = 1000, 0  # of the bootstrap
SHARES = ("valid", "smact_valid", "unique", "novel", "symmetric", "diluted")
ENERGY_SHARES = ("metastable", "stable", "sun", "msun")
ENERGY_SHARES += ("far_below_hull", "msun_near_hull", "msun_undiluted")


def features_of_known(vae: tuple[VAE, Any], dataset: Dataset) -> dict[str, np.ndarray]:
    """Features of the references: {"structure": [M, L], "composition": [M, 100]}."""
    known = dataset.crystals
    fractions = composition_fractions(known.atom_types, known.mask)
    return {
        "structure": np.asarray(encode_references(*vae, dataset), np.float64),
        "composition": fractions @ embedding_root(*vae),
    }


def score_set(
    rows: list[Row], vae, known: dict[str, np.ndarray], with_energies: bool
) -> dict[str, statistics.Score]:
    """Every score of a set, with its interval."""
    draws = statistics.resample(len(rows), RESAMPLES, SEED)
    shares = SHARES + (ENERGY_SHARES if with_energies else ())
    scores = {
        name: statistics.mean_score(
            np.array([bool(row.get(name)) for row in rows], float), draws
        )
        for name in shares
    }
    if with_energies:
        above = [row.get("e_above_hull") for row in rows]
        above = np.array([np.nan if x is None else x for x in above])
        scores["e_above_hull"] = statistics.mean_score(above, draws)
    elements, prototypes = kinds(rows)
    scores["effective_elements"] = statistics.effective_number(elements, draws)
    scores["effective_prototypes"] = statistics.effective_number(prototypes, draws)
    width = known["structure"].shape[1]
    latents = np.array([row.get("latent", [np.nan] * width) for row in rows])
    fractions = np.full((len(rows), NUM_ELEMENTS), np.nan)
    for i, row in enumerate(rows):
        if row["valid"]:
            types = structure_types(row["structure"])[None]
            fractions[i] = composition_fractions(types, types > 0)[0]
    generated = {"structure": latents, "composition": fractions @ embedding_root(*vae)}
    for name, features in generated.items():
        scores[f"frechet_{name}"] = statistics.frechet_score(
            features, known[name], draws[:200]
        )
    return scores


def score_unrelaxed(rows: list[Row], draws: np.ndarray) -> dict[str, statistics.Score]:
    """What the potential that relaxed crystals says of them as they were.

    Args:
      rows: with `e_above_hull_unrelaxed`, of crystals that have one.
      draws: see `statistics.resample`.
    """
    above = [row.get("e_above_hull_unrelaxed") for row in rows]
    above = np.array([np.nan if x is None else x for x in above])
    metastable = np.array(is_metastable(above), float)
    return {
        "metastable_unrelaxed": statistics.mean_score(metastable, draws),
        "e_above_hull_unrelaxed": statistics.mean_score(above, draws),
    }


def kinds(rows: list[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Which elements, and which prototype, each valid crystal is of.

    A prototype is a formula without the elements' names, and a space group.

    Returns:
      0 or 1, [n, elements] and [n, prototypes]; rows of zeros for invalid crystals.
    """
    elements, prototypes = [], []
    for row in rows:
        composition = Composition(row["formula"] if row["valid"] else {})
        elements.append([element.symbol for element in composition.elements])
        prototype = f"{composition.anonymized_formula} {row.get('space_group')}"
        prototypes.append([prototype] if row["valid"] else [])
    return _incidence(elements), _incidence(prototypes)


def _incidence(labels: list[list[str]]) -> np.ndarray:
    known = {name: i for i, name in enumerate(sorted(set().union(*labels)))}
    table = np.zeros((len(labels), len(known)))
    for row, names in zip(table, labels, strict=True):
        row[[known[name] for name in names]] = 1.0
    return table


def structure_types(structure: dict[str, Any]) -> np.ndarray:
    """Atomic numbers of a structure as a dict, [n]."""
    symbols = [site["species"][0]["element"] for site in structure["sites"]]
    return np.array([Element(symbol).Z for symbol in symbols])

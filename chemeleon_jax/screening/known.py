"""The known compounds nearest to a candidate, by composition and energy. NumPy."""

from collections.abc import Mapping

import numpy as np
from pymatgen.core import Structure

from chemeleon_jax.data.crystals import take, to_structures
from chemeleon_jax.data.dataset import Dataset
from chemeleon_jax.potentials.hull import Hull, composition_counts

NEAREST = 3  # of other formulas, where none has the same


def nearest_known(
    structures: list[Structure],
    energies: list[Mapping[str, float]],
    hulls: Mapping[str, Hull],
    dataset: Dataset,
) -> list[dict]:
    """Of each crystal what is known of its formula, or of those next to it.

    The distance of two compositions is the share of atoms to be exchanged, 0 to 1.

    Args:
      structures: the candidates.
      energies: eV/atom of each, by potential.
      hulls: by potential.
      dataset: the known crystals.

    Returns:
      JSON values: `known` [{id, formula, distance}], nearest first, and
      `above_known`, {potential: eV/atom above the lowest known crystal of the formula},
      empty where there is none.
    """
    counts = composition_counts(dataset.crystals.atom_types)
    fractions = counts / counts.sum(1, keepdims=True)
    found = []
    for structure, own in zip(structures, energies, strict=True):
        types = np.array(structure.atomic_numbers)
        target = composition_counts(types[None])[0] / len(types)
        distance = np.abs(fractions - target).sum(1) / 2
        order = np.argsort(distance, kind="stable")
        same = order[distance[order] < 1e-6]
        rows = same if len(same) else order[:NEAREST]
        near = to_structures(take(dataset.crystals, rows))
        formulas = [s.composition.reduced_formula if s else "" for s in near]
        known = [
            {
                "id": str(dataset.material_ids[row]),
                "formula": formula,
                "distance": round(float(distance[row]), 4),
            }
            for row, formula in zip(rows, formulas, strict=True)
        ]
        above = {}
        for name, hull in hulls.items():
            entry = np.abs(hull.fractions - target).sum(1) < 1e-6
            if entry.any():
                above[name] = own[name] - float(hull.energies[entry].min())
        found.append({"known": known, "above_known": above})
    return found

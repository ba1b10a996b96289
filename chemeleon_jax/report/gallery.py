"""The best crystals of a set: their picture, 3D scene, facts and CIF."""

import base64
import io
import logging
import math
from typing import Any

import numpy as np
import pandas as pd
from pymatgen.core import Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer, SymmetryUndeterminedError

from chemeleon_jax.report.drawing import STICK, color, draw_crystal, make_scene
from chemeleon_jax.report.runs import CrystalSet

logger = logging.getLogger(__name__)

PICTURE = 300  # pixels
BADGES = {
    "sun": "SUN",
    "msun": "MSUN",
    "stable": "stable",
    "metastable": "metastable",
    "novel": "novel",
    "unique": "unique",
}


def best_crystals(crystals: CrystalSet, number: int) -> tuple[list[dict], str]:
    """Cards of the best crystals of a set, and what went wrong with some, or "".

    Valid ones that were drawn are ranked: those that are unique and novel first, by
    energy above the hull; where that is unknown, by reward.
    """
    table = crystals.valid
    table = table[table["index"].isin(crystals.structures)]
    new = pd.Series(True, table.index)
    for flag in ("unique", "novel"):
        if flag in table:
            new &= table[flag]
    order = {"old": ~new}
    if "e_above_hull" in table:
        order["energy"] = table["e_above_hull"].fillna(np.inf)
    if "reward" in table:
        order["cost"] = -table["reward"]
    ranked = pd.DataFrame(order).sort_values(list(order), kind="stable").index
    cards, failures = [], []
    for row in table.loc[ranked].to_dict("records"):
        if len(cards) == number:
            break
        try:
            cards.append(make_card(row, crystals.structures[row["index"]]))
        except (ValueError, ArithmeticError, IndexError, AttributeError) as e:
            failures.append(f"crystal {row['index']} cannot be drawn: {e}")
    if missing := len(crystals.valid) - len(table):
        failures.append(f"valid crystals without a structure: {missing}")
    return cards, "; ".join(failures)


def make_card(row: dict[str, Any], structure: Structure) -> dict[str, Any]:
    """What the page shows of one crystal, as JSON."""
    scene = make_scene(structure)
    balls = np.column_stack([scene.positions, scene.radii])
    stick_of = scene.atomic_numbers[scene.half_of]
    lattice = structure.lattice
    energy = row.get("e_above_hull")
    symbols = {s.specie.Z: s.specie.symbol for s in structure}
    return {
        "index": int(row["index"]),
        "formula": structure.composition.reduced_formula,
        "space_group": space_group(row.get("space_group"), structure),
        "e_above_hull": None if energy is None or math.isnan(energy) else energy,
        "reward": row.get("reward"),
        "num_atoms": len(structure),
        "density": float(structure.density),
        "volume": lattice.volume / len(structure),
        "lengths": list(lattice.lengths),
        "angles": list(lattice.angles),
        "badges": badges(row),
        "picture": thumbnail(structure),
        "cif": structure.to(fmt="cif"),
        "elements": [
            {
                "symbol": symbols[z],
                "color": color(z),
                "balls": _rounded(balls[scene.atomic_numbers == z]),
                "sticks": _rounded(scene.halves[stick_of == z]),
            }
            for z in sorted(symbols)
        ],
        "stick": STICK,
        "edges": _rounded(scene.edges),
    }


def space_group(known: Any, structure: Structure) -> str:
    """The space group of the evaluation, or else spglib's within 0.1 Å."""
    if isinstance(known, str) and known:
        return known
    if isinstance(known, int | float) and not math.isnan(known):
        return f"No. {int(known)}"
    try:
        found = SpacegroupAnalyzer(structure, symprec=0.1)
        return f"{found.get_space_group_symbol()} ({found.get_space_group_number()})"
    except (SymmetryUndeterminedError, TypeError):
        return "unknown"


def badges(row: dict[str, Any]) -> list[str]:
    """The flags of a crystal; a narrower one makes a wider one superfluous."""
    flags = [name for name in BADGES if row.get(name) is True]
    covered = {
        "sun": {"msun", "stable", "metastable", "novel", "unique"},
        "msun": {"metastable", "novel", "unique"},
        "stable": {"metastable"},
    }
    hidden = set().union(*(covered.get(name, set()) for name in flags))
    return [BADGES[name] for name in flags if name not in hidden]


def thumbnail(structure: Structure) -> str:
    """A picture as a data URI."""
    buffer = io.BytesIO()
    draw_crystal(structure, PICTURE).save(buffer, "WEBP", quality=88)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _rounded(x: np.ndarray) -> list:
    return np.round(x, 3).tolist()

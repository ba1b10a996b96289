"""What a validation looks like in TensorBoard: the best crystals, and histograms."""

import time
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pymatgen.core import Structure

from chemeleon_jax.data.crystals import take, to_structures
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.report.drawing import draw_crystal
from chemeleon_jax.rewards import RewardOutput
from chemeleon_jax.runs.tracking import Tracker

COLUMNS = 4
SIZE, CAPTION = 220, 46  # pixels: a crystal's width and height, the text under it


class Scored(NamedTuple):
    """A crystal and what it is worth."""

    structure: Structure
    reward: float
    e_above_hull: float  # eV/atom, or NaN


def log_validation(
    tracker: Tracker,
    step: int,
    crystals: CrystalBatch,
    rewards: RewardOutput,
    num_pictures: int,
) -> None:
    """Writes `val/best_crystals`, histograms `val/distribution/*` and `time/pictures`.

    The best are valid, the first of their kind, and have the highest raw rewards.
    Histograms are of the valid crystals' finite values.
    """
    began = time.perf_counter()
    rows = np.flatnonzero(rewards.valid)
    structures = to_structures(take(crystals, rows))
    known = rewards.e_above_hull
    above = np.full(len(rows), np.nan) if known is None else np.asarray(known)[rows]
    reward = np.asarray(rewards.raw)[rows]
    values = {
        "reward": reward,
        "e_above_hull": above,
        "num_atoms": crystals.mask[rows].sum(-1),
        "density": np.array([s.density for s in structures if s is not None]),
    }
    for name, x in values.items():
        tracker.log_histogram(step, f"val/distribution/{name}", x[np.isfinite(x)])
    unique = np.asarray(rewards.unique)[rows]
    scored = [
        Scored(structures[i], reward[i], above[i])
        for i in np.argsort(-reward)
        if unique[i] and structures[i] is not None
    ]
    if scored[:num_pictures]:
        picture = draw_grid(scored[:num_pictures])
        tracker.log_image(step, "val/best_crystals", picture)
    tracker.log(step, {"time/pictures": time.perf_counter() - began})


def draw_grid(crystals: list[Scored]) -> Image.Image:
    """A picture of crystals in rows, each with its formula and numbers."""
    rows = -(-len(crystals) // COLUMNS)
    grid = Image.new("RGB", (COLUMNS * SIZE, rows * (SIZE + CAPTION)), "white")
    draw = ImageDraw.Draw(grid)
    for i, (structure, reward, e_above_hull) in enumerate(crystals):
        left, top = i % COLUMNS * SIZE, i // COLUMNS * (SIZE + CAPTION)
        crystal = draw_crystal(structure, SIZE)
        grid.paste(crystal, (left, top), crystal)
        numbers = f"reward {reward:.3g}"
        if np.isfinite(e_above_hull):
            numbers += f", {e_above_hull:.2f} eV/atom"
        for text, size, down in (
            (structure.composition.reduced_formula, 15, 12),
            (numbers, 12, 31),
        ):
            draw.text(
                (left + SIZE / 2, top + SIZE + down),
                text,
                "#1d2433",
                ImageFont.load_default(size),
                anchor="mm",
            )
    return grid

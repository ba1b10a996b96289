"""Charts as Plotly traces: curves, scores, distributions, elements."""

from collections import Counter
from contextlib import suppress
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from pymatgen.core import Composition, Element

from chemeleon_jax.report.comparison import describe, interval, score_names
from chemeleon_jax.report.runs import CrystalSet, Run

COLORS = ("#2f5bea", "#e8590c", "#2b8a3e", "#9c36b5", "#0b7285", "#c2255c")
GREYS = ("#98a2b3", "#c9b8a8", "#a8bfae", "#bfaec4", "#a3bcc2", "#cdb0ba")
OVER_ITERATIONS = {"xaxis": {"title": {"text": "iteration"}}}  # a layout
MAX_POINTS = 1000  # of a curve; longer ones are thinned
DIGITS = 7  # of a curve: a diversity's mean is 0 but for rounding

# Section -> {tag without prefix: (title, what it is)}.
CURVES = {
    "components": {
        "creativity": ("Creativity", "1: unique and novel, 0: neither"),
        "energy": ("Energy", "minus the energy above the hull, eV/atom"),
        "structure_diversity": ("Structure diversity", "what a crystal adds"),
        "composition_diversity": ("Composition diversity", "what a crystal adds"),
        "element_kl": ("Elements", "minus their divergence from the known crystals'"),
        "displacement": ("Displacement", "minus the RMSD of relaxation, Å"),
        "symmetry": ("Symmetry", "0: P1, 1: a cubic point group of 48 operations"),
        "uniqueness": ("Uniqueness", "share of the batch"),
        "asked_composition": ("Composition asked for", "share of the batch"),
        "predictor": ("Predicted property", "reward of the predictor"),
        "custom": ("Custom reward", "raw value of your function"),
    },
    "shares": {
        "valid": ("Valid", "share of the batch"),
        "unique": ("Unique", "valid, first of its kind in the batch"),
        "novel": ("Novel", "valid, in no reference crystal's likeness"),
        "metastable": ("Metastable", "at most 0.1 eV/atom above the hull"),
        "msun": ("MSUN", "metastable, unique and novel"),
    },
    "drift": {
        "elements_effective": ("Effective elements", "as many, equally common"),
        "prototypes_effective": ("Effective prototypes", "of anonymous formulas"),
        "element_growth": ("Growth of an element", "share to that in the original's"),
        "frechet_base": ("Fréchet distance", "of compositions, from the original's"),
        "judge/msun": ("MSUN by the judge", "which the reward does not ask"),
        "judge/gap": ("Gap to the judge", "metastable by the reward, minus by it"),
    },
    "policy": {
        "kl_div": ("KL from the original", "nats per coordinate and step"),
        "clip_fraction": ("Clipped steps", "share outside the clip range"),
        "ratio": ("Probability ratio", "new policy to the one that sampled"),
        "grad_norm": ("Gradient norm", "before the clip"),
    },
}


def curve_chart(runs: list[Run], tag: str, title: str, about: str) -> dict | None:
    """One metric of all runs over the iterations; None if no run has it.

    Training is a thin line with its moving mean on top, validation is markers.
    """
    traces: list[dict[str, Any]] = []
    for run, color in zip(runs, cycle(COLORS), strict=False):
        name = run.name if len(runs) > 1 else "training"
        if f"train/{tag}" in run.curves:
            x, y = _thin(*run.curves[f"train/{tag}"])
            line = {"color": color, "width": 1}
            traces.append(_line(x, y, name, line, opacity=0.28, hoverinfo="skip"))
            line = {"color": color, "width": 2.5}
            traces.append(_line(x, moving_mean(y), name, line, showlegend=True))
        if f"val/{tag}" in run.curves:
            x, y = _thin(*run.curves[f"val/{tag}"])
            marker = {"size": 7, "color": "#fff", "line": {"color": color, "width": 2}}
            name = f"{run.name}, validation" if len(runs) > 1 else "validation"
            traces.append(
                {"x": x, "y": y, "name": name, "mode": "markers", "marker": marker}
            )
    return _chart(title, about, traces, layout=OVER_ITERATIONS)


def moving_mean(y: np.ndarray) -> np.ndarray:
    """Mean over a window of a twentieth of the curve, shorter at the ends; no NaN."""
    half = max(len(y) // 40, 1)
    return np.array(
        pd.Series(y).rolling(2 * half + 1, center=True, min_periods=1).mean()
    )


def component_charts(runs: list[Run]) -> list[dict]:
    """Those of the reward's components, the user's own by their names."""
    named = curve_charts(runs, "components")
    own = {
        name: None
        for run in runs
        for name in run.component_names
        if name not in CURVES["components"]
    }
    charts = (curve_chart(runs, name, name, "raw value") for name in own)
    return named + [chart for chart in charts if chart is not None]


def curve_charts(runs: list[Run], section: str) -> list[dict]:
    """The charts of a section of `CURVES` that any run has."""
    found = (curve_chart(runs, tag, *text) for tag, text in CURVES[section].items())
    return [chart for chart in found if chart is not None]


def time_chart(run: Run) -> dict | None:
    """Where an iteration's time goes. The first iteration compiles and is left out."""
    traces = []
    parts = (("sample", "#2f5bea"), ("reward", "#e8590c"), ("update", "#2b8a3e"))
    for part, color in parts:
        if f"time/{part}" in run.curves:
            x, y = _thin(*(v[1:] for v in run.curves[f"time/{part}"]))
            line = {"color": color, "width": 1}
            stacked = {"stackgroup": "time", "showlegend": True}
            traces.append(_line(x, y, part, line, **stacked))
    return _chart(
        f"Time of an iteration, {run.name}",
        "seconds, without the first",
        traces,
        legend=True,
        layout=OVER_ITERATIONS,
    )


def score_chart(sets: list[CrystalSet], colors: dict[str, str]) -> dict | None:
    """Shares of all sets with their intervals, as points on one axis."""
    names = [n for n in score_names(sets) if describe(n).share][::-1]
    if not names:
        return None
    middle, apart = (len(sets) - 1) / 2, min(0.22, 0.7 / len(sets))
    traces = []
    for place, crystals in enumerate(reversed(sets)):
        rows = [(i, x) for i, n in enumerate(names) if (x := interval(crystals, n))]
        traces.append(
            {
                "name": crystals.label,
                "mode": "markers",
                "x": [100 * x.value for _, x in rows],
                "y": [i + (place - middle) * apart for i, _ in rows],
                "marker": {"size": 10, "color": colors[crystals.label]},
                "error_x": {
                    "array": [100 * (x.high - x.value) for _, x in rows],
                    "arrayminus": [100 * (x.value - x.low) for _, x in rows],
                    "color": colors[crystals.label],
                    "thickness": 2,
                    "width": 4,
                },
                "customdata": [
                    [describe(names[i]).label, 100 * x.low, 100 * x.high]
                    for i, x in rows
                ],
                "hovertemplate": "%{customdata[0]}: %{x:.1f} % "
                "[%{customdata[1]:.1f}, %{customdata[2]:.1f}]",
                "showlegend": True,
            }
        )
    return _chart(
        "Shares of all sampled crystals",
        "points with 95 % bootstrap intervals",
        traces[::-1],
        height=60 + 56 * len(names),
        legend=True,
        layout={
            "hovermode": "closest",
            "xaxis": {"range": [-2, 104], "ticksuffix": " %", "dtick": 20},
            "yaxis": {
                "tickvals": list(range(len(names))),
                "ticktext": [describe(n).label for n in names],
                "range": [-0.6, len(names) - 0.4],
                "zeroline": False,
            },
        },
    )


def distribution_charts(sets: list[CrystalSet], colors: dict[str, str]) -> list[dict]:
    """Histograms of the valid crystals of all sets, as shares of those with a value."""
    return [
        chart
        for name, title, about in (
            ("e_above_hull", "Energy above the hull", "eV/atom"),
            ("density", "Density", "g/cm³"),
            ("num_atoms", "Atoms in the cell", "number"),
        )
        if (chart := _histogram(sets, colors, name, title, about))
    ]


def _histogram(sets, colors, name: str, title: str, about: str) -> dict | None:
    values = {}
    for crystals in sets:
        if name in crystals.table:
            x = crystals.valid[name].to_numpy(float)
            if np.isfinite(x).any():
                values[crystals.label] = x[np.isfinite(x)]
    if not values:
        return None
    joined = np.concatenate(list(values.values()))
    axis = {}
    if name == "num_atoms":
        edges = np.arange(joined.min() - 0.5, joined.max() + 1)
        axis = {"tickformat": "d", "dtick": max(len(edges) // 10, 1)}
    else:
        low, high = np.quantile(joined, [0.0, 0.99])
        edges = np.linspace(low, max(high, low + 1e-3), 31)
    traces = []
    for label, x in values.items():
        # What lies beyond the last edge is counted in the last bar.
        counts, _ = np.histogram(np.clip(x, edges[0], edges[-1]), edges)
        traces.append(
            {
                "type": "bar",
                "name": label,
                "x": (edges[:-1] + edges[1:]) / 2,
                "y": 100 * counts / len(x),
                "width": float(edges[1] - edges[0]) * 0.94,
                "opacity": 0.62,
                "marker": {"color": colors[label]},
                "hovertemplate": "%{y:.1f} % at %{x:.3g}",
                "showlegend": True,
            }
        )
    counted = ", ".join(f"{len(x)} in {label}" for label, x in values.items())
    return _chart(
        title,
        f"{about}; valid crystals with a value: {counted}",
        traces,
        legend=True,
        layout={"barmode": "overlay", "xaxis": axis, "yaxis": {"ticksuffix": " %"}},
    )


def element_shares(crystals: CrystalSet) -> dict[str, float]:
    """Share of the valid crystals that contain an element, by symbol."""
    found = crystals.valid["formula"] if "formula" in crystals.valid else ()
    formulas = [f for f in found if isinstance(f, str) and f]
    counts: Counter[str] = Counter()
    for formula in formulas:
        with suppress(ValueError):
            counts.update({e.symbol for e in Composition(formula).elements})
    return {symbol: n / len(formulas) for symbol, n in counts.items()}


def periodic_table() -> list[tuple[str, int, int]]:
    """Each element's symbol, row and column; f-block elements in rows 8 and 9."""
    cells = []
    for z in range(1, 119):
        element = Element.from_Z(z)
        if 57 <= z <= 71 or 89 <= z <= 103:
            row, column = (8, z - 54) if z < 72 else (9, z - 86)
        else:
            row, column = element.row, element.group
        cells.append((element.symbol, row, column))
    return cells


def set_colors(runs: list[Run]) -> dict[str, str]:
    """A colour for each set: the run's own for the tuned one, grey for its base."""
    colors = {}
    for run, color, grey in zip(runs, cycle(COLORS), cycle(GREYS), strict=False):
        for crystals, c in ((run.tuned, color), (run.base, grey), (run.seen, color)):
            if crystals is not None:
                colors[crystals.label] = c
    return colors


def _chart(title: str, about: str, traces: list[dict], **more) -> dict | None:
    """What `page` draws; None if there is nothing to draw."""
    return {"title": title, "about": about, "traces": traces} | more if traces else None


def _line(x, y, name: str, line: dict, **more) -> dict[str, Any]:
    shown = {"name": name, "mode": "lines", "line": line, "showlegend": False}
    return {"x": x, "y": y} | shown | more


def _thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    every = -(-len(steps) // MAX_POINTS) or 1
    return steps[::every], np.round(values[::every].astype(float), DIGITS)

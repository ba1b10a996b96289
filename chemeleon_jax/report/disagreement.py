"""Where potentials disagree: distances from the hull by two, and elements that grew."""

from itertools import combinations

import numpy as np
from pymatgen.core import Composition, Element

from chemeleon_jax.report import charts
from chemeleon_jax.report.runs import CrystalSet, Run

# A crystal is of the first class that it holds an element of.
CLASSES = (
    ("with hydrogen", {"H"}, "#e8590c"),
    ("oxide", {"O"}, "#c2255c"),
    ("halide", {"F", "Cl", "Br", "I"}, "#2b8a3e"),
    ("chalcogenide", {"S", "Se", "Te"}, "#d9a400"),
    ("pnictide", {"N", "P", "As", "Sb", "Bi"}, "#2f5bea"),
)
OTHERS = ("of metals", "#98a2b3"), ("other", "#9c36b5")
MOST_CHANGED = 12  # elements shown
RANGE = (-0.5, 1.5)  # eV/atom; a crystal beyond it is drawn at its end


def class_of(formula: str) -> str:
    """The class of elements that a formula belongs to."""
    symbols = {element.symbol for element in Composition(formula).elements}
    for name, members, _ in CLASSES:
        if symbols & members:
            return name
    return OTHERS[0 if all(Element(s).is_metal for s in symbols) else 1][0]


def scatter_charts(sets: list[CrystalSet]) -> list[dict]:
    """Energies above the hull by each two potentials, one chart per set and pair."""
    found = []
    for crystals in sets:
        judges = crystals.protocol.get("potentials")
        for pair in combinations(judges if isinstance(judges, dict) else (), 2):
            chart = _scatter(crystals, *pair)
            if chart is not None:
                found.append(chart)
    return found


def _scatter(crystals: CrystalSet, one: str, other: str) -> dict | None:
    columns = [f"e_above_hull:{name}" for name in (one, other)]
    if not {*columns, "formula"} <= set(crystals.valid):
        return None
    table = crystals.valid.dropna(subset=[*columns, "formula"])
    if table.empty:
        return None
    classes = table["formula"].map(class_of)
    low, high = RANGE
    traces: list[dict] = [
        {
            "mode": "lines",
            "x": [low, high],
            "y": [low, high],
            "line": {"color": "#98a2b3", "width": 1},
            "hoverinfo": "skip",
            "showlegend": False,
        }
    ]
    for name, color in [(name, color) for name, _, color in CLASSES] + [*OTHERS]:
        some = table[classes == name]
        if len(some):
            x, y = (some[column].to_numpy(float) for column in columns)
            traces.append(
                {
                    "name": f"{name} ({len(some)})",
                    "mode": "markers",
                    "x": np.clip(x, low, high),
                    "y": np.clip(y, low, high),
                    "text": list(some["formula"]),
                    "marker": {"size": 6, "color": color, "opacity": 0.75},
                    "hovertemplate": "%{text}: %{x:.3f}, %{y:.3f}",
                    "showlegend": True,
                }
            )
    axes = {
        axis: {"title": {"text": f"by {name}, eV/atom"}, "range": [low, high]}
        for axis, name in (("xaxis", one), ("yaxis", other))
    }
    return {
        "title": f"Energy above the hull, {crystals.label}",
        "about": f"{len(table)} valid crystals by two potentials, which agree on the "
        "line; what lies beyond the axes is drawn at their ends",
        "traces": traces,
        "height": 420,
        "legend": True,
        "layout": {"hovermode": "closest"} | axes,
    }


def element_chart(run: Run) -> dict | None:
    """The elements whose share changed most between base and policy."""
    if run.tuned is None or run.base is None:
        return None
    tuned, base = charts.element_shares(run.tuned), charts.element_shares(run.base)
    change = {e: tuned.get(e, 0) - base.get(e, 0) for e in tuned.keys() | base.keys()}
    most = sorted(change, key=lambda e: (-abs(change[e]), e))[:MOST_CHANGED]
    most.sort(key=lambda e: (change[e], e))
    if not most:
        return None
    colors = charts.set_colors([run])
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": crystals.label,
            "x": [100 * shares.get(e, 0) for e in most],
            "y": most,
            "marker": {"color": colors[crystals.label]},
            "hovertemplate": "%{y}: %{x:.1f} %",
            "showlegend": True,
        }
        for crystals, shares in ((run.base, base), (run.tuned, tuned))
    ]
    return {
        "title": f"Elements that changed most, {run.name}",
        "about": "share of the valid crystals that contain one",
        "traces": traces,
        "height": 80 + 28 * len(most),
        "legend": True,
        "layout": {"barmode": "group", "xaxis": {"ticksuffix": " %"}},
    }

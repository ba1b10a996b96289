"""The page of a screening: what was dropped and why, and what is left."""

from collections import Counter
from typing import Any

from chemeleon_jax.data.crystals import read_structure
from chemeleon_jax.report.gallery import make_card
from chemeleon_jax.report.parts import (
    crystal_card,
    draw_chart,
    esc,
    fill_page,
    flatten,
    formula_html,
    gallery_grid,
    notes,
    section,
)
from chemeleon_jax.screening.results import known_group
from chemeleon_jax.screening.sieve import REASONS, total_drop

SET = "candidates"
BALANCE = {True: "balanced", False: "unbalanced", None: "–"}


def make_page(rows: list[dict], candidates: list[dict], summary: dict) -> str:
    """The whole page, scripts and pictures included."""
    data: dict[str, Any] = {"charts": {}, "elements": {}, "crystals": {}}
    name = summary["protocol"]["samples"]
    body = (
        "<header><p class=kicker>chemeleon_jax screen</p>"
        f"<h1>{esc(name)}</h1><p>{len(rows)} crystals, {len(candidates)} candidates, "
        "ranked by the mean of the potentials' energies above their hulls.</p>"
        "</header>",
        notes(summary["notes"]),
        funnel_section(summary, data),
        dropped_section(rows),
        gallery_section(candidates, data),
        table_section(candidates, list(summary["protocol"]["potentials"])),
        protocol_section(summary["protocol"]),
    )
    return fill_page(f"{name}, screened", body, data)


def funnel_section(summary: dict, data: dict) -> str:
    """How many were left after each question."""
    counts = summary["funnel"]
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": list(counts.values())[::-1],
        "y": list(counts)[::-1],
        "text": [str(n) for n in counts.values()][::-1],
        "textposition": "auto",
        "marker": {"color": "#2f5bea"},
        "hovertemplate": "%{x}",
    }
    chart = {
        "title": "Crystals left",
        "about": "after each question, in the order in which it is asked",
        "traces": [trace],
        "height": 60 + 28 * len(counts),
        "layout": {"hovermode": "closest", "yaxis": {"automargin": True}},
    }
    about = "A crystal is dropped for the first reason that applies to it."
    return section("Funnel", about, draw_chart(data, chart, "wide"))


def dropped_section(rows: list[dict]) -> str:
    """Each reason, what it means, how many it took, and some of them."""
    counts = Counter(row["reason"] for row in rows)
    lines = []
    for reason, meaning in REASONS.items():
        some = [row for row in rows if row["reason"] == reason][:3]
        shown = "; ".join(
            " ".join(filter(None, (row["formula"] or row["name"], row["detail"])))
            for row in some
        )
        lines.append(
            f"<tr><th scope=row>{esc(reason.replace('_', ' '))}</th>"
            f"<td>{counts[reason]}</td><td>{esc(meaning)}</td><td>{esc(shown)}</td></tr>"
        )
    head = "<tr><th>reason</th><th>crystals</th><th>what it means</th><th>such as</th>"
    table = _table(f"{head}</tr>", lines, "words")
    return section("Why crystals were dropped", "", table)


def gallery_section(candidates: list[dict], data: dict) -> str:
    """The candidates, best first, to be opened."""
    cards = []
    for record in candidates:
        row = {
            "index": record["index"],
            "e_above_hull": record["e_above_hull:mean"],
            "space_group": known_group(record),
            "novel": record["novel"],
        }
        cards.append(make_card(row, read_structure(record["conventional"])))
    data["crystals"][SET] = cards
    shown = "".join(crystal_card(SET, i, card) for i, card in enumerate(cards))
    empty = "<p class=empty>No crystal passed.</p>"
    return section(
        "Candidates",
        "Conventional cells, best first. Open one to turn it around.",
        gallery_grid(SET, shown or empty),
    )


def table_section(candidates: list[dict], judges: list[str]) -> str:
    """Energies, symmetry, stability and the nearest known compounds."""
    names = ("", "formula", "charges", "space group", "above hull", *judges)
    names += ("against known",)
    names += ("lowest frequency", "bulk / shear", "nearest known")
    units = ("", "", "SMACT", "", "mean, eV/atom", *["eV/atom"] * len(judges))
    units += ("eV/atom",)
    units += ("THz", "GPa", "atoms exchanged")
    head = "".join(
        f"<th>{esc(name)}<br><small>{esc(unit)}</small></th>"
        for name, unit in zip(names, units, strict=True)
    )
    lines = [_line(record, judges) for record in candidates]
    return section("Table", "", _table(f"<tr>{head}</tr>", lines))


def _line(record: dict, judges: list[str]) -> str:
    found = record.get("stability") or {}
    above = list(record["above_known"].values())
    known = ", ".join(
        f"{formula_html(k['formula'])} ({esc(k['id'])}, {100 * k['distance']:.0f} %)"
        for k in record["known"][:3]
    )
    frequency = found.get("lowest_frequency")
    moduli = "–"
    if found.get("bulk_modulus") is not None:
        moduli = f"{found['bulk_modulus']:.0f} / {found['shear_modulus']:.0f}"
    groups = "<br>".join(
        f"{esc(x)}<small>within {t} Å</small>" for t, x in record["space_group"].items()
    )
    cells = [
        formula_html(record["formula"]),
        BALANCE[record["smact_valid"]],
        groups or "–",
        f"{record['e_above_hull:mean']:.3f}",
        *(f"{record[f'e_above_hull:{name}']:.3f}" for name in judges),
        f"{sum(above) / len(above):+.3f}" if above else "–",
        "–" if frequency is None else f"{frequency:.2f}{_descent(record)}",
        moduli,
        known,
    ]
    return f"<tr><th scope=row>{record['rank']}</th>" + "".join(
        f"<td>{cell}</td>" for cell in cells
    )


def _descent(record: dict) -> str:
    """Of a crystal that was pushed off a saddle: along what, and how far it fell."""
    if not (descents := record.get("descents")):
        return ""
    ways = ", ".join(descent["along"] for descent in descents)
    return f"<small>off a {ways}, by {1000 * total_drop(descents):.1f} meV/atom</small>"


def protocol_section(protocol: dict) -> str:
    """How it was done."""
    lines = [
        f"<tr><th scope=row>{esc(k.replace('_', ' '))}</th><td>{esc(v)}</td></tr>"
        for k, v in flatten(protocol)
    ]
    return section("Protocol", "", _table("", lines))


def _table(head: str, lines: list[str], kind: str = "") -> str:
    body = "".join(lines)
    return (
        f"<div class='card scroll'><table class='{kind}'><thead>{head}</thead>"
        f"<tbody>{body}</tbody></table></div>"
    )

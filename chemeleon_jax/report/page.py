"""Puts the page together: HTML around charts, tables and crystals as JSON."""

import html
import itertools
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from string import Template
from typing import Any

from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from chemeleon_jax import __version__
from chemeleon_jax.report import charts, comparison, disagreement
from chemeleon_jax.report.gallery import best_crystals
from chemeleon_jax.report.runs import Run
from chemeleon_jax.runs.files import read_packaged

HERE = Path(__file__).parent
VIEWER_SHA256 = "f7cc78921ae72e7623e89cdd111434f58c2efddd2ffda1cd212644b406fb8016"
HEADLINES = ("msun:all", "stable:all", "msun", "metastable", "valid", "unique", "novel")


def make_page(runs: list[Run], num_crystals: int) -> str:
    """The whole page, scripts and pictures included."""
    if len(runs) > 1:
        for run in runs:
            for crystals in run.shown:
                crystals.label = f"{run.name}: {crystals.label}"
    data: dict[str, Any] = {"charts": {}, "elements": {}, "crystals": {}}
    body = (
        header(runs),
        notes([note for run in runs for note in run.notes]),
        headlines(runs),
        learning(runs, data),
        scores(runs, data),
        second_opinion(runs, data),
        distributions(runs, data),
        gallery(runs, num_crystals, data),
        protocol(runs),
    )
    return Template(_file("page.html")).substitute(
        title=html.escape(" · ".join(run.name for run in runs)),
        style=_file("page.css"),
        body="\n".join(body),
        data=to_json_plotly(data),  # escapes what would end the script
        plotly=get_plotlyjs(),
        viewer=f"/*\n{_file('3Dmol-LICENSE.txt')}\n*/\n{_viewer()}",
        script=_file("page.js"),
        version=__version__,
        today=date.today().isoformat(),
    )


def header(runs: list[Run]) -> str:
    """Names of the runs, and for each what it was."""
    several = len(runs) > 1
    lines = "".join(
        f"<p>{f'<strong>{_e(run.name)}</strong> ' * several}{_e(settings(run))}</p>"
        for run in runs
    )
    title = " · ".join(_e(run.name) for run in runs)
    return (
        "<header><p class=kicker>chemeleon_jax report</p>"
        f"<h1>{title}</h1>{lines}</header>"
    )


def settings(run: Run) -> str:
    """One line of a run's config: reward, size, start."""
    config = run.config
    try:
        components = config["reward"]["components"].items()
        weights = [
            f"{c['weight']:g} {name.replace('_', ' ')}"
            for name, c in sorted(components, key=lambda item: -item[1]["weight"])
            if c["weight"] and c.get("function", True)
        ]
        rl, groups = config["rl"]["num_group_samples"], config["data"]["batch_size"]
        parts = [
            f"reward {' + '.join(weights)}",
            f"{groups} groups of {rl} crystals an iteration",
            f"learning rate {config['optimizer']['lr']:g}",
            f"from {config['ldm_ckpt_path']}",
        ]
    except (KeyError, TypeError, AttributeError):
        parts = ["config unknown"]
    if "train/reward" in run.curves:
        parts.insert(0, f"{run.curves['train/reward'][0][-1] + 1} iterations")
    return " · ".join(parts)


def notes(texts: list[str]) -> str:
    """What is missing, in a box; lines after the first are commands."""
    items = []
    for text in texts:
        first, *commands = text.split("\n")
        code = f"<pre>{_e(chr(10).join(commands))}</pre>" if commands else ""
        items.append(f"<li>{_e(first)}{code}</li>")
    return f"<aside class=notes><ul>{''.join(items)}</ul></aside>" if items else ""


def headlines(runs: list[Run]) -> str:
    """The scores that matter most, from base to tuned, as large numbers."""
    cards = []
    for run, name in itertools.product(runs, HEADLINES):
        base, tuned, change = comparison.compare(run, name)
        if tuned is None:
            continue
        value, spread = tuned
        below = f"<p class=spread>95 %: {spread}</p>"
        if base and change:
            kind, shown, within = change
            below = (
                f"<p class=spread>base {base[0]}</p>"
                f'<p class="gain {kind}">{shown} <span>[{within}]</span></p>'
            )
        where = f"{run.name}: " if len(runs) > 1 else ""
        label = _e(where + comparison.describe(name).label)
        cards.append(
            f"<div class=headline><p class=label>{label}</p>"
            f"<p class=value>{value}</p>{below}</div>"
        )
    return f"<section class=headlines>{''.join(cards)}</section>" if cards else ""


def learning(runs: list[Run], data: dict) -> str:
    """Curves of reward, components, shares, policy and time."""
    reward = charts.curve_chart(
        runs, "reward", "Reward", "raw, penalties included: the mean of the batch"
    )
    if reward is None:
        return _section("Learning", "", "<p class=empty>No curves.</p>")
    reward["legend"] = True  # the colours are the same in the others
    learnt = charts.curve_charts(runs, "components") + charts.curve_charts(
        runs, "shares"
    )
    drift = charts.curve_charts(runs, "drift")
    policy = charts.curve_charts(runs, "policy")
    policy += [c for run in runs if (c := charts.time_chart(run))]
    return _section(
        "Learning",
        "Thin: each iteration's training batch, sampled before its update. Bold: its "
        "moving mean. Circles: validation, after the update.",
        f"<div class=grid>{_chart(data, reward, 'wide')}{_charts(data, learnt)}</div>"
        + (
            f"<h3>Drift</h3><div class=grid>{_charts(data, drift)}</div>"
            if drift
            else ""
        )
        + "<details><summary>Policy and time</summary>"
        f"<div class=grid>{_charts(data, policy)}</div></details>",
    )


def scores(runs: list[Run], data: dict) -> str:
    """Base against tuned: a chart of shares, and a table of every score."""
    sets = [s for run in runs for s in run.sets]
    chart = charts.score_chart(sets, charts.set_colors(runs))
    names = comparison.score_names(sets)
    if not names:
        return ""
    columns, rows = [], {name: "" for name in names}
    for run in runs:
        if run.tuned is None:
            continue
        columns += [f"{s.label} ({len(s.table)})" for s in (run.base, run.tuned) if s]
        if run.base is not None:
            columns.append("change" if len(runs) == 1 else f"{run.name}: change")
        for name in names:
            base, tuned, change = comparison.compare(run, name)
            cells = [_cell(tuned)]
            if run.base is not None:
                kind, *gain = change or ("",)
                cells = [_cell(base), *cells, _cell(gain, kind)]
            rows[name] += "".join(cells)
    head = "".join(f"<th>{_e(c)}</th>" for c in columns)
    lines = "".join(
        f"<tr><th scope=row>{_e(comparison.describe(n).label)}</th>{cells}</tr>"
        for n, cells in rows.items()
    )
    table = (
        "<div class='card scroll'><table><thead><tr><th>score</th>"
        f"{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )
    return _section(
        "Base against tuned",
        "Fresh crystals of the model that the run started from and of its policy. "
        "Intervals are 95 % bootstrap intervals; changes that exclude 0 are coloured.",
        f"<div class=pair>{_chart(data, chart) if chart else ''}{table}</div>",
    )


def _cell(shown: Sequence[str] | None, kind: str = "") -> str:
    """A value and its interval."""
    if not shown:
        return "<td>–</td>"
    value, spread = shown
    return f"<td{kind and f' class={kind}'}>{value}<small>{spread}</small></td>"


def second_opinion(runs: list[Run], data: dict) -> str:
    """Where potentials disagree, for sets that several have judged."""
    found = disagreement.scatter_charts([s for run in runs for s in run.sets])
    if not found:
        return ""
    found += [c for run in runs if (c := disagreement.element_chart(run))]
    return _section(
        "A second opinion",
        "A policy learns what its potential believes. Crystals that another potential "
        "puts far higher, and elements that grew, show where it may be fooled.",
        f"<div class=grid>{_charts(data, found)}</div>",
    )


def distributions(runs: list[Run], data: dict) -> str:
    """Histograms, and the elements as a periodic table."""
    sets = [s for run in runs for s in run.shown]
    if not sets:
        return ""
    found = charts.distribution_charts(sets, charts.set_colors(runs))
    shares = {s.label: charts.element_shares(s) for s in sets}
    data["elements"] = {"cells": charts.periodic_table(), "shares": shares}
    for run in runs:
        if run.tuned is None or run.base is None:
            continue
        tuned, base = shares[run.tuned.label], shares[run.base.label]
        shares[f"{run.tuned.label} − {run.base.label}"] = {
            e: tuned.get(e, 0) - base.get(e, 0) for e in tuned.keys() | base.keys()
        }
    tabs = _tabs("elements", list(shares))
    table = (
        "<figure class='card elements'><figcaption><h3>Elements</h3><p>share of the "
        f"valid crystals that contain one</p></figcaption>{tabs}"
        "<div class=periodic></div><div class=scale></div></figure>"
    )
    return _section(
        "Distributions",
        "",
        f"<div class=grid>{_charts(data, found)}</div>{table}",
    )


def gallery(runs: list[Run], number: int, data: dict) -> str:
    """The best crystals of every set, to be opened."""
    sets = [s for run in runs for s in run.shown]
    grids, problems = [], []
    for crystals in sets:
        cards, problem = best_crystals(crystals, number)
        data["crystals"][crystals.label] = cards
        if problem:
            problems.append(f"{crystals.label}: {problem}.")
        shown = "".join(_card(crystals.label, i, c) for i, c in enumerate(cards))
        empty = "<p class=empty>No valid crystal to draw.</p>"
        grids.append(
            f'<div class=gallery data-set="{_e(crystals.label)}">{shown or empty}</div>'
        )
    if not sets:
        return _section("Crystals", "", "<p class=empty>No crystals yet.</p>")
    labels = [s.label for s in sets]
    return _section(
        "Crystals",
        "The best valid crystals: unique and novel ones first, by energy above the "
        "hull. Open one to turn it around.",
        notes(problems) + _tabs("gallery", labels) + "".join(grids),
    )


def _card(label: str, i: int, card: dict) -> str:
    energy = card["e_above_hull"]
    shown = "energy unknown" if energy is None else f"{energy:.3f} eV/atom"
    tags = "".join(f"<span>{_e(b)}</span>" for b in card["badges"])
    return (
        f'<button class=crystal data-set="{_e(label)}" data-number={i}>'
        f'<img src="{card["picture"]}" alt="" width=150 height=150>'
        f"<strong>{formula_html(card['formula'])}</strong>"
        f"<span class=group>{_e(card['space_group'])}</span>"
        f"<span class=energy>{shown}</span><span class=badges>{tags}</span></button>"
    )


def formula_html(formula: str) -> str:
    """A formula with its numbers as subscripts."""
    return re.sub(r"(\d+(?:\.\d+)?)", r"<sub>\1</sub>", _e(formula))


def protocol(runs: list[Run]) -> str:
    """How the crystals were scored, as the evaluations say."""
    tables = []
    for crystals in (s for run in runs for s in run.sets):
        facts = dict(_flat(crystals.protocol))
        if "reason" in crystals.table:
            counts = crystals.table["reason"].value_counts()
            facts["crystals that are"] = ", ".join(
                f"{k} {n}" for k, n in counts.items()
            )
        rows = "".join(
            f"<tr><th scope=row>{_e(k.replace('_', ' '))}</th><td>{_e(v)}</td></tr>"
            for k, v in facts.items()
        )
        if rows:
            tables.append(
                f"<div class='card scroll'><h3>{_e(crystals.label)}</h3>"
                f"<table>{rows}</table></div>"
            )
    if not tables:
        return ""
    return _section("Protocol", "", f"<div class=pair>{''.join(tables)}</div>")


def _flat(x: Any, prefix: str = ""):
    """The (name, value) pairs of nested dicts, checksums cut short."""
    for key, value in x.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key} ")
        elif value is not None:
            checksum = key.endswith("sha256")
            yield f"{prefix}{key}", f"{str(value)[:12]}…" if checksum else value


def _tabs(group: str, labels: list[str]) -> str:
    buttons = "".join(
        f'<button role=tab data-tab="{_e(label)}">{_e(label)}</button>'
        for label in labels
    )
    return f"<div class=tabs role=tablist data-for={group}>{buttons}</div>"


def _chart(data: dict, chart: dict, extra: str = "") -> str:
    name = f"chart-{len(data['charts'])}"
    drawn = ("traces", "layout", "height", "legend")
    data["charts"][name] = {k: chart.get(k) for k in drawn}
    return (
        f'<figure class="card {extra}"><figcaption><h3>{_e(chart["title"])}</h3>'
        f"<p>{_e(chart['about'])}</p></figcaption>"
        f"<div class=chart id={name}></div></figure>"
    )


def _charts(data: dict, found: list[dict]) -> str:
    return "".join(_chart(data, chart) for chart in found)


def _section(title: str, about: str, content: str) -> str:
    return f"<section><h2>{title}</h2><p class=about>{about}</p>{content}</section>"


def _viewer() -> str:
    """3Dmol, which whoever opens a report runs."""
    return read_packaged(HERE / "3Dmol-min.js", VIEWER_SHA256).decode()


def _file(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _e(text: Any) -> str:
    return html.escape(str(text))

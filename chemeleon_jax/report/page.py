"""The page of RL runs: HTML around charts, tables and crystals as JSON."""

import itertools
from collections.abc import Sequence
from typing import Any

from chemeleon_jax.report import charts, comparison, disagreement
from chemeleon_jax.report.gallery import best_crystals
from chemeleon_jax.report.parts import (
    crystal_card,
    draw_chart,
    draw_charts,
    esc,
    fill_page,
    flatten,
    gallery_grid,
    notes,
    section,
    tabs,
)
from chemeleon_jax.report.runs import Run

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
    title = " · ".join(run.name for run in runs)
    return fill_page(title, body, data)


def header(runs: list[Run]) -> str:
    """Names of the runs, and for each what it was."""
    several = len(runs) > 1
    lines = "".join(
        f"<p>{f'<strong>{esc(run.name)}</strong> ' * several}{esc(settings(run))}</p>"
        for run in runs
    )
    title = " · ".join(esc(run.name) for run in runs)
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
    except (KeyError, TypeError, ValueError, AttributeError):
        parts = ["config unknown"]
    if "train/reward" in run.curves:
        parts.insert(0, f"{run.curves['train/reward'][0][-1] + 1} iterations")
    return " · ".join(parts)


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
        label = esc(where + comparison.describe(name).label)
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
        return section("Learning", "", "<p class=empty>No curves.</p>")
    reward["legend"] = True  # the colours are the same in the others
    learnt = charts.component_charts(runs) + charts.curve_charts(runs, "shares")
    drift = charts.curve_charts(runs, "drift")
    policy = charts.curve_charts(runs, "policy")
    policy += [c for run in runs if (c := charts.time_chart(run))]
    return section(
        "Learning",
        "Thin: each iteration's training batch, sampled before its update. Bold: its "
        "moving mean. Circles: validation, after the update.",
        f"<div class=grid>{draw_chart(data, reward, 'wide')}"
        f"{draw_charts(data, learnt)}</div>"
        + (
            f"<h3>Drift</h3><div class=grid>{draw_charts(data, drift)}</div>"
            if drift
            else ""
        )
        + "<details><summary>Policy and time</summary>"
        f"<div class=grid>{draw_charts(data, policy)}</div></details>",
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
    head = "".join(f"<th>{esc(c)}</th>" for c in columns)
    lines = "".join(
        f"<tr><th scope=row>{esc(comparison.describe(n).label)}</th>{cells}</tr>"
        for n, cells in rows.items()
    )
    table = (
        "<div class='card scroll'><table><thead><tr><th>score</th>"
        f"{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )
    return section(
        "Base against tuned",
        "Fresh crystals of the model that the run started from and of its policy. "
        "Intervals are 95 % bootstrap intervals; changes that exclude 0 are coloured.",
        f"<div class=pair>{draw_chart(data, chart) if chart else ''}{table}</div>",
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
    return section(
        "A second opinion",
        "A policy learns what its potential believes. Crystals that another potential "
        "puts far higher, and elements that grew, show where it may be fooled.",
        f"<div class=grid>{draw_charts(data, found)}</div>",
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
    buttons = tabs("elements", list(shares))
    table = (
        "<figure class='card elements'><figcaption><h3>Elements</h3><p>share of the "
        f"valid crystals that contain one</p></figcaption>{buttons}"
        "<div class=periodic></div><div class=scale></div></figure>"
    )
    return section(
        "Distributions",
        "",
        f"<div class=grid>{draw_charts(data, found)}</div>{table}",
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
        shown = "".join(crystal_card(crystals.label, i, c) for i, c in enumerate(cards))
        empty = "<p class=empty>No valid crystal to draw.</p>"
        grids.append(gallery_grid(crystals.label, shown or empty))
    if not sets:
        return section("Crystals", "", "<p class=empty>No crystals yet.</p>")
    labels = [s.label for s in sets]
    return section(
        "Crystals",
        "The best valid crystals: unique and novel ones first, by energy above the "
        "hull. Open one to turn it around.",
        notes(problems) + tabs("gallery", labels) + "".join(grids),
    )


def protocol(runs: list[Run]) -> str:
    """How the crystals were scored, as the evaluations say."""
    tables = []
    for crystals in (s for run in runs for s in run.sets):
        facts = dict(flatten(crystals.protocol))
        if "reason" in crystals.table:
            counts = crystals.table["reason"].value_counts()
            facts["crystals that are"] = ", ".join(
                f"{k} {n}" for k, n in counts.items()
            )
        rows = "".join(
            f"<tr><th scope=row>{esc(k.replace('_', ' '))}</th><td>{esc(v)}</td></tr>"
            for k, v in facts.items()
        )
        if rows:
            tables.append(
                f"<div class='card scroll'><h3>{esc(crystals.label)}</h3>"
                f"<table>{rows}</table></div>"
            )
    if not tables:
        return ""
    return section("Protocol", "", f"<div class=pair>{''.join(tables)}</div>")

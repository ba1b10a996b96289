"""What a page is made of: sections, cards of crystals, charts; and the whole of it."""

import html
import re
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from string import Template
from typing import Any

from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from chemeleon_jax import __version__
from chemeleon_jax.runs.files import read_packaged

HERE = Path(__file__).parent
VIEWER_SHA256 = "f7cc78921ae72e7623e89cdd111434f58c2efddd2ffda1cd212644b406fb8016"


def fill_page(title: str, body: Iterable[str], data: dict[str, Any]) -> str:
    """A page, scripts and pictures included.

    Args:
      title: of its tab.
      body: HTML, one part after another.
      data: what the page's script draws: `charts`, `elements` and `crystals`.
    """
    return Template(_file("page.html")).substitute(
        title=html.escape(title),
        style=_file("page.css"),
        body="\n".join(body),
        data=to_json_plotly(data),  # escapes what would end the script
        plotly=get_plotlyjs(),
        viewer=f"/*\n{_file('3Dmol-LICENSE.txt')}\n*/\n{_viewer()}",
        script=_file("page.js"),
        version=__version__,
        today=date.today().isoformat(),
    )


def notes(texts: list[str]) -> str:
    """What is missing, in a box; lines after the first are commands."""
    items = []
    for text in texts:
        first, *commands = text.split("\n")
        code = f"<pre>{esc(chr(10).join(commands))}</pre>" if commands else ""
        items.append(f"<li>{esc(first)}{code}</li>")
    return f"<aside class=notes><ul>{''.join(items)}</ul></aside>" if items else ""


def crystal_card(label: str, i: int, card: dict) -> str:
    """A card of `gallery.make_card` in a gallery, the i-th of its set."""
    energy = card["e_above_hull"]
    shown = "energy unknown" if energy is None else f"{energy:.3f} eV/atom"
    tags = "".join(f"<span>{esc(b)}</span>" for b in card["badges"])
    return (
        f'<button class=crystal data-set="{esc(label)}" data-number={i}>'
        f'<img src="{card["picture"]}" alt="" width=150 height=150>'
        f"<strong>{formula_html(card['formula'])}</strong>"
        f"<span class=group>{esc(card['space_group'])}</span>"
        f"<span class=energy>{shown}</span><span class=badges>{tags}</span></button>"
    )


def gallery_grid(label: str, cards: str) -> str:
    """The cards of one set side by side."""
    return f'<div class=gallery data-set="{esc(label)}">{cards}</div>'


def formula_html(formula: str) -> str:
    """A formula with its numbers as subscripts."""
    return re.sub(r"(\d+(?:\.\d+)?)", r"<sub>\1</sub>", esc(formula))


def flatten(x: Any, prefix: str = ""):
    """The (name, value) pairs of nested dicts, checksums cut short."""
    for key, value in x.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key} ")
        elif value is not None:
            checksum = key.endswith("sha256")
            yield f"{prefix}{key}", f"{str(value)[:12]}…" if checksum else value


def tabs(group: str, labels: list[str]) -> str:
    """Buttons, of which one is pressed."""
    buttons = "".join(
        f'<button role=tab data-tab="{esc(label)}">{esc(label)}</button>'
        for label in labels
    )
    return f"<div class=tabs role=tablist data-for={group}>{buttons}</div>"


def draw_chart(data: dict, chart: dict, extra: str = "") -> str:
    """The place of a chart, whose traces go into the data of the page."""
    name = f"chart-{len(data['charts'])}"
    drawn = ("traces", "layout", "height", "legend")
    data["charts"][name] = {k: chart.get(k) for k in drawn}
    return (
        f'<figure class="card {extra}"><figcaption><h3>{esc(chart["title"])}</h3>'
        f"<p>{esc(chart['about'])}</p></figcaption>"
        f"<div class=chart id={name}></div></figure>"
    )


def draw_charts(data: dict, found: list[dict]) -> str:
    """Charts one after another."""
    return "".join(draw_chart(data, chart) for chart in found)


def section(title: str, about: str, content: str) -> str:
    """A part of the page under its title."""
    return f"<section><h2>{title}</h2><p class=about>{about}</p>{content}</section>"


def _viewer() -> str:
    """3Dmol, which whoever opens a report runs."""
    return read_packaged(HERE / "3Dmol-min.js", VIEWER_SHA256).decode()


def _file(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def esc(text: Any) -> str:
    """Text without markup."""
    return html.escape(str(text))

"""The card of a published model: what it is, where it comes from, what it is worth."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from chemeleon_jax import __version__
from chemeleon_jax.errors import UserError
from chemeleon_jax.models import hub
from chemeleon_jax.report.comparison import SCORES, interval
from chemeleon_jax.report.runs import CrystalSet
from chemeleon_jax.rl.config import describe, describe_judges

CREDITS = {  # by what a config names
    "mp_mini": "Crystals of the Materials Project (CC-BY-4.0).",
    "mp_20": "Crystals of the Materials Project (CC-BY-4.0).",
    "alex_mp_20": "Crystals of the Alexandria database (CC-BY-4.0).",
    "chgnet": "CHGNet: B. Deng et al., Nature Machine Intelligence 5, 1031 (2023).",
    "sevennet": "SevenNet: Y. Park et al., J. Chem. Theory Comput. 20, 4857 (2024).",
}


@dataclass(frozen=True)
class Card:
    """What a card tells."""

    repo: str  # OWNER/NAME
    licence: str  # as the hub names it, such as mit
    model: dict[str, Any]  # the model's config
    num_parameters: int
    run: dict[str, Any] | None = None  # the config of the RL run
    weights: str = ""  # which of the run's
    iteration: int | None = None  # that its latest state has
    tuned: CrystalSet | None = None  # evaluated crystals
    base: CrystalSet | None = None  # the same of the model it started from

    def text(self) -> str:
        """The card as Markdown, with the hub's header."""
        parts = [_header(self), f"# {self.repo.partition('/')[2]}", _what(self)]
        parts += ["## Use", _use(self)]
        if self.run is not None:
            parts += ["## How it was made", _origin(self, self.run)]
        if self.tuned is not None:
            parts += ["## Scores", _scores(self.tuned, self.base)]
        parts += ["## Limits", LIMITS, "## Licence and credits", _credits(self)]
        return "\n\n".join(parts) + "\n"


LIMITS = """\
Energies are those of interatomic potentials, not of DFT. A policy that was trained on a
reward does what the reward says, and may serve it in ways that nobody meant: judge its
crystals by something that the reward did not ask. Crystals have at most 20 atoms."""


def public_name(path: str) -> str:
    """A model or file of a config, without the folders of who made the run."""
    if path.startswith(("mini:", "hub:")) or "/" not in path:
        return path
    return f"{Path(path).name} (a local file)"


def public_potentials(names: str) -> str:
    """Potentials with commas between, without the folders of files."""
    shown = []
    for name in names.split(","):
        kind, colon, path = name.strip().partition(":")
        shown.append(f"{kind}{colon}{Path(path).name}" if "/" in path else name.strip())
    return ", ".join(shown)


def _header(card: Card) -> str:
    lines = ["library_name: chemeleon_jax", f"license: {card.licence}"]
    start = (card.run or {}).get("ldm_ckpt_path", "")
    if start.startswith("hub:"):
        name = start.removeprefix("hub:")
        lines.append(f"base_model: {name if '/' in name else hub.REPO}")
    tags = "materials-science, crystal-generation, diffusion, jax"
    lines.append(f"tags: [{tags}{', reinforcement-learning' if card.run else ''}]")
    return "\n".join(["---", *lines, "---"])


def _what(card: Card) -> str:
    specs = (card.model.get("condition") or {}).get("specs", ())
    takes = ", ".join(f"{spec['name']} ({spec['kind']})" for spec in specs)
    made = "trained by supervision"
    if card.run is not None:
        made = f"fine-tuned by reinforcement learning ({card.run['rl']['objective']})"
    return (
        f"A generator of crystals for chemeleon_jax {__version__}: a VAE and a latent "
        f"diffusion transformer, {card.num_parameters:,} parameters together, {made}. "
        + (f"It can be asked for: {takes}." if takes else "It takes no conditions.")
    )


def _use(card: Card) -> str:
    return f"""\
```python
from chemeleon_jax import load

crystals = load("hub:{card.repo}").sample(100, seed=0)
```

gives 100 pymatgen structures, and a table. It samples as the policy was trained to, and
draws the same atom counts, unless you say otherwise. `python -m chemeleon_jax.sample
--checkpoint=hub:{card.repo} --out=DIR` writes them to files.
`params.safetensors` and `config.json` are all that is read; nothing is unpickled."""


def _origin(card: Card, run: dict[str, Any]) -> str:
    try:
        about = describe(ConfigDict(run))
        custom = run["reward"]["components"]["custom"]["function"]
        start, vae = run["ldm_ckpt_path"], run["vae_ckpt_path"]
        facts = {
            "base model": f"{public_name(start)}, decoded by {public_name(vae)}",
            "data set": f"{public_name(run['data']['dataset'])} (atom counts); what is "
            f"novel is not in {public_name(run['reward']['reference_dataset'])}",
            "asked for": _some(run["data"]["compositions"]),
            "reward": about["reward"],
            "its judges": _judges(run["reward"]),
            "its hull": public_name(run["reward"]["hull_file"])
            or f"of {public_name(run['reward']['reference_dataset'])}",
            "its function": custom and public_name(custom),
            "crystals": about["crystals"],
            "iterations": f"{card.iteration} ({card.weights})",
            "seed": str(run["seed"]),
            "a judge not in the reward": public_potentials(run["judge"]["potential"]),
        }
    except (KeyError, AttributeError) as error:
        raise UserError(
            f"config.json of the run: lacks {error}; it is of another version of "
            "chemeleon_jax: continue the run for an iteration, or publish its model"
        ) from error
    rows = [f"| {name} | {text} |" for name, text in facts.items() if text]
    return "\n".join(["| | |", "|---|---|", *rows])


def _judges(reward: dict[str, Any]) -> str:
    """Who judges, as a run says it at its start, without the folders of files."""
    energy = dict(reward["components"]["energy"])
    for name in ("potentials", "relax_with"):
        energy[name] = public_potentials(energy[name])
    shown = {**reward, "potential": public_potentials(reward["potential"])}
    shown["components"] = {"energy": energy}
    return describe_judges(ConfigDict(shown))


def _some(compositions: str) -> str:
    """The formulas that a run asked for, or the file of them, at most a line."""
    shown = public_name(compositions)
    return shown if len(shown) < 200 else f"{shown[:200]} ..."


def _scores(tuned: CrystalSet, base: CrystalSet | None) -> str:
    """The scores of an evaluation, those of the base beside them."""
    sets = {"this model": tuned}
    if base is not None and base.protocol == tuned.protocol:
        sets = {"base": base} | sets
    rows = [f"| | {' | '.join(sets)} |", "|---" * (len(sets) + 1) + "|"]
    for name, score in SCORES.items():
        found = [interval(crystals, name) for crystals in sets.values()]
        if found[-1] is not None:
            cells = [_cell(values, score.share) for values in found]
            rows.append(f"| {score.label} | {' | '.join(cells)} |")
    counts = " and ".join(str(len(crystals.table)) for crystals in sets.values())
    return "\n".join(rows) + (
        f"\n\nOf {counts} crystals, with 95 % bootstrap intervals, by "
        f"`python -m chemeleon_jax.evaluate`. Protocol: {_protocol(tuned.protocol)}."
    )


def _cell(values, share: bool) -> str:
    if values is None:
        return ""
    if share:
        value, low, high = (f"{100 * x:.1f}" for x in values)
        return f"{value} % ({low} to {high})"
    value, low, high = (f"{x:.3g}" if math.isfinite(x) else "" for x in values)
    return f"{value} ({low} to {high})"


def _protocol(protocol: dict[str, Any]) -> str:
    """The facts that numbers must be stated with, in words."""
    facts = {
        "reference": public_name((protocol.get("reference") or {}).get("name") or ""),
        "energies": public_potentials(protocol.get("potential") or ""),
        "hull": public_name(protocol.get("hull") or ""),
        "relaxed with": public_potentials(protocol.get("relaxed_with") or "nothing"),
        "metastable up to": f"{protocol.get('metastable')} eV/atom above the hull",
        "stable up to": f"{protocol.get('stable')} eV/atom",
        "chemeleon_jax": protocol.get("version"),
    }
    return ", ".join(f"{name} {x}" for name, x in facts.items() if x)


def _credits(card: Card) -> str:
    named = str(card.run or card.model) + str(card.tuned and card.tuned.protocol)
    credits = [text for name, text in CREDITS.items() if name in named]
    licence = f"Licence of the weights: {card.licence}."
    if card.licence == "unknown":
        licence = "No licence is stated; that of the base model binds."
    lines = [
        licence,
        "Method: Chemeleon2, H. Park and A. Walsh, arXiv:2511.07158 (2025).",
        *dict.fromkeys(credits),
    ]
    return "\n".join(f"- {line}" for line in lines)

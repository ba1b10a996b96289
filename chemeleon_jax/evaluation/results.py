"""What an evaluation leaves: crystals.csv, structures.jsonl, summary.json, a table."""

import csv
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from chemeleon_jax.evaluation import opinions
from chemeleon_jax.evaluation.judge import STABLE
from chemeleon_jax.evaluation.protocols.choice import PROTOCOLS
from chemeleon_jax.evaluation.scores import ENERGY_SHARES, SHARES
from chemeleon_jax.evaluation.statistics import Score
from chemeleon_jax.rewards.stability import FAR_BELOW, MAX_FRACTION, METASTABLE
from chemeleon_jax.runs.files import replacing, write_json

COLUMNS = (
    *("index", "name", "formula", "num_atoms", "space_group", "density"),
    *("valid", "reason", "diluted"),
    *("smact_valid", "unique", "novel", "energy", "e_above_hull", "metastable"),
    *("stable", "sun", "msun", "far_below_hull", "msun_near_hull"),
    *("msun_undiluted", "status"),
)
RELAX_COLUMNS = ("energy_unrelaxed", "relax_steps", "relaxed", "relax_rmsd")
RELAX_COLUMNS += ("space_group_unrelaxed",)
RESULTS = ("crystals.csv", "structures.jsonl", "summary.json")  # see `write_results`


def columns_of(protocol: dict[str, Any]) -> tuple[str, ...]:
    """The columns of `crystals.csv`."""
    columns = COLUMNS + (RELAX_COLUMNS if protocol["relaxed"] else ())
    if protocol["relaxed_with"] in protocol["potentials"]:
        columns += ("e_above_hull_unrelaxed",)
    if len(protocol["potentials"]) > 1:
        columns += opinions.columns(list(protocol["potentials"]))
    if metrics := _metrics_of(protocol):
        columns += metrics.columns(list(protocol["potentials"]))
    return columns


def _metrics_of(protocol: dict[str, Any]):
    """The protocol of others that crystals were judged by too, or None."""
    return PROTOCOLS.get(protocol.get("metrics_of", {}).get("name"))


def write_results(out: Path, rows, scores, protocol: dict[str, Any]) -> None:
    """Writes crystals.csv, structures.jsonl and, last of all, summary.json."""
    columns = columns_of(protocol)
    with replacing(out / "crystals.csv") as temporary:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
            table.writeheader()
            table.writerows({"index": i} | row for i, row in enumerate(rows))
    with replacing(out / "structures.jsonl") as temporary:
        with open(temporary, "w") as file:
            for i, row in enumerate(rows):
                names = ("name", "structure", "initial_structure")
                kept = {name: row[name] for name in names if name in row}
                line = {"index": i, "structure": None} | kept
                file.write(json.dumps(line) + "\n")
    write_json(
        out / "summary.json",
        {
            "protocol": protocol,
            "num_crystals": len(rows),
            "scores": {
                name: {k: None if np.isnan(v) else v for k, v in s._asdict().items()}
                for name, s in scores.items()
            },
            "reasons": dict(Counter(row["reason"] for row in rows).most_common()),
            "status": dict(Counter(row["status"] for row in rows).most_common()),
        },
    )
    shutil.rmtree(out / "partial")


def print_table(source: Path, rows, scores, protocol: dict[str, Any]) -> None:
    """Prints the scores, and the protocol they were taken by."""
    print(f"\n{source}: {len(rows)} crystals, mean and 95 % bootstrap interval")
    width = max(22, *(len(name) + 2 for name in scores))
    metrics = _metrics_of(protocol)
    for name, score in scores.items():
        if metrics and "/" in name:
            shown = _show(score, metrics.unit(name), np.isfinite(score.low))
            shown += " *" if metrics.is_of_reference(name) else ""
        else:
            shown = _show(score, _unit(name))
        print(f"  {name:{width}}{shown}")
    if metrics:
        print(
            f"* of --reference={protocol['reference']['name']} and its hulls, in place "
            f"of {protocol['metrics_of']['reference_instead_of']}"
        )
    reference, matcher = protocol["reference"], protocol["matcher"]
    relaxed = "as they are, not relaxed"
    if protocol["relaxed"]:
        relaxed = f"relaxed with {protocol['relaxed_with']}"
    energies = "no energies"
    if protocol["potential"] != "none":
        energies = (
            f"potential {protocol['potential']}, hull of {protocol['hull']}; "
            f"metastable up to {METASTABLE} eV/atom, stable up to {STABLE:g} eV/atom "
            f"above the hull, far below it: under {FAR_BELOW:g}"
        )
    print(
        f"Reference {reference['name']} ({reference['size']} crystals); pymatgen "
        f"StructureMatcher, "
        + ", ".join(f"{k} {v:g}" for k, v in matcher.items())
        + f"; crystals {relaxed}; {energies}; diluted: one element in more than "
        f"{MAX_FRACTION:.0%} of the atoms; valid: no contact under "
        f"{protocol['min_distance']} Å; composition: SMACT {protocol['smact']}; "
        f"features of {protocol['vae']}"
    )


def _unit(name: str) -> str:
    what = name.partition(":")[0]  # what follows says by which potential
    if what.removesuffix("_unrelaxed") in SHARES + ENERGY_SHARES:
        return "%"
    return "eV/atom" if what.startswith("e_above_hull") else ""


def _show(score: Score, unit: str, with_interval: bool = True) -> str:
    """A score as the table has it, shares in percent."""
    value, low, high = score
    if unit == "%":
        interval = f"  [{low:.1%}, {high:.1%}]" if with_interval else ""
        return f"{value:8.1%}{interval}"
    interval = f"  [{low:.3f}, {high:.3f}]" if with_interval else ""
    return f"{value:8.3f}{interval} {unit}"

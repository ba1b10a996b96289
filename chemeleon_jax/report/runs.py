"""Reads what a run and its evaluations left on disk; what is missing becomes a note."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from google.protobuf.message import DecodeError
from pymatgen.core import Structure

from chemeleon_jax.data.crystals import crystals_of, read_structure, to_structures
from chemeleon_jax.errors import UserError
from chemeleon_jax.runs import states
from chemeleon_jax.runs.iteration_files import last_iteration_file, read_iteration
from chemeleon_jax.runs.tracking import read_scalars

FLAGS = ("valid", "smact_valid", "unique", "novel", "metastable", "stable")
FLAGS += ("sun", "msun", "far_below_hull", "msun_near_hull", "diluted")
FLAGS += ("msun_undiluted",)
NUMBERS = ("e_above_hull", "density", "num_atoms", "energy", "reward")


@dataclass
class CrystalSet:
    """Crystals of one policy, with what is known of each."""

    label: str
    table: pd.DataFrame  # one row a crystal; any of FLAGS, NUMBERS, formula, ...
    structures: dict[int, Structure]  # by `index` of the table
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)

    @property
    def valid(self) -> pd.DataFrame:
        """The rows of the valid crystals; all, where that is unknown."""
        return self.table[self.table["valid"]] if "valid" in self.table else self.table


@dataclass
class Run:
    """An RL run: curves, and its crystals where it has any.

    `tuned` are fresh crystals of the policy and `base` of the model it started from;
    `seen` are the last that it was trained on, for a run without evaluation.
    """

    name: str
    config: dict[str, Any]
    curves: dict[str, tuple[np.ndarray, np.ndarray]]
    tuned: CrystalSet | None = None
    base: CrystalSet | None = None
    seen: CrystalSet | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def component_names(self) -> list[str]:
        """Of the reward, by the config; none of a config that cannot be read."""
        try:
            return [str(name) for name in self.config["reward"]["components"]]
        except (KeyError, TypeError):
            return []

    @property
    def sets(self) -> list[CrystalSet]:
        """Evaluated sets, the tuned one first."""
        return [s for s in (self.tuned, self.base) if s is not None]

    @property
    def shown(self) -> list[CrystalSet]:
        """Evaluated sets; without them the crystals that it has seen, if any."""
        return self.sets or [s for s in (self.seen,) if s is not None]


def load_run(directory: Path, samples: Path) -> Run:
    """Everything that a report shows of a run.

    Raises:
      UserError: there is no such directory. Nothing else is an error.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: no such run directory")
    run = Run(directory.resolve().name, {}, {})
    try:
        run.curves = read_scalars(directory)
    except (OSError, ValueError, DecodeError) as e:
        run.notes.append(f"TensorBoard events in {directory} cannot be read: {e}")
    try:
        run.config = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError):
        run.notes.append(f"{directory} has no readable config.json.")
    if not run.curves:
        run.notes.append(
            f"{directory} has no TensorBoard events, so there are no curves: has it "
            "finished an iteration?"
        )
    run.tuned = load_evaluation(samples, "tuned", run.notes)
    if run.tuned is not None:
        run.base = load_evaluation(samples / "base", "base", run.notes)
        note_age(directory, samples, run.notes)
    else:
        run.seen = load_seen(directory, run.notes)
    if not run.sets or run.base is None:
        run.notes.append(
            f"To see what {run.name} has gained, sample and evaluate it with its base:"
            f"\npython -m chemeleon_jax.sample --checkpoint={directory} --base "
            f"--num_samples=500 --out={samples}\n"
            f"python -m chemeleon_jax.evaluate {samples}"
        )
    return run


def note_age(directory: Path, samples: Path, notes: list[str]) -> None:
    """Notes crystals of an earlier state than what `sample` would take now."""
    try:
        manifest = json.loads((samples / "manifest.json").read_text())
        best = manifest["weights"] == "best" or manifest["checkpoint"].endswith("@best")
        now = states.find_iteration(directory / "checkpoints", best=best)
        then = manifest["iteration"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # crystals from elsewhere
    if then not in (None, now):
        notes.append(
            f"{samples}: of iteration {then}, and the run is at {now}; sample and "
            "evaluate again to see what it makes now."
        )


def load_evaluation(directory: Path, label: str, notes: list[str]) -> CrystalSet | None:
    """The evaluation beside a crystals file; None, and a note, without a usable one."""
    folder = directory / "evaluation"
    if not folder.is_dir():
        found = "not evaluated" if directory.is_dir() else "no such directory"
        notes.append(f"No evaluation in {directory}: {found}.")
        return None
    try:
        table = pd.read_csv(folder / "crystals.csv")
        table["index"] = table["index"].astype(int)
    except (OSError, ValueError, KeyError) as e:
        notes.append(f"{folder / 'crystals.csv'} cannot be read: {e}")
        return None
    for name in FLAGS:
        if name in table:
            # Empty where it was not determined, which counts as no.
            table[name] = table[name].astype(str).str.lower().isin(("true", "1", "1.0"))
    for name in table:
        if str(name).partition(":")[0] in NUMBERS:  # e_above_hull:chgnet too
            table[name] = pd.to_numeric(table[name], errors="coerce")
    found = CrystalSet(label, table, load_structures(folder, notes))
    try:
        summary = json.loads((folder / "summary.json").read_text())
        found.scores = dict(summary["scores"])
        found.protocol = dict(summary["protocol"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        notes.append(f"{folder / 'summary.json'} cannot be read: {e!r}")
    return found


def load_structures(folder: Path, notes: list[str]) -> dict[int, Structure]:
    """Structures by index; a line that is none is left out, and counted in a note."""
    structures, bad = {}, 0
    try:
        lines = (folder / "structures.jsonl").read_text().splitlines()
    except (OSError, UnicodeDecodeError) as e:
        notes.append(f"No structures to draw: {e}")
        return {}
    for line in lines:
        try:
            entry = json.loads(line)
            if entry["structure"] is not None:
                structures[int(entry["index"])] = read_structure(entry["structure"])
        except (ValueError, KeyError, TypeError, AttributeError):
            bad += 1
    if bad:
        notes.append(
            f"{folder / 'structures.jsonl'}: {bad} of {len(lines)} lines hold no "
            "structure."
        )
    return structures


def load_seen(directory: Path, notes: list[str]) -> CrystalSet | None:
    """The crystals of a run's last iteration, scored by the run itself."""
    file = last_iteration_file(directory)
    if file is None:
        return None
    try:
        arrays = read_iteration(file)
    except UserError as e:
        notes.append(str(e))
        return None
    known = {n: arrays[n] for n in ("e_above_hull", *FLAGS) if n in arrays}
    known |= {"reward": arrays["total"], "num_atoms": arrays["mask"].sum(-1)}
    structures = to_structures(crystals_of(arrays))
    table = pd.DataFrame({"index": range(len(structures)), **known})
    table["formula"] = [s.composition.reduced_formula if s else "" for s in structures]
    table["density"] = [s.density if s else np.nan for s in structures]
    drawable = {i: s for i, s in enumerate(structures) if s is not None}
    return CrystalSet("last iteration", table, drawable)

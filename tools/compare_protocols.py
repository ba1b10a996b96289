"""This package's numbers beside those of LeMat-GenBench and MatterGen.

    python -m tools.compare_protocols DATA

DATA is what `tools.record_protocols` prepared and recorded.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np
from pymatgen.core import Lattice, Structure

from chemeleon_jax import evaluate
from chemeleon_jax.data.crystals import from_structures
from chemeleon_jax.data.dataset import Dataset
from chemeleon_jax.data.readers.item import Item
from chemeleon_jax.evaluation.judge import EvaluationContext
from chemeleon_jax.evaluation.protocols.lemat import LeMat
from chemeleon_jax.evaluation.protocols.lemat_scores import displacement
from chemeleon_jax.evaluation.protocols.mattergen import MatterGen
from chemeleon_jax.evaluation.protocols.mattergen_checks import relaxation_rmsd
from chemeleon_jax.evaluation.statistics import resample
from chemeleon_jax.models.loading import load_checkpoint
from chemeleon_jax.models.vae import make_vae
from chemeleon_jax.rewards.matches import index_references
from chemeleon_jax.workers.matching import cell_of
from chemeleon_jax.workers.pool import WorkerPool
from tools.protocol_packages import JUDGES, read, structures_of
from tools.record_protocols import NAMES, hull_of


def compare(data: Path) -> None:
    """This package's numbers beside the packages'."""
    crystals, recorded = read(data / "set.json"), read(data / "record.json")
    for name, judge in (("lemat", by_lemat), ("mattergen", by_mattergen)):
        rows, scores = judge(crystals, recorded, data)
        theirs = recorded[name]["scores"]
        print(f"\n{name}: {len(rows)} crystals")
        for ours, there in NAMES[name].items():
            value, other = scores[f"{name}/{ours}"].value, theirs[there]
            print(
                f"  {ours:34}{value:14.8f}{other:14.8f}  {value - other:9.1e}  {there}"
            )
        for column, values in recorded_columns(name, recorded).items():
            found = [row.get(f"{name}/{column}") for row in rows]
            pairs = [
                (i, a, b)
                for i, (a, b) in enumerate(zip(found, values, strict=True))
                if b is not None
            ]
            differ = [p for p in pairs if p[1] is None or abs(p[1] - p[2]) > 1e-6]
            print(
                f"  {column:34}{len(pairs)} crystals, {len(differ)} differ {differ[:5]}"
            )


def recorded_columns(name: str, recorded: dict) -> dict[str, list]:
    """What the packages say of each crystal, None where they say nothing."""
    found = recorded[name]
    if name == "lemat":
        return {k: found[k] for k in ("charge", "distance", "plausible", "space_group")}
    columns = {
        "unique": "unique",
        "novel": "novel",
        "structure_validity": "structure_validity",
        "comp_validity": "comp_validity",
        "stable": "stable",
        "rmsd_from_relaxation": "rmsd_from_relaxation",
    }
    return {ours: found["columns"][theirs] for ours, theirs in columns.items()}


def judged(crystals: dict, structures, protocol, data: Path):
    """Rows of structures, judged without energies, and the context."""
    mini = load_checkpoint("mini:vae")
    pool = WorkerPool(1, time_limit=60.0)
    context = EvaluationContext(
        references=index_references(protocol.dataset.crystals),
        pool=pool,
        vae=(make_vae(mini.config["vae"]), mini.params["vae"]),
        judges={},
        relax=None,
        relaxer="",
        width=20,
        chunk=256,
        protocol=protocol,
    )
    items = [Item(s, "", str(i)) for i, s in enumerate(structures)]
    return evaluate.judge_all(items, context, data / "judged", {}), context


def known_dataset(crystals: dict):
    """The known crystals as a data set."""
    known = from_structures(structures_of(crystals["known"]), 20)
    ids = np.arange(len(known.mask)).astype(str)
    return Dataset(known, {}, ids, np.zeros(len(ids), np.int8))


def by_lemat(crystals: dict, recorded: dict, data: Path):
    """Rows and scores of this package by the one protocol."""
    structures = structures_of(crystals["structures"])
    protocol = LeMat(known_dataset(crystals), {})
    rows, context = judged(crystals, structures, protocol, data)
    protocol = dataclasses.replace(protocol, relaxations=dict.fromkeys(JUDGES))
    moved = [rotated(s) for s in structures_of(crystals["deformed"])]
    for i, row in enumerate(rows):
        for name in JUDGES:
            row[f"e_above_hull:{name}"] = crystals[f"above:structures:{name}"][i]
            if row["lemat/valid"]:
                rmse = displacement(structures[i], moved[i])
                row[f"lemat/relaxation_rmse:{name}"] = rmse
    context.judges |= {name: (None, hull_of(crystals, name)) for name in JUDGES}
    protocol.finish(rows, context)
    scores = protocol.score(rows, context, resample(len(rows), 2, 0))
    context.pool.close()
    found = recorded["lemat"]
    numbers = iter(found["space_group"])
    checks = zip(found["charge"], found["distance"], found["plausible"], strict=True)
    found["space_group"] = [next(numbers) if all(some) else None for some in checks]
    return rows, scores


def rotated(structure: Structure) -> Structure:
    """The same crystal as a batch holds it: cell by its parameters, atoms inside."""
    frac = structure.frac_coords * np.sign(np.linalg.det(structure.lattice.matrix))
    lattice = Lattice.from_parameters(*structure.lattice.parameters)
    return Structure(lattice, structure.species, frac % 1.0)


def by_mattergen(crystals: dict, recorded: dict, data: Path):
    """Rows and scores of this package by the other."""
    kept = recorded["mattergen"]["kept"]
    structures, relaxed = (
        [structures_of(crystals[kind])[i] for i in kept]
        for kind in ("structures", "relaxed")
    )
    protocol = MatterGen(known_dataset(crystals), False)
    rows, context = judged(crystals, relaxed, protocol, data)
    protocol = dataclasses.replace(protocol, with_energies=True)
    for row, before, after, i in zip(rows, structures, relaxed, kept, strict=True):
        row["e_above_hull"] = crystals[f"above:relaxed:{JUDGES[0]}"][i]
        cells = cell_of(before), cell_of(after)
        row["mattergen/rmsd_from_relaxation"] = relaxation_rmsd(cells)
    protocol.finish(rows, context)
    scores = protocol.score(rows, context, resample(len(rows), 2, 0))
    context.pool.close()
    ours = np.array(crystals[f"energy:relaxed:{JUDGES[0]}"])[kept]
    theirs = np.array(recorded["mattergen"]["corrected"])
    print(
        f"\nMP2020-corrected energies differ by {abs(ours - theirs).max():.1e} eV/atom"
    )
    return rows, scores


if __name__ == "__main__":
    compare(Path(sys.argv[1]))

"""What a screening leaves in its folder: tables, databases, crystals, VASP inputs."""

import csv
import math
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import pandas as pd
from ase.calculators.singlepoint import SinglePointCalculator
from pymatgen.core import Structure
from pymatgen.io.cif import CifWriter
from pymatgen.io.vasp.sets import MPRelaxSet, MPScanRelaxSet

from chemeleon_jax.data.crystals import read_structure
from chemeleon_jax.runs.files import replacing, write_json
from chemeleon_jax.screening.sieve import total_drop
from chemeleon_jax.screening.symmetry import LOOSE
from chemeleon_jax.workers.calculators import to_atoms

VASP_SETS = {"MPRelaxSet": MPRelaxSet, "MPScanRelaxSet": MPScanRelaxSet}
FOLDERS = ("cif", "vasp")
FILES = ("all.csv", "candidates.csv", "candidates.parquet", "summary.json")
ALL_COLUMNS = ("index", "name", "formula", "num_atoms", "stage", "reason", "detail")


def written_group(record: dict) -> str:
    """Space group of the cells that are written; "" of a crystal as it was."""
    tolerance = record["tolerance"]
    return record["space_group"][f"{tolerance:g}"] if tolerance else ""


def known_group(record: dict) -> str:
    """Space group for a reader: of the cells written, or else within 0.1 Å."""
    found = record["space_group"].get(f"{LOOSE:g}")
    return written_group(record) or found or "unknown"


def distance_columns(judges: list[str]) -> list[str]:
    """What `all.csv` has besides: distances from the hulls, by each potential."""
    return [f"e_above_hull:{name}" for name in judges]


def candidate_columns(record: dict, judges: list[str]) -> dict[str, Any]:
    """One line of the table of candidates, in flat columns."""
    stable = record.get("stability") or {}
    groups = record["space_group"]
    line = {
        "rank": record["rank"],
        "index": record["index"],
        "name": record["name"],
        "formula": record["formula"],
        "num_atoms": len(record["primitive"]["sites"]),
        "space_group": written_group(record),
        **{f"space_group:{tolerance}": x for tolerance, x in groups.items()},
        "symmetry_tolerance": record["tolerance"],
        "symmetry_rise": record["rise"],
        "symmetry_problem": record["symmetry_problem"],
        "smact_valid": record["smact_valid"],
        "e_above_hull:mean": record["e_above_hull:mean"],
        "e_above_hull:spread": record["e_above_hull:spread"],
    }
    for what in ("energy", "e_above_hull"):
        line |= {f"{what}:{name}": record[f"{what}:{name}"] for name in judges}
    line |= {f"above_known:{n}": record["above_known"].get(n) for n in judges}
    line["known"] = "; ".join(f"{k['formula']} ({k['id']})" for k in record["known"])
    line["known_distance"] = record["known"][0]["distance"]
    for name in ("lowest_frequency", "lowest_at_gamma", "lowest_stiffness"):
        line[name] = stable.get(name)
    line |= {name: stable.get(name) for name in ("bulk_modulus", "shear_modulus")}
    descents = record.get("descents", [])
    line["descent_along"] = ", ".join(descent["along"] for descent in descents)
    line["descent_drop"] = total_drop(descents) if descents else None
    size = stable.get("supercell")
    line["supercell"] = "x".join(map(str, size)) if size else ""
    return line


def candidate_table(candidates: list[dict], judges: list[str]) -> pd.DataFrame:
    """A row for each candidate; without any, the first columns."""
    columns = [candidate_columns(record, judges) for record in candidates]
    return pd.DataFrame(columns, columns=None if columns else ["rank", "formula"])


def write_results(
    out: Path, rows: list[dict], candidates: list[dict], summary: dict[str, Any]
) -> None:
    """Writes everything but the page; `summary.json` last.

    Args:
      out: the folder.
      rows: of all crystals, with `ALL_COLUMNS`.
      candidates: records, best first.
      summary: protocol and counts.
    """
    judges = list(summary["protocol"]["potentials"])
    with replacing(out / "all.csv") as file, open(file, "w", newline="") as text:
        names = [*ALL_COLUMNS, *distance_columns(judges)]
        table = csv.DictWriter(text, names, restval="", extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
    columns = [candidate_columns(c, judges) for c in candidates]
    lines = candidate_table(candidates, judges)
    with replacing(out / "candidates.csv") as file:
        lines.to_csv(file, index=False)
    with replacing(out / "candidates.parquet") as file:
        lines.to_parquet(file, index=False)
    structures = [read_structure(c["conventional"]) for c in candidates]
    primitives = [read_structure(c["primitive"]) for c in candidates]
    write_atoms(out, primitives, columns, judges[0])
    for name in FOLDERS:  # of an earlier screening in this folder
        shutil.rmtree(out / name, ignore_errors=True)
    for record, conventional, primitive in zip(
        candidates, structures, primitives, strict=True
    ):
        label = f"{record['rank']:03d}_{record['formula']}"
        write_cifs(out / "cif", label, record["cif"], conventional, primitive)
        write_vasp(out / "vasp" / label, primitive)
    write_json(out / "summary.json", summary)


def write_atoms(
    out: Path, structures: list[Structure], columns: list[dict], main: str
) -> None:
    """Writes `candidates.db` and `.extxyz`, with energies by the main potential.

    They are of the cells that are written: of crystals put under their symmetry.
    """
    frames = []
    for structure, line in zip(structures, columns, strict=True):
        atoms = to_atoms(structure)
        energy = (line[f"energy:{main}"] + line["symmetry_rise"]) * len(atoms)
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
        atoms.info = {
            "screen_" + re.sub(r"\W", "_", name): value
            for name, value in line.items()
            if _is_value(value)
        }
        frames.append(atoms)
    if not frames:  # a database of nothing cannot be written
        for name in ("candidates.extxyz", "candidates.db"):
            (out / name).unlink(missing_ok=True)
        return
    with replacing(out / "candidates.extxyz") as file:
        ase.io.write(file, frames, format="extxyz")
    connect: Any = ase.db.connect  # whose type does not say that it is a context
    with (
        replacing(out / "candidates.db") as file,
        connect(file, type="db") as database,
    ):
        for atoms, line in zip(frames, columns, strict=True):
            # Names that look like numbers are no values of keys there.
            facts = {k: v for k, v in atoms.info.items() if not isinstance(v, str)}
            database.write(atoms, key_value_pairs=facts, data=line)


def _is_value(x: Any) -> bool:
    """An empty string would swallow what follows it in extended XYZ."""
    return bool(x) if isinstance(x, str) else x is not None and math.isfinite(x)


def write_cifs(
    folder: Path,
    label: str,
    symmetric: str | None,
    conventional: Structure,
    primitive: Structure,
) -> None:
    """Writes the conventional cell, with its symmetry if any, and the primitive one."""
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        texts = {
            "conventional": symmetric or str(CifWriter(conventional)),
            "primitive": str(CifWriter(primitive)),
        }
    for name, text in texts.items():
        (folder / f"{label}_{name}.cif").write_text(text, encoding="utf-8")


def write_vasp(folder: Path, structure: Structure) -> None:
    """Writes inputs of two calculations, and which POTCAR files they need."""
    for name, make in VASP_SETS.items():
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that POTCAR files are not there
            inputs = make(structure)
            files = {"INCAR": inputs.incar, "POSCAR": inputs.poscar}
            if inputs.kpoints is not None:  # else the INCAR has a KSPACING
                files["KPOINTS"] = inputs.kpoints
            for file, content in files.items():
                (place / file).write_text(f"{content}".rstrip() + "\n")
            symbols = " ".join(inputs.potcar_symbols)
            functional = inputs.user_potcar_functional
        (place / "POTCAR.txt").write_text(
            f"{functional}: {symbols}\n"
            "VASP's licence does not let us bring POTCAR files along: join those of "
            "these names, in this order, to a file POTCAR.\n"
        )

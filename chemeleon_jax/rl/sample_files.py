"""What sampling leaves on disk: batches while it goes on, then crystals."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from chemeleon_jax.data.crystals import (
    VALIDITY_REASONS,
    chemical_system,
    empty_batch,
    formula_key,
    formula_keys,
    to_structures,
    validity,
)
from chemeleon_jax.data.dataset import MAX_ATOMS
from chemeleon_jax.data.formula import parse_chemical_system, parse_composition
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.devices import distributed
from chemeleon_jax.errors import UserError
from chemeleon_jax.runs.files import (
    read_json,
    read_npz,
    refuse_foreign,
    replacing,
    write_json,
)

LOCK = ".lock"  # in OUT
PARTIAL = "partial"  # in OUT: batches of crystals, until all are there
MARK = "sampling.json"  # in PARTIAL: of which command
FIELDS = tuple(field.name for field in dataclasses.fields(CrystalBatch))
WRITTEN = ("crystals.jsonl", "manifest.json", "cif", "base", "evaluation")


def check_free(out: Path, overwrite: bool) -> None:
    """Refuses a directory that holds crystals.

    Raises:
      UserError: it does, and nobody asked to replace them.
    """
    found = [name for name in WRITTEN if (out / name).exists()]
    if found and not overwrite and not (out / PARTIAL / MARK).is_file():
        raise UserError(
            f"--out={out}: holds {found[0]} already; give another directory, or "
            "--overwrite to replace it"
        )


def prepare_partial(out: Path, overwrite: bool, facts: Any) -> None:
    """Leaves the folder of finished batches to the command that began it.

    The facts, JSON values, are all that the crystals depend on.

    Raises:
      UserError: that was another one, and nobody asked to replace what it made.
    """
    facts = json.dumps(facts, sort_keys=True, default=str)
    name = {"sha256": hashlib.sha256(facts.encode()).hexdigest()}
    mark = out / PARTIAL / MARK
    if mark.is_file() and read_json(mark) == name:
        return
    if mark.is_file() and not overwrite:
        raise UserError(
            f"--out={out}: holds another sampling, not finished; give its command "
            "again, another directory, or --overwrite to replace it"
        )
    if overwrite:
        remove_old(out)
    refuse_foreign(mark.parent, mark)
    shutil.rmtree(mark.parent, ignore_errors=True)
    write_json(mark, name)


def remember_batch(
    folder: Path, size: int, i: int, compute: Callable[[], CrystalBatch]
) -> CrystalBatch:
    """Batch number i that an earlier try has left in a folder, or else `compute()`'s.

    All processes compute it; the first one alone writes it. Where it was read, it is
    only padding, `size` crystals of it, on the others.
    """
    file = folder / f"{size}_{i:06d}.npz"
    there = distributed.is_first() and file.is_file()
    if not distributed.broadcast_from_first(int(there)):
        crystals = compute()
        if distributed.is_first():
            with replacing(file) as temporary:
                np.savez(temporary, **vars(crystals))
        return crystals
    if not distributed.is_first():
        return empty_batch(size, MAX_ATOMS)
    return CrystalBatch(**read_npz(file, "a batch of crystals", FIELDS))


def remove_old(out: Path) -> None:
    """Removes what an earlier sampling, and the evaluation of it, wrote."""
    for name in WRITTEN:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def describe_crystals(crystals: CrystalBatch) -> list[dict[str, Any]]:
    """What is told of each sampled crystal, JSON values."""
    reasons = [VALIDITY_REASONS[code] for code in validity(crystals)]
    return [
        {"index": i, "num_atoms": int(n), "valid": r == "valid", "reason": r}
        for i, (n, r) in enumerate(zip(crystals.mask.sum(-1), reasons, strict=True))
    ]


def write_crystals(
    directory: Path, crystals: CrystalBatch, made_from: dict[str, Any], *, cif: bool
) -> None:
    """Writes crystals.jsonl, on request cif/, and last of all manifest.json."""
    structures, lines = to_structures(crystals), describe_crystals(crystals)
    with replacing(directory / "crystals.jsonl") as temporary:
        with open(temporary, "w", encoding="utf-8") as file:
            for structure, line in zip(structures, lines, strict=True):
                found = structure and structure.as_dict(verbosity=0)
                file.write(json.dumps(line | {"structure": found}) + "\n")
    if cif:
        (directory / "cif").mkdir(exist_ok=True)
        for i, structure in enumerate(structures):
            if structure is not None:
                formula = structure.composition.reduced_formula
                structure.to(str(directory / "cif" / f"{i:06d}_{formula}.cif"))
    reasons = [line["reason"] for line in lines]
    counts = {r: reasons.count(r) for r in VALIDITY_REASONS if r in reasons}
    manifest = {
        **made_from,
        "num_samples": len(reasons),
        "counts": counts,
        "validity": reasons,
    }
    write_json(directory / "manifest.json", manifest)


def print_counts(
    directory: Path, crystals: CrystalBatch, composition: str | None, system: str | None
) -> None:
    """Prints how many crystals are valid, and how many are what was asked for."""
    count = len(crystals.mask)
    shown = f"{directory}: {count} crystals, {(validity(crystals) == 0).sum()} valid"
    numbers = np.where(crystals.mask, crystals.atom_types, 0)
    if composition is not None:
        atoms, _ = parse_composition(composition)
        wanted = [e.Z for e, n in atoms.items() for _ in range(round(n))]
        keys = formula_keys(numbers)
        right = sum(key == formula_key(wanted) for key in keys)
        shown += f", {right} of composition {atoms.reduced_formula}"
    elif system is not None:
        name = "-".join(sorted(parse_chemical_system(system)))
        right = sum(chemical_system(row) == name for row in numbers)
        shown += f", {right} of chemical system {name}"
    print(shown)

"""Program: from sampled crystals to the few that are worth a DFT calculation.

    python -m chemeleon_jax.screen runs/rl_dng/samples --out=screened
    python -m chemeleon_jax.screen others.extxyz --out=screened --num_candidates=50

Drops what is invalid, twice there, known, disputed between potentials, far above the
hull or far below it; puts what is left under its symmetry, and drops what a vibration
or a strain would take away. Writes tables, CIFs, VASP inputs and a page, `index.html`,
of the best. The same command continues a screening that was cut off. See
docs/screening.md.
"""

import argparse
import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from pymatgen.core import Structure

from chemeleon_jax import __version__
from chemeleon_jax.data.crystals import from_structures, read_structure
from chemeleon_jax.data.dataset import Dataset
from chemeleon_jax.data.readers.item import Item
from chemeleon_jax.errors import ProgramParser, UserError, exit_status, run_program
from chemeleon_jax.evaluation import opinions
from chemeleon_jax.evaluation.inputs import load_reference, read_set
from chemeleon_jax.evaluation.judge import (
    EvaluationContext,
    Row,
    judge_chunk,
    judge_set,
)
from chemeleon_jax.evaluation.partial import in_chunks, prepare_partial
from chemeleon_jax.evaluation.terms import (
    POTENTIALS,
    TIME_LIMIT,
    Terms,
    load_judges,
    make_context,
)
from chemeleon_jax.potentials import relax
from chemeleon_jax.potentials.loading import load_potential
from chemeleon_jax.potentials.types import Potential
from chemeleon_jax.runs.directory import work_directory
from chemeleon_jax.runs.files import replacing, user_path
from chemeleon_jax.screening import sieve, stability
from chemeleon_jax.screening.known import nearest_known
from chemeleon_jax.screening.page import make_page
from chemeleon_jax.screening.phonons import EDGE, MAX_ATOMS
from chemeleon_jax.screening.results import write_results
from chemeleon_jax.screening.symmetry import LOOSE, MAX_RISE, TIGHT, symmetrise_all
from chemeleon_jax.workers.pool import WorkerPool

STABILITY = "sevennet-0"  # that vibrations and stiffness are of; no judge
CHUNK = 64  # crystals of up to 20 atoms judged, and kept on disk, at once
EXAMINED = 8  # crystals whose stability is looked at, likewise
MIN_FREQUENCY = -0.5  # THz
CUSPS = (
    "CHGNet's energy has cusps where bonds stand in line, so that its second "
    "derivatives call stable crystals unstable, rock salt for one: see "
    "docs/screening.md."
)
LOCK = ".lock"  # in the folder of results


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = ProgramParser("chemeleon_jax.screen", __doc__)
    add = parser.add_argument
    add("samples", type=user_path, metavar="SAMPLES", help="what evaluate reads")
    add("--out", type=user_path, required=True, help="folder of the results")
    add("--reference", default="mp_mini", help="known crystals: mp_mini, DIR or FILE")
    add(
        "--potential",
        default=POTENTIALS,
        help=f"that judge, split by commas; the first relaxes (default {POTENTIALS})",
    )
    add(
        "--stability_with",
        default=STABILITY,
        metavar="POTENTIAL",
        help=f"of vibrations and stiffness, or none (default {STABILITY})",
    )
    add("--num_candidates", type=int, default=20, help="that are wanted")
    add("--max_e_above_hull", type=float, default=0.1, help="eV/atom, by every judge")
    add("--max_spread", type=float, default=0.1, help="eV/atom, between the judges")
    add("--min_frequency", type=float, default=MIN_FREQUENCY, help="below 0: imaginary")
    add("--keep_known", action="store_true", help="known crystals are no reason")
    add("--max_force", type=float, default=relax.MAX_FORCE, help="eV/Å, to stop at")
    add("--relax_steps", type=int, default=2 * relax.MAX_STEPS)
    add("--workers", type=int, help="processes; by default as many as CPUs")
    return parser.parse_args(argv)


def screen(args: argparse.Namespace) -> None:
    """Takes crystals through the steps, and writes what is left."""
    check(args)
    terms = terms_of(args)
    items = read_set(args.samples)
    dataset = load_reference(terms.reference)
    with (
        work_directory(args.out, option="--out", lock=LOCK),
        WorkerPool(args.workers, time_limit=TIME_LIMIT) as pool,
    ):
        judges = load_judges(terms, dataset)
        steadier, note = load_stability(args.stability_with)
        protocol = describe_protocol(args, dataset, judges)
        context = make_context(terms, dataset, None, judges, pool, items)
        chunk = max(CHUNK * 20 // context.width, 1)
        context = dataclasses.replace(context, chunk=chunk)
        partial_results = args.out / "partial"
        prepare_partial(partial_results, items, inputs_of(protocol))

        limits = limits_of(args)
        rows = first_look(items, pool, partial_results)
        judge(rows, items, context, partial_results)
        for row in open_rows(rows):
            row["reason"], row["detail"] = sieve.second_look(row, list(judges), limits)
        ranked = sorted(open_rows(rows), key=lambda row: row["e_above_hull:mean"])
        candidates = examine(
            ranked, context, steadier, limits, args.num_candidates, partial_results
        )
        describe(candidates, judges, dataset)
        finish(args.out, rows, candidates, protocol, [note] if note else [])


def check(args: argparse.Namespace) -> None:
    """Raises UserError for flags out of range, or at odds with each other."""
    names = args.potential.split(",")
    if "none" in names or len({*names}) < len(names):
        raise UserError(
            f"--potential={args.potential}: name each potential once, with commas "
            "between; a screening needs one at least"
        )
    above_zero = ("num_candidates", "max_e_above_hull", "max_spread", "max_force")
    for name in (*above_zero, "relax_steps", "workers"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name}={value}: must be above 0")
    if not -math.inf < args.min_frequency <= 0:
        raise UserError(
            f"--min_frequency={args.min_frequency}: imaginary frequencies are below 0"
        )


def load_stability(name: str) -> tuple[Potential | None, str]:
    """The potential of vibrations and stiffness, if any, and what to say of it."""
    unchecked = "dynamical and elastic stability were not checked"
    if name == "none":
        return None, f"--stability_with=none: {unchecked}."
    potential = load_potential(name)
    if potential.network is None:
        return None, f"{name} has no second derivatives here: {unchecked}."
    return potential, CUSPS if name == "chgnet" else ""


def terms_of(args: argparse.Namespace) -> Terms:
    """How crystals are relaxed and judged."""
    return Terms(
        reference=args.reference,
        potential=args.potential,
        relax_steps=args.relax_steps,
        max_force=args.max_force,
        workers=args.workers,
    )


def limits_of(args: argparse.Namespace) -> sieve.Limits:
    """What a candidate must keep to."""
    return sieve.Limits(
        max_e_above_hull=args.max_e_above_hull,
        max_spread=args.max_spread,
        min_frequency=args.min_frequency,
        keep_known=args.keep_known,
    )


def describe_protocol(args, dataset: Dataset, judges) -> dict[str, Any]:
    """What the results depend on, and must be stated with them."""
    return {
        "samples": str(args.samples),
        "reference": {
            "name": args.reference,
            "size": len(dataset),
            "sha256": dataset.digest,
        },
        "potentials": {
            name: {
                "sha256": potential.digest,
                "corrections": potential.scheme,
                "hull_entries": len(hull),
            }
            for name, (potential, hull) in judges.items()
        },
        "relaxed_with": next(iter(judges)),
        "relax_steps": args.relax_steps,
        "max_force": args.max_force,
        "limits": vars(limits_of(args)),
        "symmetry": {"tight": TIGHT, "loose": LOOSE, "max_rise": MAX_RISE},
        "stability": {
            "potential": args.stability_with,
            "max_force": stability.MAX_FORCE,
            "max_steps": stability.MAX_STEPS,
            "supercell_edge": EDGE,
            "supercell_atoms": MAX_ATOMS,
        },
        "num_candidates": args.num_candidates,
        "version": __version__,
    }


def inputs_of(protocol: dict[str, Any]) -> dict[str, Any]:
    """The part of a protocol that relaxed and judged crystals depend on."""
    later = ("limits", "symmetry", "stability", "num_candidates", "samples")
    return {name: x for name, x in protocol.items() if name not in later}


# ----------------------------------------------------------------------------- steps


def first_look(items: list[Item], pool: WorkerPool, folder: Path) -> list[Row]:
    """A row for each crystal; those that are impossible or twice there are dropped."""
    found = in_chunks(
        folder / "first_look",
        items,
        partial(sieve.first_look, pool=pool),
        size=len(items),
        title="validity, copies",
    )
    return [
        {
            "index": i,
            "name": item.name,
            "formula": formula_of(item.structure),
            "num_atoms": len(item.structure or ()),
            "stage": "read",
            **look,
        }
        for i, (item, look) in enumerate(zip(items, found, strict=True))
    ]


def formula_of(structure: Structure | None) -> str:
    """Reduced, "" without a crystal."""
    return structure.composition.reduced_formula if structure else ""


def open_rows(rows: list[Row]) -> list[Row]:
    """Those that were not dropped."""
    return [row for row in rows if not row["reason"]]


def judge(
    rows: list[Row], items: list[Item], context: EvaluationContext, folder: Path
) -> None:
    """Relaxes what is left, and adds to its rows what the potentials say."""
    left, judges = open_rows(rows), list(context.judges)
    found = in_chunks(
        folder / "judged",
        [items[row["index"]] for row in left],
        lambda some: judge_chunk(some, [True] * len(some), context),
        size=context.chunk,
        title="relaxation, energies",
    )
    judge_set(found, context.pool)
    if len(judges) == 1:
        for row in found:
            for what in ("energy", "e_above_hull"):
                row[f"{what}:{judges[0]}"] = row.get(what)
    opinions.add_opinions(found, judges)
    for row, result in zip(left, found, strict=True):
        row |= {k: v for k, v in result.items() if k != "reason"}
        row |= {"stage": "relaxed", "relaxed_reason": result["reason"]}


def examine(
    ranked: list[Row],
    context: EvaluationContext,
    steadier: Potential | None,
    limits: sieve.Limits,
    wanted: int,
    folder: Path,
) -> list[Row]:
    """Symmetry and stability, best first, until as many as are wanted have passed."""
    prepare_partial(
        folder / "examined",
        (),
        [
            [row["index"] for row in ranked],
            steadier and steadier.digest,
        ],
    )
    passed: list[Row] = []
    for row, record in zip(
        ranked,
        in_chunks(
            folder / "examined",
            ranked,
            partial(examine_some, context=context, steadier=steadier),
            size=EXAMINED,
            title="symmetry, stability",
            enough=lambda records: (
                sum(not sieve.third_look(r, limits)[0] for r in records) >= wanted
            ),
        ),
        strict=False,
    ):
        row |= record | {"stage": "examined"}
        row["reason"], row["detail"] = sieve.third_look(record, limits)
        if not row["reason"] and len(passed) < wanted:
            passed.append(row)
    for row in ranked:
        if not row["reason"] and all(row is not other for other in passed):
            row["reason"], row["detail"] = "ranked_lower", ""
    return passed


def examine_some(
    rows: list[Row], context: EvaluationContext, steadier: Potential | None
) -> list[dict]:
    """Symmetry and, with a potential for it, stability of a few crystals."""
    structures = [read_structure(row["structure"]) for row in rows]
    records = symmetrise_all(structures, energies_of(context), context.pool)
    if steadier is None:
        return records
    primitives = [read_structure(record["primitive"]) for record in records]
    refined = stability.refine(primitives, steadier, EXAMINED)
    for record, result in zip(records, refined, strict=True):
        if result.converged:
            found = stability.stability_record(result.structure, steadier)
        else:
            found = {"problem": f"by {steadier.name}, after {result.steps} steps"}
        record["stability"] = found | {"rmsd": float(np.nan_to_num(result.rmsd))}
    return records


def energies_of(context: EvaluationContext) -> Callable[[list[Structure]], np.ndarray]:
    """Energies in eV/atom by the potential that relaxes; in one shape, compiled."""
    energies = context.energies[context.relaxer]

    def evaluate(structures: list[Structure]) -> np.ndarray:
        found = []
        for start in range(0, len(structures), context.chunk):
            some = structures[start : start + context.chunk]
            batch = from_structures(some, context.width, context.chunk)
            energy, _ = jax.device_get(energies(batch))
            found.append(energy[: len(some)].astype(float))
        return np.concatenate(found) if found else np.zeros(0)

    return evaluate


def describe(candidates: list[Row], judges, dataset: Dataset) -> None:
    """Adds rank, and the known compounds nearest to each candidate."""
    known = nearest_known(
        [read_structure(row["primitive"]) for row in candidates],
        [{name: row[f"energy:{name}"] for name in judges} for row in candidates],
        {name: hull for name, (_, hull) in judges.items()},
        dataset,
    )
    for rank, (row, near) in enumerate(zip(candidates, known, strict=True), 1):
        row |= near | {"rank": rank, "stage": "candidate"}


def finish(
    out: Path, rows: list[Row], candidates: list[Row], protocol, notes: list[str]
) -> None:
    """Writes everything, and prints what came out."""
    summary = {
        "protocol": protocol,
        "num_crystals": len(rows),
        "num_candidates": len(candidates),
        "funnel": sieve.funnel([row["reason"] for row in rows]),
        "ranked_by": "e_above_hull:mean, eV/atom, of the potentials",
        "candidates": [
            {"rank": row["rank"], "formula": row["formula"]}
            | {"stability": row.get("stability")}
            for row in candidates
        ],
        "notes": notes,
    }
    write_results(out, rows, candidates, summary)
    page = out / "index.html"
    with replacing(page) as file:
        file.write_text(make_page(rows, candidates, summary), encoding="utf-8")
    for name, count in summary["funnel"].items():
        print(f"  {name.replace('_', ' '):28}{count:7}")
    for note in notes:
        print(note)
    print(f"{page}: {len(candidates)} candidates")


def main(argv: list[str] | None = None) -> int:
    """Runs the program; what the user can put right is one line and status 2."""
    return exit_status(lambda: screen(parse(argv)))


if __name__ == "__main__":
    run_program(main)

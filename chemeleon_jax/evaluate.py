"""Program: what crystals are worth.

    python -m chemeleon_jax.evaluate runs/rl_dng/samples
    python -m chemeleon_jax.evaluate others.extxyz cifs/ --out=evaluations
    python -m chemeleon_jax.evaluate SET --no-relax --potential=chgnet
    python -m chemeleon_jax.evaluate SET --protocol=lemat --export=lemat

Validity, uniqueness, novelty, energy above the hull and what follows from them, each
with a bootstrap interval, of crystals of any generator: relaxed first, and judged by
two potentials, unless the flags say otherwise. Writes a folder `evaluation`
with `crystals.csv`, `structures.jsonl` and `summary.json`. The same command continues
an evaluation that was cut off. See docs/evaluation.md.
"""

import argparse
import contextlib
import dataclasses
from itertools import chain
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from chemeleon_jax.data.readers.item import Item
from chemeleon_jax.devices import distributed
from chemeleon_jax.errors import ProgramParser, exit_status, run_program
from chemeleon_jax.evaluation.description import describe_protocol
from chemeleon_jax.evaluation.export import check_export, export_lemat
from chemeleon_jax.evaluation.inputs import find_sets, load_reference, read_set
from chemeleon_jax.evaluation.judge import EvaluationContext, Row, judge_chunk
from chemeleon_jax.evaluation.partial import check_out, prepare_partial
from chemeleon_jax.evaluation.protocols.choice import NAMES
from chemeleon_jax.evaluation.results import RESULTS, print_table, write_results
from chemeleon_jax.evaluation.scores import features_of_known
from chemeleon_jax.evaluation.sets import complete_rows, score_rows, share_formulas
from chemeleon_jax.evaluation.terms import (
    POTENTIALS,
    TIME_LIMIT,
    Terms,
    load_judges,
    load_vae,
    make_context,
)
from chemeleon_jax.potentials import relax
from chemeleon_jax.runs.directory import work_directory
from chemeleon_jax.runs.files import read_json, user_path, write_json
from chemeleon_jax.workers import calculators
from chemeleon_jax.workers.pool import WorkerPool

LOCK = ".lock"  # in the folder of results


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = ProgramParser("chemeleon_jax.evaluate", __doc__)
    add = parser.add_argument
    add("crystals", nargs="+", type=user_path, metavar="CRYSTALS")
    add("--reference", default="mp_mini", help="known crystals: mp_mini, DIR or FILE")
    add(
        "--potential",
        help="chgnet, sevennet-l3i5, sevennet-0, nequix:PATH, these three with "
        ":uncorrected behind, ase:module:callable or none; "
        "several, the main one first, are split by commas "
        f"(default {POTENTIALS}; with --hull its first)",
    )
    add("--hull", type=user_path, help="entries of the same potential, .csv or .npz")
    add(
        "--relax",
        action=argparse.BooleanOptionalAction,
        help="relax positions and cells first (the default, but for --potential=none "
        "and --protocol=lemat)",
    )
    add("--relax_with", metavar="POTENTIAL", help="by default the (first) --potential")
    add("--relax_steps", type=int, help="100 by default, 200 with an ASE potential")
    add("--max_force", type=float, default=relax.MAX_FORCE, help="eV/Å, to stop at")
    add(
        "--relax_time_limit",
        type=float,
        default=calculators.TIME_LIMIT,
        help="s, for a crystal, with an ASE potential",
    )
    add(
        "--protocol",
        choices=NAMES,
        default="own",
        help="whose metrics to add, by their definitions: docs/protocols.md",
    )
    add(
        "--export",
        choices=["lemat"],
        help="CIFs and a CSV for LeMat-GenBench's scripts",
    )
    add("--vae", default="mini:vae", help="whose features are compared")
    add("--out", type=user_path, help="instead of the folder of each set of crystals")
    add("--workers", type=int, help="processes; by default as many as CPUs")
    distributed.add_flag(parser)
    return parser.parse_args(argv)


def evaluate(args: argparse.Namespace) -> None:
    """Judges each set of crystals, and writes what came out."""
    terms = read_terms(args)
    sets = find_sets(args.crystals, args.out)
    items = {source: read_set(source) for source in sets}
    dataset, vae = load_reference(terms.reference), load_vae(terms)
    with contextlib.ExitStack() as stack:
        for out in sets.values():  # before anything that takes long
            stack.enter_context(work_directory(out, option="--out", lock=LOCK))
            if distributed.is_first():
                check_out(out, RESULTS, "scores")
            if args.export:
                check_export(out)
        judges = load_judges(terms, dataset)
        protocol = describe_protocol(terms, dataset, vae[1], judges)
        pool = stack.enter_context(WorkerPool(terms.workers, time_limit=TIME_LIMIT))
        everything = chain(*items.values())
        judge = make_context(terms, dataset, vae, judges, pool, everything)
        known_features = features_of_known(vae, dataset)
        for source, out in sets.items():
            rows = judge_all(items[source], judge, out, protocol)
            if not distributed.is_first():
                continue
            scores = score_rows(rows, judge, known_features)
            if args.export:
                export_lemat(out, rows)
            write_results(out, rows, scores, protocol)
            print_table(source, rows, scores, protocol)


def read_terms(args: argparse.Namespace) -> Terms:
    """The terms that the command line sets.

    Raises:
      UserError: flags are out of range, or at odds with each other.
    """
    return Terms(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Terms)})


# --------------------------------------------------------------------- all crystals


def judge_all(
    items: list[Item], judge: EvaluationContext, out: Path, protocol: dict[str, Any]
) -> list[Row]:
    """Rows of all crystals, chunk by chunk, by way of the disk.

    Chunks that are there are not judged again. Each process judges its share of the
    others, and the first one, which alone gets rows, reads them all.
    """
    folder = out / "partial"
    if distributed.is_first():
        prepare_partial(folder, items, [protocol, judge.chunk])
    distributed.broadcast_from_first(0)  # that it is prepared
    shared = share_formulas(items)
    files = {
        start: folder / f"{start:08d}.json"
        for start in range(0, len(items), judge.chunk)
    }
    mine = list(files)[jax.process_index() :: jax.process_count()]
    silent = None if distributed.is_first() else True
    with tqdm(total=len(mine), unit=" chunks", disable=silent) as progress:
        for start in mine:
            part = slice(start, start + judge.chunk)
            if not files[start].is_file():
                found = judge_chunk(items[part], shared[part], judge)
                write_json(files[start], {"rows": found})
            progress.update()
    distributed.broadcast_from_first(0)  # that all chunks are there
    if not distributed.is_first():
        return []
    rows = [row for file in files.values() for row in read_json(file)["rows"]]
    return complete_rows(items, rows, judge)


def main(argv: list[str] | None = None) -> int:
    """Runs the program; what the user can put right is one line and status 2."""
    return exit_status(_run, argv)


def _run(argv: list[str] | None) -> None:
    args = parse(argv)
    distributed.run(args.distributed, evaluate, args)


if __name__ == "__main__":
    run_program(main)

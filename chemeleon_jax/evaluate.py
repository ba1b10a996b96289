"""Program: what crystals are worth.

    python -m chemeleon_jax.evaluate runs/rl_dng/samples
    python -m chemeleon_jax.evaluate others.extxyz cifs/ --out=evaluations
    python -m chemeleon_jax.evaluate SET --no-relax --potential=chgnet

Validity, uniqueness, novelty, energy above the hull and what follows from them, each
with a bootstrap interval, of crystals of any generator: relaxed first, and judged by
two potentials, unless the flags say otherwise. Writes a folder `evaluation`
with `crystals.csv`, `structures.jsonl` and `summary.json`. The same command continues
an evaluation that was cut off. See docs/evaluation.md.
"""

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from chemeleon_jax import __version__
from chemeleon_jax.data.crystals import formula_key
from chemeleon_jax.data.dataset import Dataset
from chemeleon_jax.data.readers.content import stem_of
from chemeleon_jax.data.readers.files import read_crystals
from chemeleon_jax.data.readers.item import Item, unreadable
from chemeleon_jax.devices import distributed
from chemeleon_jax.errors import ProgramParser, UserError, exit_status, run_program
from chemeleon_jax.evaluation import opinions, statistics
from chemeleon_jax.evaluation.inputs import load_reference, warn_of_unreadable
from chemeleon_jax.evaluation.judge import (
    STABLE,
    EvaluationContext,
    Row,
    judge_chunk,
    judge_set,
)
from chemeleon_jax.evaluation.relaxation import make_relaxation
from chemeleon_jax.evaluation.results import print_table, write_results
from chemeleon_jax.evaluation.scores import (
    RESAMPLES,
    SEED,
    features_of_known,
    score_set,
    score_unrelaxed,
)
from chemeleon_jax.models.loading import load_checkpoint
from chemeleon_jax.models.store import params_digest
from chemeleon_jax.models.vae import make_vae
from chemeleon_jax.potentials import relax
from chemeleon_jax.potentials.hull import Hull, load_hull
from chemeleon_jax.potentials.hull_file import read_hull_file
from chemeleon_jax.potentials.loading import load_potential
from chemeleon_jax.potentials.types import Potential
from chemeleon_jax.rewards.matches import index_references
from chemeleon_jax.rewards.stability import FAR_BELOW, METASTABLE
from chemeleon_jax.runs.directory import work_directory
from chemeleon_jax.runs.files import (
    digest,
    read_json,
    user_path,
    write_json,
)
from chemeleon_jax.workers import calculators
from chemeleon_jax.workers.pool import WorkerPool
from chemeleon_jax.workers.prefilter import ANGLE_TOL, LENGTH_TOL, SITE_TOL
from chemeleon_jax.workers.symmetry import SYMMETRY_TOLERANCE

POTENTIALS = "chgnet,sevennet-l3i5"  # that judge, the first relaxes
CHUNK = 256  # crystals judged, and kept on disk, at once
TIME_LIMIT = 30.0  # s, for one crystal in a worker
MAX_ATOMS = 1000  # of a crystal; all pairs are looked at
LOCK = ".lock"  # in the folder of results


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = ProgramParser("chemeleon_jax.evaluate", __doc__)
    add = parser.add_argument
    add("crystals", nargs="+", type=user_path, metavar="CRYSTALS")
    add("--reference", default="mp_mini", help="known crystals: mp_mini, DIR or FILE")
    add(
        "--potential",
        help="chgnet, sevennet-l3i5, sevennet-0, ase:module:callable or none; "
        "several, the main one first, are split by commas "
        f"(default {POTENTIALS}; with --hull its first)",
    )
    add("--hull", type=user_path, help="entries of the same potential, .csv or .npz")
    add(
        "--relax",
        action=argparse.BooleanOptionalAction,
        help="relax positions and cells first (the default, but for --potential=none)",
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
    add("--vae", default="mini:vae", help="whose features are compared")
    add("--out", type=user_path, help="instead of the folder of each set of crystals")
    add("--workers", type=int, help="processes; by default as many as CPUs")
    distributed.add_flag(parser)
    return parser.parse_args(argv)


def evaluate(args: argparse.Namespace) -> None:
    """Judges each set of crystals, and writes what came out."""
    check(args)
    sets = find_sets(args.crystals, args.out)
    items = {source: read_set(source) for source in sets}
    dataset = load_reference(args.reference)
    vae_checkpoint = load_checkpoint(args.vae)
    if "vae" not in vae_checkpoint.params:
        raise UserError(f"--vae={args.vae}: holds no VAE")
    vae = make_vae(vae_checkpoint.config["vae"]), vae_checkpoint.params["vae"]
    with contextlib.ExitStack() as stack:
        for out in sets.values():  # before anything that takes long
            stack.enter_context(work_directory(out, option="--out", lock=LOCK))
        judges = load_judges(args, dataset)
        protocol = describe_protocol(args, dataset, vae[1], judges)
        largest = max(
            (len(i.structure) for x in items.values() for i in x if i.structure),
            default=1,
        )
        width = max(-(-largest // 4) * 4, 20)
        pool = stack.enter_context(WorkerPool(args.workers, time_limit=TIME_LIMIT))
        judge = EvaluationContext(
            references=index_references(dataset.crystals),
            pool=pool,
            vae=vae,
            judges=judges,
            relax=relaxation(args, judges, pool) if args.relax else None,
            relaxer=args.relax_with,
            width=width,
            chunk=max(CHUNK * 20 // width, 1),
        )
        known_features = features_of_known(vae, dataset)
        for source, out in sets.items():
            rows = judge_all(items[source], judge, out, protocol)
            if not distributed.is_first():
                continue
            scores = score_set(rows, vae, known_features, bool(judges))
            draws = statistics.resample(len(rows), RESAMPLES, SEED)
            if len(judges) > 1:
                scores |= opinions.score_opinions(rows, list(judges), draws)
            if args.relax and args.relax_with in judges:
                scores |= score_unrelaxed(rows, draws)
            write_results(out, rows, scores, protocol)
            print_table(source, rows, scores, protocol)


def check(args: argparse.Namespace) -> None:
    """Raises UserError for flags out of range, or at odds with each other."""
    if args.potential is None:
        args.potential = POTENTIALS.partition(",")[0] if args.hull else POTENTIALS
    names = args.potential.split(",")
    if args.relax is None:
        args.relax = args.potential != "none"
    if args.relax_with and not args.relax:
        raise UserError("--relax_with: at odds with --no-relax")
    args.relax_with = args.relax_with or names[0]
    if len(names) > 1 and ("none" in names or args.hull or len({*names}) < len(names)):
        raise UserError(
            f"--potential={args.potential}: several must differ, none of them 'none', "
            "and their hulls are of the --reference: no --hull"
        )
    if args.relax_steps is None:
        by_ase = args.relax_with.startswith("ase:")
        args.relax_steps = calculators.MAX_STEPS if by_ase else relax.MAX_STEPS
    if (args.relax or args.hull) and args.potential == "none":
        raise UserError("--relax and --hull: need a --potential")
    for name in ("relax_steps", "max_force", "relax_time_limit", "workers"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name}={value}: must be above 0")


def read_set(source: Path) -> list[Item]:
    """The crystals of one set; those of too many atoms count as unreadable."""
    items = [
        item
        if item.structure is None or len(item.structure) <= MAX_ATOMS
        else unreadable(f"more than {MAX_ATOMS} atoms", item.name)
        for item in read_crystals(source)
    ]
    warn_of_unreadable(source, items)
    return items


def load_judges(
    args: argparse.Namespace, dataset: Dataset
) -> dict[str, tuple[Potential, Hull]]:
    """The potentials, each with its hull, by name; none of them for "none"."""
    if args.potential == "none":
        return {}
    known = None if args.reference == "mp_mini" else dataset
    judges = {}
    for name in args.potential.split(","):
        potential = load_potential(name)
        hull = (
            read_hull_file(args.hull, potential)
            if args.hull
            else load_hull(potential, known)
        )
        judges[name] = potential, hull
    return judges


def find_sets(paths: list[Path], out: Path | None) -> dict[Path, Path]:
    """Each set of crystals, bases of sampled ones included, and where its results go.

    Raises:
      UserError: two sets would have their results in one place.
    """
    sets = list(dict.fromkeys(paths))
    sets += [p / "base" for p in paths if (p / "base" / "crystals.jsonl").is_file()]
    sets = list(dict.fromkeys(sets))
    if out is None:
        places = [(p if p.is_dir() else p.parent) / "evaluation" for p in sets]
    elif len(sets) == 1:
        places = [out]
    else:
        names = [_name_of_set(path.resolve()) for path in sets]
        places = [out / name for name in names]
    if len(set(places)) < len(places):
        twice = next(p for p in places if places.count(p) > 1)
        raise UserError(
            f"two sets of crystals would be evaluated in {twice}: evaluate them one by "
            "one, each with its own --out"
        )
    return dict(zip(sets, places, strict=True))


def _name_of_set(path: Path) -> str:
    if path.name == "base":
        return f"{path.parent.name}_base"
    return path.name if path.is_dir() else stem_of(path)


def relaxation(args: argparse.Namespace, judges, pool: WorkerPool):
    """What relaxes lists of structures with the potential that is to do it."""
    judge = judges.get(args.relax_with)
    potential = judge[0] if judge else load_potential(args.relax_with)
    return make_relaxation(
        potential,
        pool,
        max_steps=args.relax_steps,
        max_force=args.max_force,
        time_limit=args.relax_time_limit,
    )


def describe_protocol(args, dataset: Dataset, vae_params, judges) -> dict[str, Any]:
    """What the numbers depend on, and must be stated with them."""
    return {
        "reference": {
            "name": args.reference,
            "size": len(dataset),
            "sha256": dataset.digest,
        },
        "matcher": {"ltol": LENGTH_TOL, "stol": SITE_TOL, "angle_tol": ANGLE_TOL},
        "potential": args.potential,
        "potentials": {
            name: {
                "sha256": potential.digest,
                "corrections": potential.scheme,
                "hull_entries": len(hull),
            }
            for name, (potential, hull) in judges.items()
        },
        "hull": str(args.hull or args.reference),
        "hull_sha256": digest(args.hull) if args.hull else None,
        "relaxed": args.relax,
        "relaxed_with": args.relax_with if args.relax else None,
        "relax_steps": args.relax_steps if args.relax else None,
        "max_force": args.max_force if args.relax else None,
        "relax_time_limit": args.relax_time_limit if args.relax else None,
        "metastable": METASTABLE,
        "stable": STABLE,
        "far_below_hull": FAR_BELOW,
        "min_distance": 0.5,
        "symmetry_tolerance": SYMMETRY_TOLERANCE,
        "vae": args.vae,
        "vae_sha256": params_digest(vae_params),
        "bootstrap": {"resamples": RESAMPLES, "confidence": statistics.CONFIDENCE},
        "smact": importlib.metadata.version("smact"),
        "pymatgen": importlib.metadata.version("pymatgen"),
        "version": __version__,
    }


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
        prepare_partial(items, judge, folder, protocol)
    distributed.broadcast_from_first(0)  # that it is prepared
    keys = [
        formula_key(i.structure.atomic_numbers) if i.structure else () for i in items
    ]
    counts: dict[tuple, int] = {}
    for key in keys:
        counts[key] = counts.get(key, 0) + 1
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
                shares_formula = [counts[key] > 1 for key in keys[part]]
                found = judge_chunk(items[part], shares_formula, judge)
                write_json(files[start], {"rows": found})
            progress.update()
    distributed.broadcast_from_first(0)  # that all chunks are there
    if not distributed.is_first():
        return []
    rows = [row for file in files.values() for row in read_json(file)["rows"]]
    judge_set(rows, judge.pool)
    if len(judge.judges) > 1:
        opinions.add_opinions(rows, list(judge.judges))
    return [{"name": item.name} | r for item, r in zip(items, rows, strict=True)]


def prepare_partial(
    items: list[Item], judge: EvaluationContext, folder: Path, protocol
) -> None:
    """Empties the folder of finished chunks if they are of another evaluation."""
    digest = hashlib.sha256(json.dumps([protocol, judge.chunk]).encode())
    for structure, problem, _ in items:
        digest.update(problem.encode())
        if structure is not None:
            digest.update(np.array(structure.atomic_numbers, np.int64).tobytes())
            digest.update(structure.lattice.matrix.tobytes())
            digest.update(structure.frac_coords.tobytes())
    name = {"sha256": digest.hexdigest()}
    mark = folder / "evaluation.json"
    if not (mark.is_file() and read_json(mark) == name):
        shutil.rmtree(folder, ignore_errors=True)
        write_json(mark, name)


def main(argv: list[str] | None = None) -> int:
    """Runs the program; what the user can put right is one line and status 2."""
    return exit_status(_run, argv)


def _run(argv: list[str] | None) -> None:
    args = parse(argv)
    distributed.run(args.distributed, evaluate, args)


if __name__ == "__main__":
    run_program(main)

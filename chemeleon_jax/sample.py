"""Program: crystals from a checkpoint.

    python -m chemeleon_jax.sample --checkpoint=runs/rl_dng --num_samples=1000 \
        --out=runs/rl_dng/samples
    python -m chemeleon_jax.sample --checkpoint=my_conditional_ldm --vae=mini:vae \
        --composition=LiMnO2 --num_samples=100 --out=limno2 --cif

Writes `crystals.jsonl` (one crystal per line) and `manifest.json` (how they were made).
The same seed gives the same crystals, on any number of devices and for any batch size.
See docs/sampling.md.
"""

import argparse
import dataclasses
import shutil

import jax

from chemeleon_jax import __version__
from chemeleon_jax.cli import keep_compiled_programs
from chemeleon_jax.devices import distributed
from chemeleon_jax.errors import ProgramParser, UserError, exit_status, run_program
from chemeleon_jax.interface.model import WEIGHTS, load
from chemeleon_jax.interface.request import Request
from chemeleon_jax.models.store import params_digest
from chemeleon_jax.rl.sample_files import (
    LOCK,
    PARTIAL,
    check_free,
    prepare_partial,
    print_counts,
    write_crystals,
)
from chemeleon_jax.runs.directory import work_directory
from chemeleon_jax.runs.files import user_path


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = ProgramParser("chemeleon_jax.sample", __doc__)
    add = parser.add_argument
    add("--checkpoint", required=True, help="run or model directory, mini:, hub:NAME")
    add("--vae", help="VAE of a checkpoint without one; by default the one it names")
    add("--weights", choices=WEIGHTS, default="latest", help="of runs")
    add("--base", action="store_true", help="also what the run started from: OUT/base")
    add("--num_samples", type=int, default=1000)
    add("--out", required=True, type=user_path, help="directory to write to")
    add("--overwrite", action="store_true", help="replace what OUT holds")
    add("--cif", action="store_true", help="also write OUT/cif/*.cif")
    add("--seed", type=int, default=0)
    add("--num_atoms", help="per crystal, in equal shares: 8 or 4,8,12")
    add("--dataset", help="of atom counts and symmetries: mp_mini, mp_20 or a file")
    add("--composition", help="formula, such as LiMnO2")
    add("--chemical_system", help="elements, such as Li-Mn-O")
    add("--space_group", help="such as Fm-3m, 225, or any")
    add("--crystal_system", help="such as cubic")
    add("--condition", action="append", default=[], metavar="NAME=VALUE")
    add("--cfg_scale", "--guidance_scale", type=float, help="of conditional sampling")
    add("--decoder_guidance", type=float, help="towards the elements; 0 for none")
    add("--sampler", choices=("ddim", "ddpm"))
    add("--sampling_steps", "--num_steps", type=int, help="of the sampler")
    add("--eta", type=float, help="noise of DDIM, 0 to 1")
    add("--batch_size", type=int, help="crystals at once; by default what fits")
    distributed.add_flag(parser)
    return parser.parse_args(argv)


def sample(args: argparse.Namespace) -> None:
    """Checks everything, then samples and writes."""
    request = read_request(args)
    check_free(args.out, args.overwrite)
    model = load(args.checkpoint, vae=args.vae, weights=args.weights)
    models = {args.out: model}
    if args.base:
        models[args.out / "base"] = load(args.checkpoint, base=True)
    plan = model.plan(request)
    made_from = {
        directory: {
            "checkpoint": str(args.checkpoint),
            "weights": "base" if directory != args.out else args.weights,
            "iteration": model.iteration,
            "checkpoint_sha256": params_digest(model.checkpoint.params),
            "seed": args.seed,
            "settings": plan.settings,
            "x64": bool(jax.config.jax_enable_x64),  # which draws other numbers
            "version": __version__,
        }
        for directory, model in models.items()
    }
    with work_directory(args.out, option="--out", lock=LOCK):
        if distributed.is_first():
            facts = [plan.num_atoms.tolist(), *made_from.values()]
            prepare_partial(args.out, args.overwrite, facts)
        distributed.broadcast_from_first(0)  # that it is prepared
        crystals = {}
        for directory, model in models.items():
            partial = "base" if directory != args.out else "policy"
            folder = args.out / PARTIAL / partial
            crystals[directory] = model.make(plan, args.batch_size, folder)
        if distributed.is_first():
            for directory, found in crystals.items():
                write_crystals(directory, found, made_from[directory], cif=args.cif)
                print_counts(directory, found, args.composition, args.chemical_system)
            shutil.rmtree(args.out / PARTIAL)


def read_request(args: argparse.Namespace) -> Request:
    """What the command line asks for.

    Raises:
      UserError: it cannot be read, or a number is out of range.
    """
    conditions = {}
    for item in args.condition:
        name, separator, value = item.partition("=")
        if not (name and separator and value):
            raise UserError(f"--condition {item}: write it like band_gap=3.0")
        if name in conditions:
            raise UserError(f"--condition {name}: given twice")
        conditions[name] = value
    try:
        counts = [int(n) for n in args.num_atoms.split(",")] if args.num_atoms else None
    except ValueError:
        raise UserError(
            f"--num_atoms={args.num_atoms}: write it like 8 or 4,8,12"
        ) from None
    same = {
        field.name: getattr(args, field.name)
        for field in dataclasses.fields(Request)
        if field.name not in ("conditions", "num_atoms")
    }
    return Request(conditions=conditions, num_atoms=counts, **same)


def main(argv: list[str] | None = None) -> int:
    """Runs the program; what the user can put right is one line and status 2."""
    return exit_status(_run, argv)


def _run(argv: list[str] | None) -> None:
    args = parse(argv)
    keep_compiled_programs()
    distributed.run(args.distributed, sample, args)


if __name__ == "__main__":
    run_program(main)

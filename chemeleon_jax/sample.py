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
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from chemeleon_jax import __version__
from chemeleon_jax.cli import keep_compiled_programs
from chemeleon_jax.data.dataset import MAX_ATOMS
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.devices import distributed
from chemeleon_jax.devices.sharding import make_mesh, replicate
from chemeleon_jax.errors import ProgramParser, UserError, exit_status, run_program
from chemeleon_jax.models.diffusion import make_schedule
from chemeleon_jax.models.generator import combine_checkpoints, make_generator
from chemeleon_jax.models.loading import load_checkpoint
from chemeleon_jax.models.store import Checkpoint, params_digest
from chemeleon_jax.rl.bulk import (
    compile_sampling,
    even_batch_size,
    fitting_batch,
    group_prompts,
    sample_in_bulk,
)
from chemeleon_jax.rl.prompts import (
    atom_count_shares,
    condition_values,
    condition_vectors_from_cli,
    draw_atom_counts,
    restrict_atom_counts,
)
from chemeleon_jax.rl.sample_files import (
    LOCK,
    PARTIAL,
    check_free,
    prepare_partial,
    print_counts,
    remember_batch,
    write_crystals,
)
from chemeleon_jax.rl.sampler import make_sampler
from chemeleon_jax.runs.directory import work_directory
from chemeleon_jax.runs.files import (
    read_json,
    user_path,
)

DEFAULTS = {
    "sampler": "ddim",
    "sampling_steps": 50,
    "eta": 1.0,
    "cfg_scale": 2.0,
    "decoder_guidance": 6.0,
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = ProgramParser("chemeleon_jax.sample", __doc__)
    add = parser.add_argument
    add("--checkpoint", required=True, help="run or model directory, mini:, hub:NAME")
    add("--vae", help="VAE of a checkpoint without one; by default the one it names")
    add(
        "--weights", choices=("latest", "best", "raw"), default="latest", help="of runs"
    )
    add("--base", action="store_true", help="also what the run started from: OUT/base")
    add("--num_samples", type=int, default=1000)
    add("--out", required=True, type=user_path, help="directory to write to")
    add("--overwrite", action="store_true", help="replace what OUT holds")
    add("--cif", action="store_true", help="also write OUT/cif/*.cif")
    add("--seed", type=int, default=0)
    add("--num_atoms", help="per crystal, in equal shares: 8 or 4,8,12")
    add("--dataset", help="whose atom counts to draw: mp_mini, mp_20 or a file")
    add("--composition", help="formula, such as LiMnO2")
    add("--chemical_system", help="elements, such as Li-Mn-O")
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
    check_numbers(args)
    run = run_config(args.checkpoint)
    if args.base and run is None:
        raise UserError(f"--base: {args.checkpoint} is no directory of an RL run")
    by_kind, by_name = condition_values(
        args.composition, args.chemical_system, args.condition
    )
    check_free(args.out, args.overwrite)
    settings = resolve_settings(
        args, run, guided=bool(by_kind or by_name), elements=bool(by_kind)
    )
    models = {args.out: load_model(args.checkpoint, args.vae, args.weights)}
    if args.base:
        start = user_path(args.checkpoint.removesuffix("@best")) / "model"
        models[args.out / "base"] = load_checkpoint(start)
    config = models[args.out].config
    specs = (config.get("condition") or {}).get("specs", ())
    condition = condition_vectors_from_cli(specs, by_kind, by_name)
    shares = restrict_atom_counts(
        count_shares(args.dataset, run, config),
        settings["num_atoms"],
        args.composition,
        args.chemical_system,
    )
    key = jax.random.key(args.seed)
    num_atoms = draw_atom_counts(jax.random.fold_in(key, 0), args.num_samples, shares)
    make_schedule(settings["sampler"], settings["sampling_steps"])  # or a UserError
    made_from = {
        directory: {
            "checkpoint": str(args.checkpoint),
            "weights": "base" if directory != args.out else args.weights,
            "checkpoint_sha256": params_digest(checkpoint.params),
            "seed": args.seed,
            "settings": settings | {"conditions": by_kind | by_name},
            "x64": bool(jax.config.jax_enable_x64),  # which draws other numbers
            "version": __version__,
        }
        for directory, checkpoint in models.items()
    }
    with work_directory(args.out, option="--out", lock=LOCK):
        if distributed.is_first():
            facts = [num_atoms.tolist(), *made_from.values()]
            prepare_partial(args.out, args.overwrite, facts)
        distributed.broadcast_from_first(0)  # that it is prepared
        crystals = {
            directory: crystals_of(
                checkpoint,
                jax.random.fold_in(key, 1),
                num_atoms,
                condition,
                settings,
                args.batch_size,
                args.out / PARTIAL / ("base" if directory != args.out else "policy"),
            )
            for directory, checkpoint in models.items()
        }
        if distributed.is_first():
            for directory, found in crystals.items():
                write_crystals(directory, found, made_from[directory], cif=args.cif)
                print_counts(directory, found, args.composition, args.chemical_system)
            shutil.rmtree(args.out / PARTIAL)


def crystals_of(
    checkpoint: Checkpoint,
    key: jax.Array,
    num_atoms: np.ndarray,
    condition: dict[str, np.ndarray] | None,
    settings: dict[str, Any],
    batch_size: int | None,
    partial_folder: Path,
) -> CrystalBatch:
    """Crystals of given atom counts [n], all under one condition {name: [1, in]}.

    Batches that an earlier try left in `partial_folder` are not sampled again.
    """
    mesh = make_mesh()
    model, policy = replicate(make_generator(checkpoint, MAX_ATOMS), mesh)
    sampler = make_sampler(
        model,
        sampler=settings["sampler"],
        sampling_steps=settings["sampling_steps"],
        eta=settings["eta"],
        cfg_scale=settings["cfg_scale"],
        decoder_guidance=settings["decoder_guidance"],
    )
    count, guided = len(num_atoms), sampler.cfg_scale is not None
    if condition is not None:
        condition = {name: np.repeat(x, count, 0) for name, x in condition.items()}
    largest = batch_size or fitting_batch(model, guided, mesh.size)
    batch_size = even_batch_size(count, largest, mesh.size)

    return sample_in_bulk(
        policy,
        group_prompts(key, num_atoms, condition),
        sample=compile_sampling(sampler, mesh, settings["precision"]),
        batch_size=batch_size,
        progress=True,
        remember=partial(remember_batch, partial_folder, batch_size),
    )


# ------------------------------------------------------------------- what to sample


def run_config(name: str) -> dict[str, Any] | None:
    """The config of an RL run, None of anything else."""
    folder = user_path(str(name).removesuffix("@best"))
    file = folder / "config.json"
    if not ((folder / "checkpoints").is_dir() and file.is_file()):
        return None
    config = read_json(file)
    return config if "sampling" in config else None


def load_model(name: str, vae: str | None, weights: str) -> Checkpoint:
    """The checkpoint, with the VAE that decodes its latents.

    Raises:
      UserError: it has no denoiser, or no VAE can be told.
    """
    checkpoint = load_checkpoint(
        name,
        weights="raw" if weights == "raw" else "ema",
        step="best" if weights == "best" else "latest",
    )
    if "dit" not in checkpoint.params:
        raise UserError(
            f"--checkpoint={name}: of kind {checkpoint.config['kind']!r}, which "
            "generates nothing; give an LDM or an RL run"
        )
    if vae is None and "vae" in checkpoint.params:
        return checkpoint
    return combine_checkpoints(checkpoint, load_checkpoint(vae or default_vae(name)))


def default_vae(name: str) -> str:
    """The VAE of an LDM that comes without one.

    Raises:
      UserError: it is not known.
    """
    kind, _, rest = name.partition(":")
    if kind == "mini":
        return "mini:vae"
    if kind == "hub":
        return f"hub:{rest.partition('_ldm_')[0]}_vae"
    training = user_path(name) / "training" / "config.json"
    if training.is_file() and "vae_ckpt_path" in (config := read_json(training)):
        return stored_path(config["vae_ckpt_path"], training)
    raise UserError(
        f"--checkpoint={name}: holds no VAE; name the one it was trained with by --vae"
    )


def stored_path(path: str, origin: Path) -> str:
    """A model's path in a config, relative to where the training was started.

    That was here, or some folder above the model.

    Raises:
      UserError: it is nowhere there.
    """
    if path.startswith(("mini:", "hub:")):
        return path
    for folder in (Path(), *origin.resolve().parents):
        if (folder / user_path(path)).exists():
            return str(folder / user_path(path))
    raise UserError(
        f"{origin}: says that the VAE is {path!r}, which is neither here nor above the "
        "model; name the one it was trained with by --vae"
    )


def count_shares(source, run, config) -> np.ndarray:
    """The atom counts to draw: of the named data set, the run's, or the model's own."""
    if source is None and run is not None:
        source = run["data"]["dataset"]
    if source is None and "atom_counts" in config:
        own = np.asarray(config["atom_counts"], float)
        return np.resize(np.append(own, np.zeros(MAX_ATOMS)), MAX_ATOMS)
    return atom_count_shares(source or "mp_20", MAX_ATOMS)


def check_numbers(args: argparse.Namespace) -> None:
    """Raises UserError for a number out of range."""
    for name, low, high in (
        ("num_samples", 1, 1e6),
        ("batch_size", 1, 1e9),
        ("seed", 0, 2**63 - 1),
        ("eta", 0, 1),
        ("cfg_scale", 0, 1e6),
        ("decoder_guidance", 0, 1e6),
    ):
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            raise UserError(f"--{name}={value}: must be from {low} to {high:g}")


def resolve_settings(
    args: argparse.Namespace, run: dict | None, *, guided: bool, elements: bool
) -> dict[str, Any]:
    """How to sample: as the command line says, else as the run did, else `DEFAULTS`.

    The crystals are `guided` if anything is asked of them, and `elements` says whether
    that is a composition or a chemical system.

    Raises:
      UserError: guidance without a condition, or an unreadable number.
    """
    settings = DEFAULTS | {"precision": "default"}
    if run is not None:
        settings |= {k: v for k, v in run["sampling"].items() if v is not None}
        settings["precision"] = run.get("precision", "default")
    given = {name: getattr(args, name) for name in DEFAULTS}
    settings |= {name: v for name, v in given.items() if v is not None}
    if not guided:
        if args.cfg_scale is not None:
            raise UserError(
                "--cfg_scale: nothing to guide to; give --composition, "
                "--chemical_system or --condition too"
            )
        settings["cfg_scale"] = None
    if not elements:
        if args.decoder_guidance is not None:
            raise UserError(
                "--decoder_guidance: no elements to guide to; give --composition or "
                "--chemical_system too"
            )
        settings["decoder_guidance"] = None
    try:
        counts = [int(n) for n in args.num_atoms.split(",")] if args.num_atoms else None
    except ValueError:
        raise UserError(
            f"--num_atoms={args.num_atoms}: write it like 8 or 4,8,12"
        ) from None
    return settings | {"num_atoms": counts}


def main(argv: list[str] | None = None) -> int:
    """Runs the program; what the user can put right is one line and status 2."""
    return exit_status(_run, argv)


def _run(argv: list[str] | None) -> None:
    args = parse(argv)
    keep_compiled_programs()
    distributed.run(args.distributed, sample, args)


if __name__ == "__main__":
    run_program(main)

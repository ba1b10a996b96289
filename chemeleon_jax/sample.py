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
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from chemeleon_jax import __version__
from chemeleon_jax.cli import keep_compiled_programs
from chemeleon_jax.data.crystals import VALIDITY_REASONS, to_structures, validity
from chemeleon_jax.data.dataset import MAX_ATOMS
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.devices import distributed
from chemeleon_jax.devices.sharding import make_mesh, replicate
from chemeleon_jax.errors import UserError, exit_status
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
from chemeleon_jax.rl.sampler import make_sampler
from chemeleon_jax.runs.files import read_json, replacing, write_json

WRITTEN = ("crystals.jsonl", "manifest.json", "cif", "base", "evaluation")
DEFAULTS = {
    "sampler": "ddim",
    "sampling_steps": 50,
    "eta": 1.0,
    "cfg_scale": 2.0,
    "decoder_guidance": 6.0,
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m chemeleon_jax.sample",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--checkpoint", required=True, help="run or model directory, mini:, hub:NAME")
    add("--vae", help="VAE of a checkpoint without one; by default the one it names")
    add(
        "--weights", choices=("latest", "best", "raw"), default="latest", help="of runs"
    )
    add("--base", action="store_true", help="also what the run started from: OUT/base")
    add("--num_samples", type=int, default=1000)
    add("--out", required=True, type=Path, help="directory to write to")
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
    add(
        "--distributed",
        action=argparse.BooleanOptionalAction,
        help="one of several processes; by default where a launcher says so",
    )
    return parser.parse_args(argv)


def sample(args: argparse.Namespace) -> None:
    """Checks everything, then samples and writes."""
    run = run_config(args.checkpoint)
    if args.base and run is None:
        raise UserError(f"--base: {args.checkpoint} is no directory of an RL run")
    check_numbers(args)
    by_kind, by_name = condition_values(
        args.composition, args.chemical_system, args.condition
    )
    check_free(args.out, args.overwrite)
    settings = resolve_settings(
        args, run, guided=bool(by_kind or by_name), elements=bool(by_kind)
    )
    models = {args.out: load_model(args.checkpoint, args.vae, args.weights)}
    if args.base:
        models[args.out / "base"] = load_checkpoint(Path(args.checkpoint, "model"))
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
    if args.overwrite and distributed.is_first():
        remove_old(args.out)
    for directory, checkpoint in models.items():
        crystals = crystals_of(
            checkpoint,
            jax.random.fold_in(key, 1),
            num_atoms,
            condition,
            settings,
            args.batch_size,
        )
        made_from = {
            "checkpoint": str(args.checkpoint),
            "weights": "base" if directory != args.out else args.weights,
            "checkpoint_sha256": params_digest(checkpoint.params),
            "seed": args.seed,
            "settings": settings | {"conditions": by_kind | by_name},
            "version": __version__,
        }
        if distributed.is_first():
            write_crystals(directory, crystals, made_from, cif=args.cif)


def crystals_of(
    checkpoint: Checkpoint,
    key: jax.Array,
    num_atoms: np.ndarray,
    condition: dict[str, np.ndarray] | None,
    settings: dict[str, Any],
    batch_size: int | None,
) -> CrystalBatch:
    """Crystals of given atom counts [n], all under one condition {name: [1, in]}."""
    mesh = make_mesh()
    model, policy = replicate(make_generator(checkpoint, MAX_ATOMS), mesh)
    sampler = make_sampler(
        model,
        sampler=settings["sampler"],
        sampling_steps=settings["sampling_steps"],
        eta=settings["eta"],
        cfg_scale=settings["cfg_scale"],
        decoder_scale=settings["decoder_guidance"] or None,
    )
    count, guided = len(num_atoms), sampler.cfg_scale is not None
    if condition is not None:
        condition = {name: np.repeat(x, count, 0) for name, x in condition.items()}
    largest = batch_size or fitting_batch(model, guided, mesh.size)
    return sample_in_bulk(
        policy,
        group_prompts(key, num_atoms, condition),
        sample=compile_sampling(sampler, mesh, settings["precision"]),
        batch_size=even_batch_size(count, largest, mesh.size),
        progress=True,
    )


# ------------------------------------------------------------------- what to sample


def run_config(name: str) -> dict[str, Any] | None:
    """The config of an RL run, None of anything else."""
    file = Path(name, "config.json")
    if not (Path(name, "checkpoints").is_dir() and file.is_file()):
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
    training = Path(name, "training", "config.json")
    if training.is_file() and "vae_ckpt_path" in (config := read_json(training)):
        return config["vae_ckpt_path"]
    raise UserError(
        f"--checkpoint={name}: holds no VAE; name the one it was trained with by --vae"
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
        ("num_samples", 1, 1e9),
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

    Args:
      args: the command line.
      run: config of an RL run.
      guided: whether anything is asked of the crystals.
      elements: whether a composition or a chemical system is.

    Raises:
      UserError: guidance without a condition, or an unreadable number.
    """
    settings = DEFAULTS | {"precision": "default"}
    if run is not None:
        settings |= run["sampling"]
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


# -------------------------------------------------------------------------- on disk


def check_free(out: Path, overwrite: bool) -> None:
    """Refuses a directory that holds crystals.

    Raises:
      UserError: it does, and nobody asked to replace them.
    """
    found = [name for name in WRITTEN if (out / name).exists()]
    if found and not overwrite:
        raise UserError(
            f"--out={out}: holds {found[0]} already; give another directory, or "
            "--overwrite to replace it"
        )


def remove_old(out: Path) -> None:
    """Removes what an earlier sampling, and the evaluation of it, wrote."""
    for name in WRITTEN:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_crystals(
    directory: Path, crystals: CrystalBatch, made_from: dict[str, Any], *, cif: bool
) -> None:
    """Writes crystals.jsonl, on request cif/, and last of all manifest.json."""
    structures = to_structures(crystals)
    reasons = [VALIDITY_REASONS[code] for code in validity(crystals)]
    with replacing(directory / "crystals.jsonl") as temporary:
        with open(temporary, "w") as file:
            for i, (structure, reason) in enumerate(
                zip(structures, reasons, strict=True)
            ):
                line = {
                    "index": i,
                    "num_atoms": int(crystals.mask[i].sum()),
                    "valid": reason == "valid",
                    "reason": reason,
                    "structure": structure and structure.as_dict(verbosity=0),
                }
                file.write(json.dumps(line) + "\n")
    if cif:
        (directory / "cif").mkdir()
        for i, structure in enumerate(structures):
            if structure is not None:
                formula = structure.composition.reduced_formula
                structure.to(str(directory / "cif" / f"{i:06d}_{formula}.cif"))
    counts = {r: reasons.count(r) for r in VALIDITY_REASONS if r in reasons}
    manifest = {
        **made_from,
        "num_samples": len(reasons),
        "counts": counts,
        "validity": reasons,
    }
    write_json(directory / "manifest.json", manifest)
    print(f"{directory}: {len(reasons)} crystals, {counts.get('valid', 0)} valid")


def main(argv: list[str] | None = None) -> int:
    """Runs the program; what the user can put right is one line and status 2."""
    args = parse(argv)
    keep_compiled_programs()
    return exit_status(distributed.run, args.distributed, sample, args)


if __name__ == "__main__":
    sys.exit(main())

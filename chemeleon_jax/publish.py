"""Program: a policy as a model that others load by name.

    python -m chemeleon_jax.publish runs/rl_dng --repo=me/my-crystals
    python -m chemeleon_jax.publish runs/rl_dng --repo=me/my-crystals --upload

Writes a folder with the parameters (`params.safetensors`, VAE and denoiser), their
`config.json`, and a model card, `README.md`: look it over, and edit it. With --upload
the folder goes to the Hugging Face Hub; what was written before is not written again.
Then `load("hub:me/my-crystals")` works for everybody. See docs/publishing.md.
"""

import argparse
import logging
import re
from pathlib import Path
from typing import Any

import jax

from chemeleon_jax.errors import (
    ProgramParser,
    UserError,
    exit_status,
    one_line,
    run_program,
)
from chemeleon_jax.interface.model import WEIGHTS, Model, load
from chemeleon_jax.interface.request import DEFAULTS
from chemeleon_jax.models.store import Checkpoint, load_model, params_digest, save_model
from chemeleon_jax.report.card import Card
from chemeleon_jax.report.runs import load_evaluation
from chemeleon_jax.runs.console import say_next
from chemeleon_jax.runs.files import read_json, replacing, user_path

logger = logging.getLogger(__name__)

FILES = ["README.md", "config.json", "params.safetensors"]
CARD = "README.md"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = ProgramParser("chemeleon_jax.publish", __doc__)
    add = parser.add_argument
    add("run", metavar="RUN", help="run or model directory, or any name of a generator")
    add("--repo", required=True, metavar="OWNER/NAME", help="on the hub")
    add("--out", type=user_path, help="the folder; by default RUN/published")
    add("--weights", choices=WEIGHTS, default="latest", help="of runs")
    add("--vae", help="VAE of a model without one; by default the one it names")
    add("--samples", type=user_path, help="evaluated crystals; by default RUN/samples")
    add("--license", help="of the weights, as the hub names it: mit, cc-by-4.0")
    add("--upload", action="store_true", help="to the hub; needs `hf auth login`")
    return parser.parse_args(argv)


def publish(args: argparse.Namespace) -> None:
    """Writes the folder, and uploads it if asked to."""
    check(args)
    model = load(args.run, vae=args.vae, weights=args.weights)
    folder = args.out or user_path(args.run.removesuffix("@best")) / "published"
    checkpoint = published(model)
    write_model(folder, checkpoint)
    if (folder / CARD).is_file():
        check_card(args, folder / CARD)
    else:
        text = make_card(args, model).text()
        with replacing(folder / CARD) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if args.upload:
        address = upload(folder, args.repo)
        sample = [f"--checkpoint=hub:{args.repo}", "--out=samples"]
        say_next(f"{address} holds the model.", [["chemeleon_jax.sample", *sample]])
    else:
        again = [args.run, f"--repo={args.repo}", f"--weights={args.weights}"]
        given = {"out": args.out, "vae": args.vae}
        again += [f"--{name}={value}" for name, value in given.items() if value]
        say_next(
            f"{folder} holds the model; read its {CARD}. Then:",
            [["chemeleon_jax.publish", *again, "--upload"]],
        )


def check(args: argparse.Namespace) -> None:
    """Raises UserError for a name that the hub does not take."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", args.repo):
        raise UserError(f"--repo={args.repo}: write it like OWNER/NAME")
    if args.license is not None and not re.fullmatch(r"[\w.-]+", args.license):
        raise UserError(f"--license={args.license}: write it like mit or cc-by-4.0")
    if args.out is None and not user_path(args.run.removesuffix("@best")).is_dir():
        raise UserError(f"{args.run}: is no folder of yours; give --out")


def check_card(args: argparse.Namespace, card: Path) -> None:
    """Raises UserError for a card that was written for something else."""
    ours = rf"hub:{re.escape(args.repo)}(?![\w-]|\.\w)"
    if not re.search(ours, card.read_text(encoding="utf-8")):
        raise UserError(f"{card}: is not of {args.repo}; delete it to have a new one")
    if args.license or args.samples:
        raise UserError(
            f"{card}: is there, and stays as you edited it; --license and --samples "
            "are for a new one: leave them out, or delete it"
        )


# ------------------------------------------------------------------------ the folder


def published(model: Model) -> Checkpoint:
    """The model with all that `sample` needs of its run, in its config.

    These are the settings of its sampler, and the atom counts that it draws.
    """
    params, config = model.checkpoint
    known = {name: model.habit.get(name) for name in (*DEFAULTS, "precision")}
    sampling = {name: value for name, value in known.items() if value is not None}
    counts = model.count_shares().tolist()
    return Checkpoint(params, config | {"sampling": sampling, "atom_counts": counts})


def write_model(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes a model directory; one of the same model is left as it is.

    Raises:
      UserError: there is another model.
    """
    if (folder / "config.json").is_file():
        there = load_model(folder)
        same = params_digest(there.params) == params_digest(checkpoint.params)
        for name in ("sampling", "atom_counts"):
            same &= there.config.get(name) == checkpoint.config[name]
        if not same:
            raise UserError(
                f"{folder}: holds another model; delete it, or give another --out"
            )
        return
    save_model(folder, *checkpoint)


def make_card(args: argparse.Namespace, model: Model) -> Card:
    """The card of a model, with the scores of its evaluated crystals, if there are."""
    place = user_path(args.run.removesuffix("@best"))
    samples, notes = args.samples or place / "samples", []
    run = model.run
    origins = [args.run]
    if run is not None:
        origins = [run["ldm_ckpt_path"], run["vae_ckpt_path"]]
    embedded = all(origin.startswith("mini:") for origin in origins)
    tuned = load_evaluation(samples, "tuned", notes)
    base = load_evaluation(samples / "base", "base", notes)
    manifest = samples / "manifest.json"
    if tuned is not None and manifest.is_file():
        sampled = read_json(manifest).get("checkpoint_sha256")
        if sampled != params_digest(model.checkpoint.params):
            notes.append(f"{samples}: of another state of the model; no scores")
            tuned = base = None
    for note in notes:
        logger.warning("%s", note)
    return Card(
        repo=args.repo,
        licence=args.license or ("mit" if embedded else "unknown"),
        model=model.checkpoint.config,
        num_parameters=sum(x.size for x in jax.tree.leaves(model.checkpoint.params)),
        run=run,
        weights="best" if args.run.endswith("@best") else args.weights,
        iteration=model.iteration,
        tuned=tuned,
        base=base,
    )


# -------------------------------------------------------------------------- the hub


def upload(folder: Path, repo: str) -> Any:
    """Uploads the files of a model, and returns its address.

    A repository that is not there yet is made, for everybody to see.

    Raises:
      UserError: the hub refuses, or is out of reach.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(repo, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=FILES,
            commit_message="Model of chemeleon_jax",
        )
    except Exception as e:  # its errors have no common base, its cause may be anything
        raise UserError(
            f"--upload: {repo} was not written ({type(e).__name__}: {one_line(e)}). "
            "`hf auth login`, or HF_TOKEN, says who you are; the folder stays as it is"
        ) from e
    return address


def main(argv: list[str] | None = None) -> int:
    """Runs the program; what the user can put right is one line and status 2."""
    return exit_status(lambda: publish(parse(argv)))


if __name__ == "__main__":
    run_program(main)

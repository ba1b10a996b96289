"""Convert Chemeleon2 checkpoints: `python -m convert_checkpoints FILE... --out DIR`."""

import argparse
import math
from functools import partial
from typing import Any

from chemeleon_jax.errors import ProgramParser, exit_status, run_program
from chemeleon_jax.runs.files import user_path

PARTS = ("encoder", "decoder", "dit")


def parse_heads(text: str) -> tuple[str, int]:
    """'dit=12' -> ('dit', 12)."""
    part, _, number = text.partition("=")
    if part not in PARTS or not number.isdecimal() or int(number) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r}: give PART=NUMBER, PART one of {', '.join(PARTS)}"
        )
    return part, int(number)


def describe(config: dict[str, Any]) -> str:
    """What a converted file turned out to be, in a line."""
    found = [{"vae": "VAE", "ldm": "LDM", "predictor": "predictor"}[config["kind"]]]
    if dit := config.get("dit"):
        found.append(
            f"DiT {dit['depth']} x {dit['width']}, {dit['heads']} heads, "
            f"{'learned' if dit['learn_sigma'] else 'fixed'} sigma"
        )
    if "condition" in config:
        specs = (config["condition"] or {}).get("specs", ())
        names = ", ".join(f"{s['name']} ({s['kind']})" for s in specs)
        found.append(f"conditions {names}" if names else "unconditional")
    if predictor := config.get("predictor"):
        found.append("targets " + ", ".join(predictor["targets"]))
    if vae := config.get("vae"):
        for part in ("encoder", "decoder"):
            size = vae[part]
            found.append(
                f"{part} {size['layers']} x {size['width']}, {size['heads']} heads"
            )
        found.append(f"{vae['latent_channels']} latent channels")
    return "; ".join(found)


def main(argv: list[str] | None = None) -> int:
    """Runs the program; what the user can put right is one line and status 2."""
    return exit_status(_run, argv)


def _run(argv: list[str] | None) -> None:
    parser = ProgramParser("convert_checkpoints", __doc__)
    add = partial(parser.add_argument, type=user_path)
    add("files", nargs="+", metavar="FILE", help=".ckpt or .safetensors")
    add("--out", required=True, metavar="DIR", help="model directory")
    parser.add_argument("--weights", choices=("raw", "ema"), default="raw")
    parser.add_argument(
        "--heads",
        type=parse_heads,
        action="append",
        default=[],
        metavar="PART=NUMBER",
        help="attention heads of encoder, decoder or dit, where no file says",
    )
    args = parser.parse_args(argv)
    from flax.traverse_util import flatten_dict

    from convert_checkpoints.conversion import convert  # after --help: loads JAX

    results = convert(args.files, args.out, args.weights, dict(args.heads))
    for path, (directory, result) in zip(args.files, results.items(), strict=True):
        tensors = list(flatten_dict(result.params).values())
        size = sum(math.prod(x.shape) for x in tensors)
        print(f"{path}: {describe(result.config)}")
        print(f"  {len(tensors)} tensors, {size:,} parameters ({args.weights})")
        print(f"  -> {directory}")


if __name__ == "__main__":
    run_program(main)

"""Puts a trained model among the embedded ones, as float16.

    python -m tools.embed_model runs/vae vae
    python -m tools.embed_model runs/ldm ldm_conditional
    python -m tools.embed_model runs/ldm ldm --unconditional
    python -m tools.embed_model runs/predictor predictor

Embed the VAE before the others are trained: they stand on its rounded parameters. The
line that is printed belongs into `checkpoints.MINI_MODELS`.
"""

import argparse
import copy
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from chemeleon_jax import checkpoints
from chemeleon_jax.checkpoints import Checkpoint
from chemeleon_jax.files import digest
from chemeleon_jax.models.condition import input_width, make_condition_encoder

ASSETS = Path("chemeleon_jax/assets/mini")


def without_conditions(model: Checkpoint) -> Checkpoint:
    """A conditional denoiser that nobody asks for anything, without its encoders.

    The encoding of nothing is one vector, added to that of the timestep: it becomes
    part of that layer's bias, and the outputs stay what they are.
    """
    specs = model.config["condition"]["specs"]
    nothing = {s["name"]: jnp.zeros((1, input_width(s))) for s in specs}
    encoder = make_condition_encoder(model.config["condition"])
    variables = {"params": model.params["condition"]}
    encoded = encoder.apply(variables, nothing, jnp.zeros(1, bool))
    dit = copy.deepcopy(model.params["dit"])
    dit["timestep"]["out"]["bias"] += np.asarray(encoded[0])
    return Checkpoint({"dit": dit}, {**model.config, "condition": None})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="directory of a trained model")
    parser.add_argument("name", help="vae, ldm, ldm_conditional or predictor")
    parser.add_argument("--unconditional", action="store_true")
    parser.add_argument("--out", type=Path, default=ASSETS)
    args = parser.parse_args()
    model = checkpoints.load(args.model)
    if args.unconditional:
        model = without_conditions(model)
    checkpoints.save_model(args.out / args.name, *model, dtype=np.float16)
    print(f'"{args.name}": "{digest(args.out / args.name / "config.json")}",')


if __name__ == "__main__":
    main()

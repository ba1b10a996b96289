"""Puts a trained model among the embedded ones, as float16.

    python -m tools.embed_model runs/vae vae
    python -m tools.embed_model runs/ldm ldm_conditional
    python -m tools.embed_model runs/predictor predictor

Embed the VAE before the others are trained: they stand on its rounded parameters. The
line that is printed belongs into `loading.MINI_MODELS`.
"""

import argparse
from pathlib import Path

import numpy as np

from chemeleon_jax.models import store
from chemeleon_jax.models.loading import load_checkpoint
from chemeleon_jax.runs.files import digest

ASSETS = Path("chemeleon_jax/assets/mini")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="directory of a trained model")
    parser.add_argument("name", help="vae, ldm_conditional or predictor")
    parser.add_argument("--out", type=Path, default=ASSETS)
    args = parser.parse_args()
    model = load_checkpoint(args.model)
    store.save_model(args.out / args.name, *model, dtype=np.float16)
    print(f'"{args.name}": "{digest(args.out / args.name / "config.json")}",')


if __name__ == "__main__":
    main()

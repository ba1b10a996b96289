"""Errors of a predictor on crystals it has not seen.

    python tools/measure_predictor.py mini:predictor

Mean absolute errors on the test split of mp_mini, beside those of always guessing the
mean of the training split.
"""

import argparse

import jax
import numpy as np

from chemeleon_jax.data.dataset import load_dataset
from chemeleon_jax.models.loading import load_checkpoint
from chemeleon_jax.models.predictor import make_predictor
from chemeleon_jax.models.vae import make_vae


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("predictor", help="mini:predictor or a model directory")
    parser.add_argument("--vae", default="mini:vae")
    args = parser.parse_args()
    checkpoint, vae_checkpoint = (
        load_checkpoint(name) for name in (args.predictor, args.vae)
    )
    vae = make_vae(vae_checkpoint.config["vae"])
    predictor = make_predictor(checkpoint.config["predictor"])
    dataset = load_dataset("mp_mini")
    train, test = dataset.select("train"), dataset.select("test")

    @jax.jit
    def predict(crystals):
        features, posterior = vae.apply(
            {"params": vae_checkpoint.params["vae"]}, crystals, method="encode"
        )
        return predictor.denormalise(
            predictor.apply(
                {"params": checkpoint.params["predictor"]},
                features,
                posterior.mean,
                crystals.mask,
            )
        )

    predicted = np.asarray(predict(test.crystals))
    print(f"{'':20}{'crystals':>9}{'MAE':>10}{'of mean':>10}")
    for i, name in enumerate(checkpoint.config["predictor"]["targets"]):
        wanted = test.labels[name]
        known = ~np.isnan(wanted)
        mae = np.abs(predicted[known, i] - wanted[known]).mean()
        guess = np.abs(np.nanmean(train.labels[name]) - wanted[known]).mean()
        print(f"{name:20}{known.sum():9}{mae:10.3f}{guess:10.3f}")


if __name__ == "__main__":
    main()

r"""A reward of known form: the bulk modulus that the embedded predictor expects.

    python -m chemeleon_jax.train --config=rl_custom_reward \
        --config.reward.components.custom.function=benchmarks.bulk_modulus:bulk_modulus

It stands for a costly reward where what is learnt with fewer calls is measured: it
costs nothing, and is the same function in every run (docs/notebook/objectives.md).
"""

import functools
from collections.abc import Callable

import jax
import numpy as np
from pymatgen.core import Structure

from chemeleon_jax.data.crystals import from_structures
from chemeleon_jax.data.dataset import MAX_ATOMS
from chemeleon_jax.models.loading import load_checkpoint
from chemeleon_jax.models.predictor import make_predictor
from chemeleon_jax.models.vae import make_vae

SIZE = 32  # crystals at once


def bulk_modulus(structures: list[Structure]) -> np.ndarray:
    """Of n crystals, in GPa, [n]; not below 0."""
    predict, moduli = _predictor(), []
    for i in range(0, len(structures), SIZE):
        some = structures[i : i + SIZE]
        batch = from_structures(some, MAX_ATOMS, SIZE)
        moduli.append(np.asarray(predict(batch))[: len(some)])
    return np.maximum(np.concatenate(moduli), 0.0)


@functools.cache
def _predictor() -> Callable:
    vae_checkpoint, checkpoint = map(load_checkpoint, ("mini:vae", "mini:predictor"))
    vae = make_vae(vae_checkpoint.config["vae"])
    predictor = make_predictor(checkpoint.config["predictor"])
    column = checkpoint.config["predictor"]["targets"].index("bulk_modulus")

    @jax.jit
    def predict(crystals):
        params = {"params": vae_checkpoint.params["vae"]}
        features, posterior = vae.apply(params, crystals, method="encode")
        params = {"params": checkpoint.params["predictor"]}
        normalised = predictor.apply(params, features, posterior.mean, crystals.mask)
        return predictor.denormalise(normalised)[:, column]

    return predict

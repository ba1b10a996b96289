"""The property predictor, on features of a frozen encoder."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from chemeleon_jax.data.batches import augment
from chemeleon_jax.data.csv import SPLITS
from chemeleon_jax.data.dataset import Dataset
from chemeleon_jax.errors import UserError
from chemeleon_jax.models import store
from chemeleon_jax.models.predictor import make_predictor
from chemeleon_jax.pretraining.stage import PerCrystal, Stage, load_vae


def predictor_stage(config, dataset: Dataset, key: jax.Array) -> Stage:
    """Properties from features of a frozen VAE encoder; missing labels are left out."""
    vae, frozen, vae_config = load_vae(config.vae_ckpt_path)
    labels = np.stack([dataset.labels[name] for name in config.targets], -1)
    mean, std = np.nanmean(labels, 0), np.nanstd(labels, 0)
    module_config = {
        "targets": list(config.targets),
        "mean": mean.tolist(),
        "std": std.tolist(),
    }
    predictor = make_predictor(module_config)

    def loss(params, frozen, crystals, labels, key, train):
        lattice = crystals.lattice
        if train:
            crystals, lattice = augment(key, crystals)
        variables = {"params": frozen["vae"]}
        features, posterior = vae.apply(variables, crystals, lattice, method="encode")
        predicted = predictor.apply(
            {"params": params["predictor"]}, features, posterior.mean, crystals.mask
        )
        wanted = jnp.stack([labels[name] for name in config.targets], -1)
        scale = std + 1e-5
        error = predicted - (wanted - mean[None]) / scale[None]
        known = ~jnp.isnan(wanted)
        error = jnp.where(known, error, 0.0)
        metrics = {"loss": PerCrystal(error**2, known)}
        for i, name in enumerate(config.targets):
            off = jnp.abs(error[:, i]) * scale[i]
            metrics[f"mae_{name}"] = PerCrystal(off, known[:, i])
        # A target without labels in a batch adds nothing to its loss.
        count = jnp.maximum(known.sum(0), 1)
        return ((error**2).sum(0) / count).mean(), metrics

    crystals = dataset.subset(np.arange(1)).crystals
    features, posterior = vae.apply(
        {"params": frozen["vae"]}, crystals, crystals.lattice, method="encode"
    )
    variables = predictor.init(key, features, posterior.mean, crystals.mask)
    saved = {
        "kind": "predictor",
        "predictor": module_config,
        "vae": vae_config,
        "vae_ckpt_path": config.vae_ckpt_path,
        "encoder_sha256": store.encoder_digest(frozen["vae"]),
    }
    return Stage({"predictor": variables["params"]}, frozen, loss, saved)


def labelled_crystals(dataset: Dataset, targets: Sequence[str]) -> Dataset:
    """The crystals that have one of the labels in `config.targets`.

    Raises:
      UserError: there are no targets, or no crystal to train on, or none to validate,
        has one of them.
    """
    asked = "config.targets"
    if not targets:
        raise UserError(f"{asked}: empty; name the labels to predict, one or more")
    labels = np.stack([dataset.label(name, asked) for name in targets])
    for split in ("train", "validation"):
        there = ~np.isnan(labels[:, dataset.split == SPLITS.index(split)])
        for name, known in zip(targets, there, strict=True):
            if not known.any():
                raise UserError(
                    f"{asked}: no crystal of the split {split!r} has a label {name!r}; "
                    "label some, or leave that target out"
                )
    return dataset.subset(~np.isnan(labels).all(0))

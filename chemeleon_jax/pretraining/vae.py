"""The VAE: crystals to latents and back."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from chemeleon_jax.data.batches import augment, corrupt
from chemeleon_jax.data.dataset import Dataset
from chemeleon_jax.errors import UserError
from chemeleon_jax.models import store
from chemeleon_jax.models.vae import ERRORS, make_vae, vae_loss
from chemeleon_jax.pretraining.stage import PerCrystal, Stage, choose, load_vae


def vae_stage(config, dataset: Dataset, key: jax.Array) -> Stage:
    """The VAE, trained on augmented crystals, validated on crystals as they are.

    With `config.encoder_ckpt_path` the encoder of that VAE is kept as it is, and its
    latents with it: what was trained on them goes with the new decoder.
    """
    module_config = config.vae.to_dict()
    vae = make_vae(module_config)
    weights = config.loss_weights.to_dict()
    error = choose(config, "error", ERRORS)
    kept = kept_encoder(config, module_config) if config.encoder_ckpt_path else {}

    def loss(params, frozen, crystals, labels, key, train):
        del labels
        kept = frozen["vae"]
        lattice, seen = crystals.lattice, crystals
        augment_key, corrupt_key, noise_key, latent_key = jax.random.split(key, 4)
        if train:
            crystals, lattice = augment(augment_key, crystals, **config.augment)
            seen = corrupt(corrupt_key, crystals, lattice, **config.corrupt)
        variables = {"params": params["vae"] | kept}
        _, posterior = vae.apply(variables, seen, lattice, method="encode")
        amount = train
        if kept:
            # From the posterior's mean, as they are validated, to all of the noise.
            share_key = jax.random.fold_in(latent_key, 0)
            amount *= jax.random.uniform(share_key, (len(lattice), 1, 1))
        # The decoder learns to mend what a denoiser will get wrong by this much.
        noise = jax.random.normal(latent_key, posterior.mean.shape)
        z = posterior.sample(amount * jax.random.normal(noise_key, noise.shape))
        z += amount * config.latent_noise * noise
        decoded = vae.apply(variables, z, crystals.mask, method="decode")
        total, terms = vae_loss(decoded, posterior, crystals, weights, error)
        right = decoded.atom_logits.argmax(-1) == crystals.atom_types
        terms["types_right"] = (right & crystals.mask).sum() / crystals.mask.sum()
        terms["loss"] = total
        # Means over atoms or crystals; the crystals of a batch share them.
        known = jnp.ones(len(lattice), bool)
        return total, {
            name: PerCrystal(jnp.broadcast_to(value, known.shape), known)
            for name, value in terms.items()
        }

    crystals = dataset.subset(np.arange(1)).crystals
    noise = jnp.zeros((*crystals.mask.shape, vae.latent_channels))
    params = vae.init(key, crystals, crystals.lattice, noise)["params"]
    params = {part: params[part] for part in params.keys() - kept.keys()}
    saved = {"kind": "vae", "vae": module_config}
    return Stage({"vae": params}, {"vae": kept}, loss, saved, {"vae": kept})


def kept_encoder(config, module_config) -> dict[str, Any]:
    """The encoder's parameters of the VAE `config.encoder_ckpt_path`.

    Raises:
      UserError: it is no VAE, or its encoder is not like the one in `module_config`.
    """
    name = config.encoder_ckpt_path
    _, frozen, given = load_vae(name, "encoder_ckpt_path")
    for field in ("encoder", "latent_channels"):
        if given[field] != module_config[field]:
            raise UserError(
                f"config.vae.{field}: {module_config[field]}, but the encoder of "
                f"{name}, which is to be kept, has {given[field]}"
            )
    return {part: frozen["vae"][part] for part in store.ENCODER_PARTS}

"""The denoiser, on latents of a frozen VAE."""

import jax
import jax.numpy as jnp
import numpy as np

from chemeleon_jax.data.dataset import Dataset
from chemeleon_jax.models import store
from chemeleon_jax.models.condition import (
    condition_vectors,
    drop_conditions,
    make_condition_encoder,
)
from chemeleon_jax.models.diffusion import (
    TIMESTEP_QUANTILES,
    ldm_loss,
    make_schedule,
)
from chemeleon_jax.models.dit import DiT
from chemeleon_jax.models.vae import VAE
from chemeleon_jax.pretraining.stage import PerCrystal, Stage, choose, load_vae

# What of the posterior's noise is on the latents that a denoiser learns to make.
POSTERIOR_NOISE = {"sample": 1.0, "mean": 0.0}


def ldm_stage(config, dataset: Dataset, key: jax.Array) -> Stage:
    """The denoiser, and encoders of conditions if any, on latents of a frozen VAE."""
    vae, frozen, vae_config = load_vae(config.vae_ckpt_path)
    latent_std = measure_latent_std(vae, frozen["vae"], dataset)
    dit_config = {**config.dit.to_dict(), "latent_channels": vae.latent_channels}
    dit = DiT(**dit_config)
    specs = [with_statistics(s.to_dict(), dataset) for s in config.conditions.values()]
    condition_config = {"specs": specs, "width": dit.width} if specs else None
    condition = make_condition_encoder(condition_config) if specs else None
    schedule = make_schedule("ddpm", 1000)
    quantile = choose(config, "timesteps", TIMESTEP_QUANTILES)
    posterior_noise = choose(config, "latents", POSTERIOR_NOISE)

    def loss(params, frozen, crystals, labels, key, train):
        keys = jax.random.split(key, 5)
        variables = {"params": frozen["vae"]}
        _, posterior = vae.apply(variables, crystals, method="encode")
        noise = jax.random.normal(keys[0], posterior.mean.shape)
        z = posterior.sample(posterior_noise * noise) / latent_std
        # Stratified: each follows the density, together they are spread evenly.
        uniform = (jnp.arange(len(z)) + jax.random.uniform(keys[1])) / len(z)
        t = quantile(uniform, config.timestep_mean, config.timestep_std)
        index = (t * schedule.num_steps).astype(jnp.int32)
        y = None
        if condition is not None:
            vectors, known = condition_vectors(specs, crystals, labels)
            drop = jax.random.uniform(keys[2], (len(z),)) < config.drop_prob * train
            vectors = drop_conditions(keys[4], vectors, config.drop_prob * train)
            variables = {"params": params["condition"]}
            y = condition.apply(variables, vectors, known & ~drop)

        def denoiser(z, t):
            return dit.apply({"params": params["dit"]}, z, t, crystals.mask, y)

        noise = jax.random.normal(keys[3], z.shape) * crystals.mask[..., None]
        terms = ldm_loss(denoiser, z, noise, index, crystals.mask, schedule=schedule)
        known = jnp.ones(len(z), bool)
        metrics = {name: PerCrystal(value, known) for name, value in terms.items()}
        return terms["loss"].mean(), metrics

    crystals = jax.tree.map(jnp.asarray, dataset.subset(np.arange(1)).crystals)
    z = jnp.zeros((*crystals.mask.shape, vae.latent_channels))
    y = jnp.zeros((1, dit.width)) if specs else None
    params = {"dit": dit.init(key, z, jnp.zeros(1), crystals.mask, y)["params"]}
    if condition is not None:
        vectors, known = condition_vectors(
            specs, crystals, {s["name"]: jnp.zeros(1) for s in specs}
        )
        params["condition"] = condition.init(key, vectors, known)["params"]
    saved = {
        "kind": "ldm",
        "dit": dit_config,
        "condition": condition_config,
        "diffusion": {"timesteps": 1000, "schedule": "linear"},
        "latent_std": latent_std,
        "vae": vae_config,
        "encoder_sha256": store.encoder_digest(frozen["vae"]),
        "atom_counts": dataset.atom_count_histogram.tolist(),
    }
    return Stage(params, frozen, loss, saved)


def measure_latent_std(vae: VAE, params, dataset: Dataset, batch: int = 512) -> float:
    """Standard deviation of all latent coordinates of a data set, posterior included.

    Latents divided by it have variance 1, as diffusion wants them.
    """

    @jax.jit
    def moments(crystals):
        _, posterior = vae.apply({"params": params}, crystals, method="encode")
        mask = crystals.mask[..., None]
        mean = jnp.where(mask, posterior.mean, 0.0)
        square = jnp.where(mask, posterior.mean**2 + posterior.std**2, 0.0)
        return mean.sum(), square.sum()

    order = np.arange(len(dataset))
    chunks = [order[i : i + batch] for i in range(0, len(order), batch)]
    sums = [moments(dataset.subset(chunk).crystals) for chunk in chunks]
    count = dataset.crystals.mask.sum() * vae.latent_channels
    mean, square = np.sum(np.asarray(sums, np.float64), 0) / count
    return float(np.sqrt(square - mean**2))


def with_statistics(spec: dict, dataset: Dataset) -> dict:
    """A condition's `name` and `kind`, with mean and std of its labels if a float."""
    if spec["kind"] != "float":
        return spec
    values = dataset.label(spec["name"], "config.conditions")
    return {**spec, "mean": float(np.nanmean(values)), "std": float(np.nanstd(values))}

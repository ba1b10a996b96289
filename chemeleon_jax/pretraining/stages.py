"""The three supervised stages: what each trains, on which loss, and what it leaves.

`pretrain.py` runs any of them on one loop.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.scipy.special import ndtri

from chemeleon_jax.data.batches import augment, corrupt
from chemeleon_jax.data.dataset import Dataset
from chemeleon_jax.errors import UserError
from chemeleon_jax.models import store
from chemeleon_jax.models.condition import (
    condition_vectors,
    drop_conditions,
    make_condition_encoder,
)
from chemeleon_jax.models.diffusion import ldm_loss, make_schedule
from chemeleon_jax.models.dit import DiT
from chemeleon_jax.models.loading import load_checkpoint
from chemeleon_jax.models.predictor import make_predictor
from chemeleon_jax.models.vae import ERRORS, VAE, make_vae, vae_loss


class Stage(NamedTuple):
    """One supervised stage."""

    params: Any  # to start from
    frozen: Any  # parameters of the stage before; an argument of jit, not a constant
    loss: Callable  # (params, frozen, crystals, labels, key, train) -> [], metrics
    config: dict[str, Any]  # of the checkpoint that it leaves
    kept: Any = {}  # parameters of that checkpoint that are not trained


# Quantile functions of the densities that training timesteps are drawn from, [0, 1) ->
# [0, 1). The second (arXiv:2403.03206) spares a small model the timesteps where hardly
# anything is left to predict.
TIMESTEP_QUANTILES = {
    "uniform": lambda u, mean, std: u,
    "logit_normal": lambda u, mean, std: jax.nn.sigmoid(mean + std * ndtri(u)),
}

# What of the posterior's noise is on the latents that a denoiser learns to make.
POSTERIOR_NOISE = {"sample": 1.0, "mean": 0.0}


def choose(config, field: str, options: dict[str, Any]) -> Any:
    """What `options` has for the name in a field of the config, or a `UserError`."""
    if config[field] not in options:
        raise UserError(
            f"config.{field}: {config[field]!r}, but there are {', '.join(options)}"
        )
    return options[config[field]]


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
        return total, terms

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
        means = {name: value.mean() for name, value in terms.items()}
        return means.pop("loss"), means

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
        error = predicted - (wanted - mean[None]) / (std[None] + 1e-5)
        known = ~jnp.isnan(wanted)
        error = jnp.where(known, error, 0.0)
        count = jnp.maximum(known.sum(0), 1)
        mae = jnp.abs(error).sum(0) / count * std
        metrics = {f"mae_{n}": mae[i] for i, n in enumerate(config.targets)}
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


def relevant_crystals(config, dataset: Dataset) -> Dataset:
    """The crystals that a stage can learn from; the predictor needs a label."""
    if config.stage != "predictor":
        return dataset
    if unknown := set(config.targets) - set(dataset.labels):
        raise UserError(
            f"config.targets: the data set has no label {sorted(unknown)[0]!r}; it has "
            f"{', '.join(sorted(dataset.labels))}"
        )
    labels = np.stack([dataset.labels[name] for name in config.targets])
    return dataset.subset(~np.isnan(labels).all(0))


STAGES = {"vae": vae_stage, "ldm": ldm_stage, "predictor": predictor_stage}


def start_from(name: str, stage: Stage) -> Stage:
    """The stage, starting from the weights of model `name`; "" for a random start.

    What the model lacks starts as usual: a block more of the denoiser begins as the
    identity (its gates are zero), so a trained model can be made deeper.

    Raises:
      UserError: a model of another kind or width, or one on another VAE.
    """
    if not name:
        return stage
    checkpoint = load_checkpoint(name)
    config, ours = checkpoint.config, stage.config
    if config["kind"] != ours["kind"]:
        raise UserError(f"config.init_from: {name} is of kind {config['kind']!r}")
    if config.get("encoder_sha256") != ours.get("encoder_sha256"):
        raise UserError(
            f"config.init_from: {name} was trained on latents of another encoder "
            "than that of config.vae_ckpt_path; give its VAE"
        )
    params, given = flatten_dict(stage.params), flatten_dict(checkpoint.params)
    for path in sorted(params.keys() & given.keys()):
        if params[path].shape != given[path].shape:
            raise UserError(
                f"config.init_from: {'/'.join(path)} of {name} has the shape "
                f"{given[path].shape}, this model's has {params[path].shape}"
            )
    kept = flatten_dict(stage.kept).keys()
    if unknown := sorted(given.keys() - params.keys() - kept):
        raise UserError(
            f"config.init_from: {name} has parameters that this model lacks, the "
            f"first is {'/'.join(unknown[0])}"
        )
    params |= {path: jnp.asarray(x) for path, x in given.items() if path not in kept}
    return stage._replace(params=unflatten_dict(params))


def with_kept(stage: Stage, params) -> Any:
    """A model's parameters: those that were trained, and those that were kept."""
    return unflatten_dict(flatten_dict(params) | flatten_dict(stage.kept))


def load_vae(name: str, field: str = "vae_ckpt_path") -> tuple[VAE, dict, dict]:
    """The VAE that a later stage stands on: module, {"vae": parameters}, its config."""
    checkpoint = load_checkpoint(name)
    if "vae" not in checkpoint.params:
        raise UserError(
            f"config.{field}: {name} is a checkpoint of kind "
            f"{checkpoint.config['kind']!r} without a VAE; give that of a VAE"
        )
    vae_config = checkpoint.config["vae"]
    return make_vae(vae_config), {"vae": checkpoint.params["vae"]}, vae_config


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
    if spec["name"] not in dataset.labels:
        raise UserError(
            f"config.conditions: the data set has no label {spec['name']!r}; it has "
            f"{', '.join(sorted(dataset.labels))}"
        )
    values = dataset.labels[spec["name"]]
    return {**spec, "mean": float(np.nanmean(values)), "std": float(np.nanstd(values))}

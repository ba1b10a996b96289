"""What the supervised stages share: what a stage is, and where it starts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from chemeleon_jax.errors import UserError
from chemeleon_jax.models.condition import with_more_conditions
from chemeleon_jax.models.loading import load_checkpoint
from chemeleon_jax.models.store import Checkpoint
from chemeleon_jax.models.vae import VAE, make_vae


class PerCrystal(NamedTuple):
    """A metric of B crystals, some of which may have none.

    [B], or [B, T] for T targets: the mean is then that of the targets' means.
    """

    value: jax.Array  # finite also where it does not count
    known: jax.Array  # bool, of the same shape: which count

    @property
    def mean(self) -> jax.Array:
        """Of one batch, []; NaN where a target has none."""
        return self.value.mean(0, where=self.known).mean()

    def sums(self, counted: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of the crystals `counted`, [B] bool: the sum, and of how many, [] or [T].

        Both add up over batches.
        """
        counts = self.known & jnp.expand_dims(counted, range(1, self.known.ndim))
        return self.value.sum(0, where=counts), counts.sum(0)


class Stage(NamedTuple):
    """One supervised stage: what it trains, on which loss, and what it leaves.

    `loss(params, frozen, crystals, labels, key, train)` gives what is to be made
    smaller, [], and its metrics as {name: PerCrystal}, the loss among them.
    """

    params: Any  # to start from
    frozen: Any  # parameters of the stage before; an argument of jit, not a constant
    loss: Callable
    config: dict[str, Any]  # of the checkpoint that it leaves
    kept: Any = {}  # parameters of that checkpoint that are not trained


def choose(config, field: str, options: dict[str, Any]) -> Any:
    """What `options` has for the name in a field of the config, or a `UserError`."""
    if config[field] not in options:
        raise UserError(
            f"config.{field}: {config[field]!r}, but there are {', '.join(options)}"
        )
    return options[config[field]]


def start_from(name: str, stage: Stage) -> Stage:
    """The stage, starting from the weights of model `name`; "" for a random start.

    What the model lacks starts as usual: a block more of the denoiser begins as the
    identity (its gates are zero), so a trained model can be made deeper; a condition
    more says nothing at first.

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
    params = flatten_dict(stage.params)
    given = flatten_dict(_with_our_conditions(checkpoint, ours))
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


def _with_our_conditions(checkpoint: Checkpoint, ours: dict[str, Any]):
    """The checkpoint's parameters, its encoder for our conditions, in our order."""
    params, specs = checkpoint.params, checkpoint.config.get("condition")
    if specs is None or ours.get("condition") is None:
        return params
    known, wanted = (
        [spec["name"] for spec in condition["specs"]]
        for condition in (specs, ours["condition"])
    )
    if not set(known) <= set(wanted):
        return params
    condition = with_more_conditions(params["condition"], known, wanted)
    return {**params, "condition": condition}


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

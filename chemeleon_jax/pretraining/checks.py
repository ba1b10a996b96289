"""Checks of the supervised stages' configs, before anything is loaded or compiled."""

import math
from typing import Any

from chemeleon_jax.errors import require, require_each

_AT_LEAST_ONE = (
    "num_steps",
    "patience",
    "log_every",
    "data.atoms_per_batch",
    "data.crystals_per_batch",
)
_NOT_NEGATIVE = ("optimizer.warmup_steps", "optimizer.weight_decay")
_POSITIVE = ("optimizer.lr", "optimizer.max_grad_norm")


def check_pretrain(config: Any) -> None:
    """Checks the values of a stage's config, before anything is loaded or compiled.

    Raises:
      UserError: one is out of range. It names the field.
    """
    require_each(config, _AT_LEAST_ONE, lambda x: x >= 1, "at least 1")
    require_each(config, _NOT_NEGATIVE, lambda x: x >= 0, "0 or more")
    require_each(config, _POSITIVE, lambda x: x > 0, "above 0")
    require(config, "seed", lambda x: 0 <= x < 2**32, "from 0 to 2^32 - 1")
    # Unlike `train`, which keeps its policy without them.
    rule = "at least 1: what is kept is the model that validates best"
    require(config, "validate_every", lambda x: x >= 1, rule)
    require(config, "ema_decay", lambda x: 0 <= x < 1, "from 0 to below 1")
    if config.stage == "vae":
        _check_vae(config)
    if config.stage == "ldm":
        _check_ldm(config)


def _check_vae(config: Any) -> None:
    _check_sizes(config, "vae.encoder", config.vae.encoder.heads)
    _check_sizes(config, "vae.decoder", config.vae.decoder.heads)
    require(config, "vae.latent_channels", lambda x: x >= 1, "at least 1")
    require(config, "corrupt.type_rate", lambda x: 0 <= x <= 1, "from 0 to 1")
    weights = [f"loss_weights.{name}" for name in config.loss_weights]
    for field in ("corrupt.jitter", "latent_noise", *weights):
        require(config, field, lambda x: x >= 0, "0 or more")


def _check_ldm(config: Any) -> None:
    _check_sizes(config, "dit", config.dit.heads)
    require(config, "dit.depth", lambda x: x >= 0, "0 or more")
    require(config, "drop_prob", lambda x: 0 <= x <= 1, "from 0 to 1")
    require(config, "timestep_std", lambda x: x > 0, "above 0")


def _check_sizes(config: Any, network: str, heads: int) -> None:
    require(config, f"{network}.heads", lambda x: x >= 1, "at least 1")
    # Each head has an equal part; the embedding of places is half sines, half cosines.
    unit = math.lcm(2, heads)
    rule = f"a multiple of {unit}: even, and of config.{network}.heads = {heads}"
    require(config, f"{network}.width", lambda x: x >= 1 and x % unit == 0, rule)

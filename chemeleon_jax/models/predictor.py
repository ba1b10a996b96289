"""Property predictor on a frozen VAE encoder (arXiv:2511.07158)."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from chemeleon_jax.models.layers import masked_mean


class Predictor(nn.Module):
    """Properties of crystals from what the VAE encoder makes of their atoms."""

    targets: Sequence[str]  # names of the properties
    mean: Sequence[float]  # of the training labels, in their units
    std: Sequence[float]

    @nn.compact
    def __call__(
        self, features: jax.Array, latent: jax.Array, mask: jax.Array
    ) -> jax.Array:
        """Normalised properties [B, targets]; see `denormalise` for their own units.

        From features [B, N, D] and posterior mean [B, N, L] of the VAE encoder.
        """
        x = masked_mean(jnp.concatenate([latent, features], -1), mask)
        width = x.shape[-1]
        for i, hidden in enumerate((width // 4, width // 2)):
            x = nn.Dense(hidden, name=f"hidden_{i}")(x)
            x = nn.silu(nn.LayerNorm(1e-5, name=f"norm_{i}")(x))
        return nn.Dense(len(self.targets), name="out")(x)

    def denormalise(self, y: jax.Array) -> jax.Array:
        """Normalised predictions [B, targets] in the units of the labels."""
        std, mean = jnp.asarray(self.std), jnp.asarray(self.mean)
        return y * (std + 1e-5)[None] + mean[None]


def make_predictor(config: Mapping[str, Any]) -> Predictor:
    """The predictor of a checkpoint's config, made hashable for `jit`."""
    return Predictor(**{name: tuple(values) for name, values in config.items()})

"""Normalisations of rewards, over the last axis (Chemeleon2, arXiv:2511.07158)."""

import jax
import jax.numpy as jnp


def min_max(x: jax.Array, eps: float) -> jax.Array:
    """(x - min) / (max - min + eps), in [0, 1]; zeros where max - min < eps."""
    low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
    scaled = jnp.clip((x - low) / (high - low + eps), 0.0, 1.0)
    return jnp.where(high - low < eps, 0.0, scaled)


def standardize(x: jax.Array, eps: float) -> jax.Array:
    """(x - mean) / (std + eps) with the unbiased std; zeros where std < eps."""
    centred = subtract_mean(x, eps)
    degrees = max(x.shape[-1] - 1, 1)  # one value alone has std 0, not 0/0
    std = jnp.sqrt((centred**2).sum(-1, keepdims=True) / degrees)
    return jnp.where(std < eps, 0.0, centred / (std + eps))


def subtract_mean(x: jax.Array, eps: float) -> jax.Array:
    """Deviation from the mean; `eps` is not used."""
    del eps
    return x - x.mean(-1, keepdims=True)


def clip(x: jax.Array, eps: float) -> jax.Array:
    """Clipped to [-1, 1]; `eps` is not used."""
    del eps
    return jnp.clip(x, -1.0, 1.0)


def identity(x: jax.Array, eps: float) -> jax.Array:
    """Unchanged; `eps` is not used."""
    del eps
    return x


NORMALIZATIONS = {
    "norm": min_max,
    "std": standardize,
    "subtract_mean": subtract_mean,
    "clip": clip,
    "none": identity,
}

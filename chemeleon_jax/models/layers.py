"""What the VAE, the denoiser and the predictor are made of. Axes: see `types.py`."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def index_embedding(positions: jax.Array, width: int) -> jax.Array:
    """Sinusoidal embedding of an atom's place in its crystal.

    sin, then cos, of i * pi / 2048**(2 k / width) for k = 0 .. width/2 - 1, of places
    [...] from 0; the width D is even. -> [..., D]
    """
    k = jnp.arange(width // 2)
    angle = positions[..., None].astype(jnp.float32) * (
        jnp.pi / 2048 ** (2 * k / width)
    ).reshape((1,) * positions.ndim + (-1,))
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


def timestep_embedding(t: jax.Array, width: int = 256) -> jax.Array:
    """Sinusoidal embedding of timesteps t [B] -> [B, width]: cos, then sin."""
    half = width // 2
    # On the host, so that it has the same bits everywhere: t multiplies a last digit
    # that differs by up to 1000.
    exponent = np.float32(-np.log(10000)) * np.arange(half, dtype=np.float32) / half
    frequency = np.exp(exponent.astype(np.float64)).astype(np.float32)
    angle = t.astype(jnp.float32)[:, None] * frequency[None]
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


def place_embedding(mask: jax.Array, width: int) -> jax.Array:
    """Of the place of each real atom in its crystal, 0 .. n-1: [B, N] -> [B, N, D]."""
    return index_embedding(jnp.cumsum(mask, -1) - 1, width)


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over real atoms: [B, N, ...] -> [B, ...]."""
    chex.assert_rank(mask, 2, custom_message="mask [B, N]")
    chex.assert_equal_shape_prefix([x, mask], 2)
    weight = mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)).astype(x.dtype)
    return (x * weight).sum(1) / weight.sum(1)


class Attention(nn.Module):
    """Multi-head self-attention that ignores padded atoms."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Attend among real atoms: x [B, N, D], mask [B, N] -> [B, N, D]."""
        width = x.shape[-1]
        split = (*x.shape[:-1], self.heads, width // self.heads)
        query, key, value = (
            nn.Dense(width, name=name)(x).reshape(split)
            for name in ("query", "key", "value")
        )
        attended = jax.nn.dot_product_attention(
            query, key, value, mask=mask[:, None, None, :]
        )
        return nn.Dense(width, name="out")(attended.reshape(x.shape))


class Mlp(nn.Module):
    """Linear, activation, linear."""

    hidden: int
    width: int
    activation: str = "gelu"  # tanh approximation, or "gelu_exact", or "silu"
    first_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., any] -> [..., width]."""
        activate = {
            "gelu": lambda h: nn.gelu(h, approximate=True),
            "gelu_exact": lambda h: nn.gelu(h, approximate=False),
            "silu": nn.silu,
        }[self.activation]
        x = nn.Dense(self.hidden, use_bias=self.first_bias, name="in")(x)
        return nn.Dense(self.width, name="out")(activate(x))


class Transformer(nn.Module):
    """Pre-norm Transformer encoder (torch's LayerNorm epsilon, 1e-5)."""

    layers: int
    heads: int
    mlp_width: int
    activation: str = "gelu"  # of `Mlp`

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """[B, N, D], mask [B, N] -> [B, N, D]."""
        for i in range(self.layers):
            attention = Attention(self.heads, name=f"attention_{i}")
            mlp = Mlp(self.mlp_width, x.shape[-1], self.activation, name=f"mlp_{i}")
            x = x + attention(nn.LayerNorm(1e-5, name=f"norm1_{i}")(x), mask)
            x = x + mlp(nn.LayerNorm(1e-5, name=f"norm2_{i}")(x))
        return nn.LayerNorm(1e-5, name="norm")(x)

"""The denoiser: a diffusion transformer over atoms (DiT, arXiv:2212.09748)."""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from chemeleon_jax.models.layers import (
    Attention,
    Mlp,
    place_embedding,
    timestep_embedding,
)

# depth, width, heads
SIZES = {
    "S": (6, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
}


def dit_size(size: str) -> dict[str, int]:
    """Depth, width and heads of a named size, as keywords of `DiT`."""
    return dict(zip(("depth", "width", "heads"), SIZES[size], strict=True))


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """Shift and scale every atom of a crystal: x [B, N, D], shift and scale [B, D]."""
    return x * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    """Transformer block with adaptive layer norm, gated by the condition."""

    heads: int
    mlp_ratio: int

    @nn.compact
    def __call__(self, x: jax.Array, c: jax.Array, mask: jax.Array) -> jax.Array:
        """X [B, N, D], c [B, D], mask [B, N] -> [B, N, D]."""
        width = x.shape[-1]
        norm = nn.LayerNorm(1e-6, use_bias=False, use_scale=False)
        modulation = nn.Dense(
            6 * width, name="modulation", kernel_init=nn.initializers.zeros
        )(nn.silu(c))
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation, 6, -1)
        attention = Attention(self.heads, name="attention")
        mlp = Mlp(self.mlp_ratio * width, width, name="mlp")
        x = x + gate1[:, None] * attention(modulate(norm(x), shift1, scale1), mask)
        return x + gate2[:, None] * mlp(modulate(norm(x), shift2, scale2))


@partial(jax.jit, static_argnums=0)
def apply_block(block: Block, params, x, c, mask) -> jax.Array:
    """`block` with given parameters: traced once for all blocks of a shape."""
    return block.apply({"params": params}, x, c, mask)


class DiT(nn.Module):
    """Noise prediction for latents. The defaults are the released size, B."""

    depth: int = 12
    width: int = 768
    heads: int = 12
    mlp_ratio: int = 4
    latent_channels: int = 8
    learn_sigma: bool = True

    @nn.compact
    def __call__(
        self, z: jax.Array, t: jax.Array, mask: jax.Array, y: jax.Array | None = None
    ) -> jax.Array:
        """Predict the noise in latents.

        Args:
          z: [B, N, L] noisy latents.
          t: [B] timesteps of the unrespaced schedule, 0 .. 999.
          mask: [B, N].
          y: [B, D] encoded condition; none for an unconditional model.

        Returns:
          [B, N, L] epsilon, or with learned sigma [B, 2N, L]: epsilon of N atoms, then
          their variance values. Released weights rely on how that array comes about:
          the layer's [B, N, 2L] is *reshaped*, not split, so row 2i + h is half h of
          atom i.
        """
        chex.assert_rank(
            [z, t, mask], [3, 1, 2], custom_message="z [B, N, L], t [B], mask [B, N]"
        )
        chex.assert_equal_shape_prefix([z, mask], 2)
        x = nn.Dense(self.width, name="latent")(z)
        x = x + place_embedding(mask, self.width)
        c = Mlp(self.width, self.width, "silu", name="timestep")(timestep_embedding(t))
        c = c if y is None else c + y
        block = Block(self.heads, self.mlp_ratio, parent=None)
        for i in range(self.depth):
            x = apply_block(block, self._block_params(i, block, x, c, mask), x, c, mask)
        modulation = nn.Dense(
            2 * self.width, name="final_modulation", kernel_init=nn.initializers.zeros
        )(nn.silu(c))
        norm = nn.LayerNorm(1e-6, use_bias=False, use_scale=False)
        x = modulate(norm(x), *jnp.split(modulation, 2, -1))
        halves = 2 if self.learn_sigma else 1
        out = nn.Dense(
            halves * self.latent_channels,
            name="final",
            kernel_init=nn.initializers.zeros,
        )(x)
        out = out.reshape(z.shape[0], halves * z.shape[1], self.latent_channels)
        return out * jnp.tile(mask, (1, halves))[..., None]

    def _block_params(self, i: int, block: Block, *inputs):
        name = f"block_{i}"
        if self.is_initializing():
            self.param(name, lambda key: block.init(key, *inputs)["params"])
        return self.variables["params"][name]

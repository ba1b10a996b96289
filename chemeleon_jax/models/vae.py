"""VAE: a crystal as one latent vector per atom, and back (arXiv:2511.07158)."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from flax.core import freeze

from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.models.layers import Mlp, Transformer, masked_mean, place_embedding

NUM_ATOM_TYPES = 100  # classes of the atom-type head; class 0 is "masked"


@struct.dataclass
class Posterior:
    """Diagonal Gaussian over latents."""

    mean: jax.Array  # [B, N, L]
    logvar: jax.Array  # [B, N, L], clipped to [-30, 20]

    @property
    def std(self) -> jax.Array:
        """Standard deviation, [B, N, L]."""
        return jnp.exp(0.5 * self.logvar)

    def sample(self, noise: jax.Array) -> jax.Array:
        """Latents for standard-normal noise [B, N, L]."""
        return self.mean + self.std * noise

    def kl(self) -> jax.Array:
        """KL to the standard normal, nats per atom, [B, N]."""
        terms = self.mean**2 + jnp.exp(self.logvar) - 1 - self.logvar
        return 0.5 * terms.sum(-1)


@struct.dataclass
class Decoded:
    """The decoder's heads."""

    atom_logits: jax.Array  # [B, N, 100]
    frac_coords: jax.Array  # [B, N, 3]
    lengths_scaled: jax.Array  # [B, 3]  cell lengths / n**(1/3), Å
    angles_radians: jax.Array  # [B, 3]


class Encoder(nn.Module):
    """Atoms and cell to features per atom."""

    width: int = 512
    layers: int = 8
    heads: int = 8
    mlp_width: int = 2048
    activation: str = "gelu"  # of `Mlp`; converted Chemeleon2 models have "gelu_exact"

    def setup(self):
        """Create the submodules."""
        self.atom_type = nn.Embed(NUM_ATOM_TYPES, self.width)
        self.lattice = Mlp(self.width, self.width, "silu", first_bias=False)
        self.frac_coords = Mlp(self.width, self.width, "silu", first_bias=False)
        self.transformer = Transformer(
            self.layers, self.heads, self.mlp_width, self.activation
        )

    def __call__(self, atom_types, frac_coords, lattice, mask) -> jax.Array:
        """Types [B, N], coordinates [B, N, 3], lattice [B, 3, 3] -> [B, N, D]."""
        cell = self.lattice(lattice.reshape(-1, 9))[:, None]
        x = self.atom_type(atom_types) + cell + self.frac_coords(frac_coords)
        x = x + place_embedding(mask, self.width)
        return self.transformer(x, mask)


class Decoder(nn.Module):
    """Latents to atoms and cell."""

    width: int = 512
    layers: int = 8
    heads: int = 8
    mlp_width: int = 2048
    activation: str = "gelu"

    @nn.compact
    def __call__(self, z: jax.Array, mask: jax.Array) -> Decoded:
        """Z [B, N, L], mask [B, N] -> `Decoded`."""
        x = nn.Dense(self.width, use_bias=False, name="latent")(z)
        x = x + place_embedding(mask, self.width)
        x = Transformer(
            self.layers, self.heads, self.mlp_width, self.activation, name="transformer"
        )(x, mask)
        lattice = nn.Dense(6, use_bias=False, name="lattice_head")
        cell = lattice(masked_mean(x, mask))
        return Decoded(
            atom_logits=nn.Dense(NUM_ATOM_TYPES, name="atom_types_head")(x),
            frac_coords=nn.Dense(3, use_bias=False, name="frac_coords_head")(x),
            lengths_scaled=cell[:, :3],
            angles_radians=cell[:, 3:],
        )


class VAE(nn.Module):
    """Encoder, posterior and decoder. The defaults are the released sizes."""

    encoder: Any = dataclasses.field(default_factory=dict)  # keywords of Encoder
    decoder: Any = dataclasses.field(default_factory=dict)  # keywords of Decoder
    latent_channels: int = 8

    def setup(self):
        """Create the submodules."""
        self.encode_atoms = Encoder(**self.encoder)
        self.moments = nn.Dense(2 * self.latent_channels, use_bias=False)
        self.decode_atoms = Decoder(**self.decoder)

    def __call__(self, crystals: CrystalBatch, lattice, noise) -> Decoded:
        """Encode, sample, decode; creates every parameter on `init`."""
        _, posterior = self.encode(crystals, lattice)
        return self.decode(posterior.sample(noise), crystals.mask)

    def encode(
        self, crystals: CrystalBatch, lattice: jax.Array | None = None
    ) -> tuple[jax.Array, Posterior]:
        """Encoder features [B, N, D] of crystals, and the posterior over latents.

        `lattice` [B, 3, 3] in Å, where it is not the canonical one (rotated cells).
        """
        lattice = crystals.lattice if lattice is None else lattice
        features = self.encode_atoms(
            crystals.atom_types, crystals.frac_coords, lattice, crystals.mask
        )
        mean, logvar = jnp.split(self.moments(features), 2, -1)
        return features, Posterior(mean, jnp.clip(logvar, -30.0, 20.0))

    def decode(self, z: jax.Array, mask: jax.Array) -> Decoded:
        """Decoder heads for latents z [B, N, L]."""
        return self.decode_atoms(z, mask)

    def embed_types(self, atom_types: jax.Array) -> jax.Array:
        """Atom-type embedding [B, N] -> [B, N, D], the composition features."""
        return self.encode_atoms.atom_type(atom_types)


def make_vae(config: Mapping[str, Any]) -> VAE:
    """The VAE of a checkpoint's config: keywords of `VAE`, made hashable for `jit`."""
    return VAE(
        **{k: freeze(v) if isinstance(v, Mapping) else v for k, v in config.items()}
    )


def to_crystals(decoded: Decoded, mask: jax.Array) -> CrystalBatch:
    """The crystals that the decoder's heads stand for.

    Class 0 of the atom types, "masked", is read as hydrogen, as Chemeleon2 does.
    """
    chex.assert_equal_shape_prefix([decoded.atom_logits, mask], 2)
    atom_types = jnp.maximum(jnp.argmax(decoded.atom_logits, -1), 1)
    scale = jnp.cbrt(mask.sum(-1, keepdims=True).astype(jnp.float32))
    return CrystalBatch(
        atom_types=jnp.where(mask, atom_types, 0).astype(jnp.int32),
        frac_coords=jnp.where(mask[..., None], decoded.frac_coords, 0.0),
        lengths=decoded.lengths_scaled * scale,
        angles=jnp.rad2deg(decoded.angles_radians),
        mask=mask,
    )


LOSS_WEIGHTS = {
    "atom_types": 1.0,
    "lengths": 1.0,
    "angles": 10.0,
    "frac_coords": 10.0,
    "kl": 1e-5,
}
ERRORS = {"squared": jnp.square, "absolute": jnp.abs}


def vae_loss(
    decoded: Decoded,
    posterior: Posterior,
    crystals: CrystalBatch,
    weights: dict[str, float] | None = None,
    error: Callable[[jax.Array], jax.Array] = jnp.square,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Reconstruction and KL terms, averaged over atoms (or over crystals for the cell).

    Args:
      decoded: the decoder's heads.
      posterior: of the encoded crystals.
      crystals: what should have been decoded.
      weights: of the terms; `LOSS_WEIGHTS`, the published ones, by default.
      error: of coordinates and cell, one of `ERRORS`; squared, the published one, by
        default. The best answer under an absolute one is a median: where several places
        are likely, one of them, not one between.

    Returns:
      The weighted sum, and each term unweighted.
    """
    mask = crystals.mask
    chex.assert_rank(mask, 2, custom_message="mask [B, N]")
    chex.assert_equal_shape_prefix([decoded.atom_logits, mask, posterior.mean], 2)
    chex.assert_equal_shape([decoded.frac_coords, crystals.frac_coords])
    atoms = mask.sum()
    log_p = jax.nn.log_softmax(decoded.atom_logits)
    picked = jnp.take_along_axis(log_p, crystals.atom_types[..., None], -1)[..., 0]
    scale = jnp.cbrt(mask.sum(-1, keepdims=True).astype(jnp.float32))
    misplaced = jnp.where(
        mask[..., None], error(decoded.frac_coords - crystals.frac_coords), 0.0
    )
    terms = {
        "atom_types": -jnp.where(mask, picked, 0.0).sum() / atoms,
        "lengths": error(decoded.lengths_scaled - crystals.lengths / scale).mean(),
        "angles": error(decoded.angles_radians - jnp.deg2rad(crystals.angles)).mean(),
        "frac_coords": misplaced.sum() / (3 * atoms),
        "kl": jnp.where(mask, posterior.kl(), 0.0).sum() / atoms,
    }
    weights = weights or LOSS_WEIGHTS
    return jnp.stack([weights[k] * terms[k] for k in terms]).sum(), terms

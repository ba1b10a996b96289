"""A latent diffusion model of crystals, assembled: what the policy's parameters move in."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from chemeleon_jax.models.condition import ConditionEncoder
from chemeleon_jax.models.dit import DiT
from chemeleon_jax.models.vae import VAE, to_crystals
from chemeleon_jax.types import CrystalBatch


@struct.dataclass
class Generator:
    """Modules, and everything of them that RL leaves alone.

    The policy's own parameters, those of the denoiser, are not in here: functions take
    them as `params`, so that one `Generator` serves the policy, its average and the
    reference.
    """

    dit: DiT = struct.field(pytree_node=False)
    vae: VAE = struct.field(pytree_node=False)
    condition: ConditionEncoder | None = struct.field(pytree_node=False)
    frozen: Any  # {"vae": ..., "condition": ...}, parameters
    latent_std: jax.Array  # []  latents are divided by it before diffusion
    max_atoms: int = struct.field(pytree_node=False, default=20)

    def denoiser(
        self,
        params: Any,
        mask: jax.Array,
        vectors: dict[str, jax.Array] | None = None,
        cfg_scale: float | None = None,
    ) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """The denoiser as a function of (z, t).

        Args:
          params: of the policy, {"dit": ...}.
          mask: [B, N].
          vectors: preprocessed conditions, {name: [B, in]}; None is unconditional.
          cfg_scale: classifier-free guidance (arXiv:2207.12598): uncond + s * (cond -
            uncond) on the whole output, variance rows included. None is no guidance.
        """
        if vectors is None:
            return lambda z, t: self.dit.apply({"params": params["dit"]}, z, t, mask)
        keep = jnp.ones(len(mask), bool)
        if cfg_scale is None:
            y = self.encode_condition(vectors, keep)
            return lambda z, t: self.dit.apply({"params": params["dit"]}, z, t, mask, y)
        y = jnp.concatenate([self.encode_condition(vectors, k) for k in (keep, ~keep)])
        mask = jnp.tile(mask, (2, 1))

        def guided(z, t):
            t = jnp.broadcast_to(t, len(z))
            out = self.dit.apply(
                {"params": params["dit"]}, jnp.tile(z, (2, 1, 1)), jnp.tile(t, 2), mask, y
            )
            cond, uncond = jnp.split(out, 2)
            return uncond + cfg_scale * (cond - uncond)

        return guided

    def encode_condition(self, vectors, keep) -> jax.Array:
        """Preprocessed conditions, dropped where not `keep` [B] -> [B, D]."""
        return self.condition.apply({"params": self.frozen["condition"]}, vectors, keep)

    def encode(self, crystals: CrystalBatch) -> jax.Array:
        """Posterior mean, scaled for diffusion, [B, N, L]."""
        _, posterior = self.vae.apply(
            {"params": self.frozen["vae"]}, crystals, method="encode"
        )
        return posterior.mean / self.latent_std

    def decode(self, z: jax.Array, mask: jax.Array) -> CrystalBatch:
        """Crystals of diffusion latents z [B, N, L]."""
        decoded = self.vae.apply(
            {"params": self.frozen["vae"]}, z * self.latent_std, mask, method="decode"
        )
        return to_crystals(decoded, mask)

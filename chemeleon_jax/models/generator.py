"""A latent diffusion model of crystals, assembled."""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from chemeleon_jax.data.types import CrystalBatch, SymmetryTemplate
from chemeleon_jax.errors import UserError
from chemeleon_jax.models.condition import make_condition_encoder
from chemeleon_jax.models.diffusion import (
    NUM_TIMESTEPS,
    Denoiser,
    make_schedule,
    split_output,
)
from chemeleon_jax.models.dit import DiT
from chemeleon_jax.models.guidance import allowed_elements, elements_log_prob
from chemeleon_jax.models.store import Checkpoint, encoder_digest
from chemeleon_jax.models.symmetry import symmetrise
from chemeleon_jax.models.vae import VAE, Decoded, make_vae, to_crystals


@struct.dataclass
class Generator:
    """Modules, and everything of them that RL leaves alone.

    The policy's own parameters, those of the denoiser, are not in here: functions take
    them as `params`, so that one `Generator` serves the policy, its average and the
    reference.
    """

    dit: DiT = struct.field(pytree_node=False)
    vae: VAE = struct.field(pytree_node=False)
    condition: Any = struct.field(pytree_node=False)  # ConditionEncoder, or None
    frozen: Any  # {"vae": ..., "condition": ...}, parameters
    latent_std: jax.Array  # []  latents are divided by it before diffusion
    max_atoms: int = struct.field(pytree_node=False, default=20)

    def effective_cfg_scale(self, scale: float | None) -> float | None:
        """The `cfg_scale`, or None where it would change nothing and cost half."""
        return scale if self.condition and scale != 1.0 else None

    def denoiser(
        self,
        params: Any,
        mask: jax.Array,
        vectors: dict[str, jax.Array] | None = None,
        cfg_scale: float | None = None,
        decoder_scale: float | None = None,
        template: SymmetryTemplate | None = None,
    ) -> Denoiser:
        """The denoiser as a function of (z, t).

        Args:
          params: of the policy, {"dit": ...}.
          mask: [B, N].
          vectors: preprocessed conditions, {name: [B, in]}; None is unconditional.
          cfg_scale: classifier-free guidance (arXiv:2207.12598): uncond + s * (cond -
            uncond) on the whole output, variance rows included. None is no guidance.
          decoder_scale: guidance by the decoder (see `guidance`), towards the elements
            in `vectors`. None is none.
          template: the symmetry that crystals should have, and their elements, towards
            which latents are moved instead.
        """
        chex.assert_rank(mask, 2, custom_message="mask [B, N]")
        chex.assert_equal_shape_prefix([mask, *(vectors or {}).values()], 1)
        denoise = self._denoiser(params, mask, vectors, cfg_scale)
        if template is not None:
            return self._guided_by_symmetry(denoise, mask, template)
        if vectors is None or decoder_scale is None:
            return denoise
        return self._guided_by_decoder(denoise, mask, vectors, decoder_scale)

    def _denoiser(self, params, mask, vectors, cfg_scale) -> Denoiser:
        predict = partial(self.dit.apply, {"params": params["dit"]})
        if vectors is None:
            return lambda z, t: predict(z, t, mask)
        keep = jnp.ones(len(mask), bool)
        if cfg_scale is None:
            y = self.encode_condition(vectors, keep)
            return lambda z, t: predict(z, t, mask, y)
        y = jnp.concatenate([self.encode_condition(vectors, k) for k in (keep, ~keep)])
        twice = jnp.tile(mask, (2, 1))

        def guided(z, t):
            # One timestep for all stays one: so does the modulation's share of it.
            t = t if len(t) == 1 else jnp.tile(t, 2)
            cond, uncond = jnp.split(predict(jnp.tile(z, (2, 1, 1)), t, twice, y), 2)
            return uncond + cfg_scale * (cond - uncond)

        return guided

    def _guided_by_decoder(self, denoise, mask, vectors, scale) -> Denoiser:
        """Epsilon - s sqrt(a (1 - a)) g: the clean latents move by s (1 - a) g."""
        allowed = allowed_elements(self.condition.specs, vectors, mask)
        every_step = make_schedule("ddpm", NUM_TIMESTEPS)

        def log_prob(z_clean):
            logits = self.decode_heads(z_clean, mask).atom_logits
            return elements_log_prob(logits, allowed, mask).sum()

        def guided(z, t):
            eps, values = split_output(denoise(z, t), z.shape[1])
            gradient = jax.grad(log_prob)(every_step.predict_clean(z, eps, t))
            step = scale * every_step.signal[t] * every_step.noise[t]
            eps -= step[:, None, None] * gradient
            return eps if values is None else jnp.concatenate([eps, values], 1)

        return guided

    def _guided_by_symmetry(self, denoise, mask, template) -> Denoiser:
        """The clean latents move by what symmetrising changes in their encoding."""
        every_step = make_schedule("ddpm", NUM_TIMESTEPS)

        def guided(z, t):
            eps, values = split_output(denoise(z, t), z.shape[1])
            z_clean = every_step.predict_clean(z, eps, t)
            before = self.decode(z_clean, mask)
            after = self.decode(z_clean, mask, template)
            moved = (self.encode(after) - self.encode(before)) * mask[..., None]
            step = every_step.signal[t] / every_step.noise[t]
            eps -= step[:, None, None] * moved
            return eps if values is None else jnp.concatenate([eps, values], 1)

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

    def decode(
        self, z: jax.Array, mask: jax.Array, template: SymmetryTemplate | None = None
    ) -> CrystalBatch:
        """Crystals of diffusion latents z [B, N, L], symmetrised if a template says."""
        decoded = self.decode_heads(z, mask)
        if template is not None:
            decoded = symmetrise(decoded, template)
        return to_crystals(decoded, mask)

    def decode_heads(self, z: jax.Array, mask: jax.Array) -> Decoded:
        """What the decoder makes of diffusion latents z [B, N, L]."""
        chex.assert_rank([z, mask], [3, 2], custom_message="z [B, N, L], mask [B, N]")
        chex.assert_equal_shape_prefix([z, mask], 2)
        return self.vae.apply(
            {"params": self.frozen["vae"]}, z * self.latent_std, mask, method="decode"
        )


def combine_checkpoints(ldm: Checkpoint, vae: Checkpoint) -> Checkpoint:
    """One checkpoint of a denoiser and the VAE that decodes its latents.

    Raises:
      UserError: they are not what they are taken for, or do not belong together.
    """
    for field, checkpoint, part in (("ldm", ldm, "dit"), ("vae", vae, "vae")):
        if part not in checkpoint.params:
            raise UserError(
                f"config.{field}_ckpt_path: names a checkpoint of kind "
                f"{checkpoint.config['kind']!r}, which holds no {field.upper()}"
            )
    expected = ldm.config.get("encoder_sha256")
    if expected and expected != encoder_digest(vae.params["vae"]):
        raise UserError(
            "config.vae_ckpt_path: not the VAE whose latents the denoiser of "
            "config.ldm_ckpt_path was trained on (their checksums differ)"
        )
    channels = ldm.config["dit"]["latent_channels"]
    if channels != (decoded := vae.config["vae"]["latent_channels"]):
        raise UserError(
            f"config.vae_ckpt_path: its latents have {decoded} channels, the denoiser "
            f"of config.ldm_ckpt_path takes {channels}"
        )
    return Checkpoint(
        ldm.params | {"vae": vae.params["vae"]}, ldm.config | {"vae": vae.config["vae"]}
    )


def make_generator(
    checkpoint: Checkpoint, max_atoms: int
) -> tuple[Generator, dict[str, Any]]:
    """A generator and its policy {"dit": ...} from an LDM's checkpoint with its VAE.

    See `combine_checkpoints`; crystals are padded to `max_atoms`.
    """
    params, config = checkpoint
    condition = config.get("condition")
    model = Generator(
        dit=DiT(**config["dit"]),
        vae=make_vae(config["vae"]),
        condition=make_condition_encoder(condition) if condition else None,
        frozen={k: params[k] for k in ("vae", "condition") if k in params},
        latent_std=jnp.float32(config["latent_std"]),
        max_atoms=max_atoms,
    )
    return model, {"dit": params["dit"]}

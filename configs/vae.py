"""The embedded VAE, `mini:vae`, in two trainings.

On one core: 24 minutes on 2026-11-22, of encoder and decoder; and 68 minutes on
2026-11-28, shared with measurements, of another decoder on the latents of that encoder.
Of the 720 test crystals 98.9 % are given back under StructureMatcher (93.6 % after the
first training), 92.1 % with noise of a fifth of the latents' std on them, and all
elements are right (`python tools/measure_reconstruction.py mini:vae`; more in
docs/mini-model.md).

    python -m chemeleon_jax.pretrain --config=vae --workdir=runs/vae
    python -m chemeleon_jax.pretrain --config=vae:decoder
"""

from ml_collections import ConfigDict

from chemeleon_jax.errors import UserError
from chemeleon_jax.pretraining.config import pretrain_config


def get_config(preset: str = "") -> ConfigDict:
    """Presets: none, or decoder for the second training."""
    config = pretrain_config("vae")
    config.num_steps = 4200
    config.validate_every = 700

    # The crystals of a data set have one origin (see data/crystals.py), which the
    # decoder may know: it then puts atoms where such crystals have them.
    config.augment = ConfigDict()
    config.augment.translate = False
    config.augment.rotate = True

    # Noise on what the encoder sees, not on what is to be decoded.
    config.corrupt = ConfigDict()
    config.corrupt.type_rate = 0.0  # share of atoms whose element is hidden
    config.corrupt.jitter = 0.0  # Å, standard deviation of the atoms' displacements

    # On what the decoder sees, beyond the posterior's own; latents have a std of 2.
    config.latent_noise = 0.6

    transformer = {"width": 128, "layers": 4, "heads": 4, "mlp_width": 512}
    config.vae = ConfigDict()
    config.vae.encoder = ConfigDict(transformer)
    config.vae.decoder = ConfigDict(transformer)
    config.vae.latent_channels = 24  # many, so that each can do without precision

    # The published weights but for the KL, a hundred times as large.
    config.loss_weights = ConfigDict()
    config.loss_weights.atom_types = 1.0
    config.loss_weights.lengths = 1.0
    config.loss_weights.angles = 10.0
    config.loss_weights.frac_coords = 10.0
    config.loss_weights.kl = 1e-3
    config.error = "squared"  # of coordinates and cell, or absolute

    # The VAE whose encoder is kept as it is, so that only a decoder is trained.
    config.encoder_ckpt_path = ""
    if preset == "decoder":
        _second_training(config)
    elif preset:
        raise UserError(f"no preset '{preset}': there is decoder")
    return config


def _second_training(config: ConfigDict) -> None:
    """A larger decoder, to put atoms where they belong, from the same latents."""
    config.encoder_ckpt_path = "runs/vae"
    config.num_steps = 9000
    config.validate_every = 600
    config.optimizer.weight_decay = 0.0
    config.augment.rotate = False  # latents as the denoiser makes them
    config.vae.decoder = ConfigDict(
        {"width": 192, "layers": 6, "heads": 6, "mlp_width": 768}
    )
    # Four of ten coordinates are a multiple of 1/4 or 1/3: with an absolute error the
    # decoder says so, with a squared one it hedges.
    config.error = "absolute"
    config.loss_weights.lengths = 2.0
    config.loss_weights.angles = 5.0
    config.loss_weights.frac_coords = 20.0

"""The embedded latent diffusion models, on latents of `mini:vae`, in four trainings.

On one core: 50 minutes on 2026-11-22 and -23, validation mse 0.120; 72 minutes on
2026-11-23 with two blocks more, 0.104; 103 minutes with another four, 0.098; and, on
other latents and timesteps, 73 minutes on 2026-11-28, shared with measurements, 0.049.
These are means over batches, as validation was then; over crystals the last is 0.047.
What its crystals are worth is in docs/mini-model.md. As they were run, the timesteps of
the first training were uniform up to step 3,600, and `means` had full batches and a
cosine of 8,400 steps up to step 3,801.

The result is `mini:ldm_conditional`; `mini:ldm` is the same one asked for nothing.

    python -m chemeleon_jax.pretrain --config=ldm
    python -m chemeleon_jax.pretrain --config=ldm:deeper
    python -m chemeleon_jax.pretrain --config=ldm:deepest
    python -m chemeleon_jax.pretrain --config=ldm:means
"""

from ml_collections import ConfigDict

from chemeleon_jax.errors import UserError
from chemeleon_jax.pretraining.config import pretrain_config

# The trainings after the first: what each starts from, its blocks and its steps.
LATER = {
    "deeper": ("runs/ldm", 8, 12600),
    "deepest": ("runs/ldm_deeper", 12, 12000),
    "means": ("runs/ldm_deepest", 12, 9200),
}


def get_config(preset: str = "") -> ConfigDict:
    """Presets: none, or deeper, deepest and means, the trainings after the first.

    Conditional on composition and chemical system, fixed sigma, on mp_mini.
    """
    config = pretrain_config("ldm")
    config.num_steps = 9600
    config.validate_every = 600
    config.vae_ckpt_path = "mini:vae"

    config.dit = ConfigDict()
    config.dit.depth = 6
    config.dit.width = 160
    config.dit.heads = 5
    config.dit.learn_sigma = False

    # Conditions by name; {} for an unconditional model. See models/condition.py.
    config.conditions = ConfigDict()
    for name in ("composition", "chemical_system"):
        config.conditions[name] = ConfigDict({"name": name, "kind": name})
    # Of all of a crystal's conditions in training, for guidance; and of each, so that
    # one can be asked for without the others. Half: the unconditional model matters.
    config.drop_prob = 0.5
    config.timesteps = "logit_normal"  # or uniform, as in Chemeleon2
    config.timestep_mean, config.timestep_std = -0.6, 1.0  # of the density's logit
    # What the denoiser learns to make: a sample of the VAE's posterior, or its mean.
    config.latents = "sample"

    config.data.atoms_per_batch = 768
    config.optimizer.lr = 8e-4
    config.optimizer.weight_decay = 0.0
    if preset in LATER:
        # Blocks that the start lacks begin as the identity.
        config.init_from, config.dit.depth, config.num_steps = LATER[preset]
        config.ema_decay = 0.9995
        config.optimizer.lr = 6e-4
        config.optimizer.warmup_steps = 300
    elif preset:
        raise UserError(f"no preset '{preset}': there are {', '.join(LATER)}")
    if preset == "means":
        # Without the posterior's own noise there is something to learn at low t, where
        # atoms are put in place; and the decoder gets less noise.
        config.latents = "mean"
        config.timestep_mean, config.timestep_std = -0.8, 1.3
        # Full batches of small crystals are few, and their crystals count little.
        config.data.crystals_per_batch = 64
    return config

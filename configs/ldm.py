"""The embedded latent diffusion models, on latents of `mini:vae`, in two trainings.

On one core: 50 minutes on 2026-11-22 and -23, validation mse 0.120; then 72 minutes on
2026-11-23 with two blocks more, 0.104. What its crystals are worth is in
docs/mini-model.md. As it was run, the timesteps of the first training were uniform up
to step 3,600.

`mini:ldm_conditional` is the second model; `mini:ldm` is the same one asked for nothing
(`python -m tools.embed_model runs/ldm_deeper ldm --unconditional`).

    python -m chemeleon_jax.pretrain --config=configs/ldm.py
    python -m chemeleon_jax.pretrain --config=configs/ldm.py:deeper
"""

from ml_collections import ConfigDict

from chemeleon_jax.errors import UserError
from configs.pretraining import pretrain_config


def get_config(preset: str = "") -> ConfigDict:
    """Conditional on composition and chemical system, fixed sigma, on mp_mini.

    Args:
      preset: none, or `deeper` for the second training.
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

    config.data.atoms_per_batch = 768
    config.optimizer.lr = 8e-4
    config.optimizer.weight_decay = 0.0
    if preset == "deeper":
        # Two more blocks, which begin as the identity.
        config.init_from = "runs/ldm"
        config.dit.depth = 8
        config.num_steps = 12600
        config.ema_decay = 0.9995
        config.optimizer.lr = 6e-4
        config.optimizer.warmup_steps = 300
    elif preset:
        raise UserError(f"no preset '{preset}': there is only 'deeper'")
    return config

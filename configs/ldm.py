"""The embedded latent diffusion models, on latents of `mini:vae`.

50 minutes on one core, 2026-11-22 and -23; validation mse 0.120. What its crystals are
worth is in docs/mini-model.md. As it was run, the timesteps were uniform up to step
3,600.

`mini:ldm_conditional` is this model; `mini:ldm` is the same one asked for nothing
(`python -m tools.embed_model runs/ldm ldm --unconditional`).

python -m chemeleon_jax.pretrain --config=configs/ldm.py --workdir=runs/ldm
"""

from ml_collections import ConfigDict

from configs.pretraining import pretrain_config


def get_config() -> ConfigDict:
    """Conditional on composition and chemical system, fixed sigma, on mp_mini."""
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
    return config

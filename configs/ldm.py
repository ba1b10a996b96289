"""The embedded latent diffusion model, `mini:ldm`, on latents of `mini:vae`.

32 minutes on one busy core, 2026-11-22; validation mse 0.113. A first model: of its
crystals 88 % are valid (no contact under 0.5 Å), but most lie several eV/atom above the
hull. Stored as float16.

python -m chemeleon_jax.pretrain --config=configs/ldm.py --workdir=runs/ldm
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Unconditional, fixed sigma, on the train split of mp_mini."""
    config = ConfigDict()
    config.stage = "ldm"
    config.seed = 0
    config.num_steps = 5000
    config.validate_every = 500
    config.patience = 6  # validations without improvement
    config.log_every = 50
    config.ema_decay = 0.999
    config.vae_ckpt_path = "mini:vae"

    config.data = ConfigDict()
    config.data.dataset = "mp_mini"
    config.data.atoms_per_batch = 1024  # padded; a batch holds one size of crystals

    config.dit = ConfigDict()
    config.dit.depth = 6
    config.dit.width = 144
    config.dit.heads = 6
    config.dit.learn_sigma = False

    # Conditions by name, for example
    #   {"band_gap": {"name": "band_gap", "kind": "float"}}; see models/condition.py.
    config.conditions = ConfigDict()
    # Of all of a crystal's conditions in training, for guidance; and of each, so that
    # one can be asked for without the others.
    config.drop_prob = 0.1

    config.optimizer = ConfigDict()
    config.optimizer.lr = 6e-4
    config.optimizer.warmup_steps = 200
    config.optimizer.weight_decay = 0.0
    config.optimizer.max_grad_norm = 1.0
    return config

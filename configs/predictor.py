"""The embedded property predictor, `mini:predictor`, on features of `mini:vae`.

10 minutes on one busy core, 2026-11-22, best after 1,000 steps. Mean absolute error on
the validation split, and that of always guessing the training mean: band gap 0.57
(1.07) eV, formation energy 0.44 (0.81) eV/atom, bulk modulus 27 (49) GPa.

python -m chemeleon_jax.pretrain --config=configs/predictor.py --workdir=runs/predictor
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Band gap (eV), formation energy (eV/atom), bulk modulus (GPa)."""
    config = ConfigDict()
    config.stage = "predictor"
    config.seed = 0
    config.num_steps = 3000
    config.validate_every = 100
    config.patience = 10  # validations without improvement
    config.log_every = 50
    config.ema_decay = 0.99
    config.vae_ckpt_path = "mini:vae"
    config.targets = ("band_gap", "formation_energy", "bulk_modulus")

    config.data = ConfigDict()
    config.data.dataset = "mp_mini"
    config.data.atoms_per_batch = 1600  # padded; a batch holds one size of crystals

    config.optimizer = ConfigDict()
    config.optimizer.lr = 1e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.weight_decay = 0.05
    config.optimizer.max_grad_norm = 1.0
    return config

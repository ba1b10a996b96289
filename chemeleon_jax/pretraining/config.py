"""What the configs of the supervised stages share."""

from ml_collections import ConfigDict


def pretrain_config(stage: str) -> ConfigDict:
    """The fields of every stage: vae, ldm or predictor."""
    config = ConfigDict()
    config.stage = stage
    config.seed = 0
    config.init_from = ""  # the model to start from; "" for a random start
    config.precision = "default"  # of matrix products: or float32, or bfloat16
    config.num_steps = 4000
    config.validate_every = 400
    config.patience = 10  # validations without improvement
    config.log_every = 50
    config.ema_decay = 0.999

    config.data = ConfigDict()
    config.data.dataset = "mp_mini"
    config.data.atoms_per_batch = 1024  # padded; a batch holds one size of crystals
    config.data.crystals_per_batch = 512  # at most, however small they are

    config.optimizer = ConfigDict()
    config.optimizer.lr = 1e-3
    config.optimizer.warmup_steps = 200
    config.optimizer.weight_decay = 0.01
    config.optimizer.max_grad_norm = 1.0

    config.tracking = ConfigDict()
    config.tracking.wandb = False  # the events on Weights & Biases too
    return config

"""The reward that a config asks for, with the models that it needs."""

from chemeleon_jax.data.dataset import load_dataset
from chemeleon_jax.errors import UserError
from chemeleon_jax.models.generator import Generator
from chemeleon_jax.models.loading import load_checkpoint
from chemeleon_jax.models.predictor import make_predictor
from chemeleon_jax.models.store import Checkpoint, encoder_digest
from chemeleon_jax.models.vae import make_vae
from chemeleon_jax.rewards.config import active_components
from chemeleon_jax.rewards.reward import Reward, make_reward


def load_reward(config, model: Generator) -> Reward:
    """The reward of a config, with the models that its components need."""
    references = load_dataset(config.reward.reference_dataset)
    components, predictor = active_components(config), None
    if "predictor" in components:
        name = config.reward.components.predictor.ckpt_path
        checkpoint = load_checkpoint(name)
        if "predictor" not in checkpoint.params:
            raise UserError(
                f"config.reward.components.predictor.ckpt_path: {name} holds no "
                f"predictor but {', '.join(checkpoint.params)}"
            )
        vae = load_predictor_vae(checkpoint)
        predictor = (
            make_vae(vae.config["vae"]),
            make_predictor(checkpoint.config["predictor"]),
            {"vae": vae.params["vae"], "predictor": checkpoint.params["predictor"]},
        )
    energy = config.reward.components.energy.to_dict()
    return make_reward(
        config.reward.to_dict() | {"components": {"energy": energy} | components},
        dataset=references,
        vae=(model.vae, model.frozen["vae"]),
        predictor=predictor,
    )


def load_predictor_vae(predictor: Checkpoint) -> Checkpoint:
    """The VAE whose features a predictor reads: in its own file, or named there."""
    if "vae" in predictor.params:
        return predictor
    name = predictor.config["vae_ckpt_path"]
    vae = load_checkpoint(name)
    if encoder_digest(vae.params["vae"]) != predictor.config.get("encoder_sha256"):
        raise UserError(
            f"config.reward.components.predictor.ckpt_path: the predictor was trained "
            f"on features of {name}, whose encoder has changed since; train it again "
            "with configs/predictor.py"
        )
    return vae

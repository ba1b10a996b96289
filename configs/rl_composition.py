"""Low-energy structures of compositions that you name.

    python -m chemeleon_jax.train --config=rl_composition \
        --config.data.compositions=LiMnO2,CaTiO3
    python -m chemeleon_jax.train --config=rl_composition \
        "--config.data.compositions=LiMnO2 8,CaTiO3 5 10"

Each group is one composition, sampled with guidance by the decoder; its crystals are
compared with each other by their energy as they relax. With atom counts behind it a
formula has those alone. Without `data.compositions` they are those of the embedded data
set, and the policy learns structures in general.
"""

from chemeleon_jax.rl.config import judge_relaxed, learn_by_nft, rl_config


def get_config():
    """For the embedded conditional model."""
    config = rl_config("mini")
    config.ldm_ckpt_path = "mini:ldm_conditional"
    config.sampling.decoder_guidance = 6.0
    config.sampling.cfg_scale = 1.0
    # Learns from crystals, however they were guided. After some 45 iterations fewer of
    # them are valid (docs/notebook/objectives.md).
    learn_by_nft(config)
    config.num_iterations = 40
    config.data.batch_size = 8
    config.reward.normalize_in_group = True
    judge_relaxed(config)
    components = config.reward.components
    components.energy.weight = 1.0
    components.displacement.weight = 0.7
    components.uniqueness.weight = 0.1
    components.asked_composition.weight = 1.0
    return config

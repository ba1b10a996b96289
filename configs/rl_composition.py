"""Low-energy structures of compositions that you name.

    python -m chemeleon_jax.train --config=rl_composition \
        --config.data.compositions=LiMnO2,CaTiO3

Each group is one composition, sampled with guidance by the decoder; its crystals are
compared with each other by their energy as they relax, and the lowest found so far of
each composition are learnt again and again. Without `data.compositions` they are those
of the embedded data set, and the policy learns structures in general.
"""

from chemeleon_jax.rl.config import judge_relaxed, rl_config


def get_config():
    """For the embedded conditional model."""
    config = rl_config("mini")
    config.ldm_ckpt_path = "mini:ldm_conditional"
    config.sampling.decoder_guidance = 6.0
    config.sampling.sampling_steps = 10
    # Learns from crystals, however they were guided, and unlike awm is not pushed away
    # from the worse ones without a bound: docs/notebook/objectives.md.
    config.rl.objective = "nft"
    config.rl.kl_target = "reference"
    config.rl.kl_weight = 0.1
    config.rl.ema_decay = 0.9
    config.rl.timesteps_per_crystal = 16
    config.rl.replay.crystals = 64
    config.rl.replay.iterations = 1000
    config.rl.replay.share = 1.0
    config.optimizer.lr = 2e-4
    config.data.batch_size = 8
    judge_relaxed(config)
    components = config.reward.components
    # Not normalised, so that rewards of a composition compare between iterations.
    components.energy.weight = 3.0
    components.energy.normalize_fn = "none"
    components.energy.decay = 0.3  # within a composition, what is far above counts too
    components.displacement.weight = 0.3
    # Else the best structure of a composition is all that is left of it.
    components.uniqueness.weight = 0.5
    components.asked_composition.weight = 1.0
    return config

"""Crystals with a band gap of 3 eV, as a predictor sees it.

    python -m chemeleon_jax.train --config=rl_bandgap
    python -m chemeleon_jax.train --config=rl_bandgap:alex_mp_20

Crystals count as they relax, and those that two potentials put near the hull count
more; `unrelaxed` is without this guard. The predictor is the embedded one in every
preset (the paper's is not released). Train a better one with configs/predictor.py, and
give its path as `--config.reward.components.predictor.ckpt_path`.
"""

from chemeleon_jax.rl.config import RELAXED, judge_relaxed, rl_config


def get_config(preset: str = "mini"):
    """Presets: mini (the default), unrelaxed, mp_20, alex_mp_20."""
    config = rl_config(preset)
    if preset not in ("mini", "unrelaxed"):
        config.rl.clip_ratio = 1e-4
    components = config.reward.components
    components.predictor.weight = 1.0
    components.predictor.property = "band_gap"
    components.predictor.target = 3.0
    components.predictor.clip_min = 0.0
    components.composition_diversity.weight = 0.5
    if preset in RELAXED:  # a gap of a crystal that could exist
        judge_relaxed(config)
        components.energy.weight = 1.0
    return config

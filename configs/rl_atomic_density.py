"""Denser crystals, in atoms per Å^3: the simplest reward there is.

python -m chemeleon_jax.train --config=configs/rl_atomic_density.py
python -m chemeleon_jax.train --config=configs/rl_atomic_density.py:alex_mp_20

`mini` with `--config.num_iterations=60`: 19 minutes on a shared core (2026-11-22). Mean
of 512 fresh crystals 0.047 to 0.190, while valid ones fall from 90 to 36 %: density
alone is a poor wish.
"""

from configs.base import rl_config


def get_config(preset: str = "mini"):
    """The config of a preset: mini, mp_20 or alex_mp_20."""
    config = rl_config(preset)
    config.reward.components.custom.function = (
        "chemeleon_jax.rewards.custom:atomic_density"
    )
    return config

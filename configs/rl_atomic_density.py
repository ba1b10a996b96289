"""Denser crystals, in atoms per Å^3: the simplest reward there is.

python -m chemeleon_jax.train --config=rl_atomic_density
python -m chemeleon_jax.train --config=rl_atomic_density:alex_mp_20

`mini` with `--config.num_iterations=60`: 16 minutes on a core (2026-11-28). Mean of 512
fresh crystals 0.053 to 0.193, while metastable ones fall from 8.4 to 0.2 %: density
alone is a poor wish.
"""

from chemeleon_jax.rl.config import rl_config


def get_config(preset: str = "mini"):
    """Presets: mini (the default), mp_20, alex_mp_20."""
    config = rl_config(preset)
    config.reward.components.custom.function = (
        "chemeleon_jax.workers.custom:atomic_density"
    )
    return config

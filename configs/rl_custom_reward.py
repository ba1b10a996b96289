"""A reward of your own: change `reward` below, or name a function of yours.

    python -m chemeleon_jax.train --config=rl_custom_reward
    python -m chemeleon_jax.train --config=rl_custom_reward \
        --config.reward.components.custom.function=my_module:my_reward

Its raw value is logged as `train/custom`. Other components can join it, for example
with `--config.reward.components.composition_diversity.weight=0.5`.
"""

import numpy as np
from pymatgen.core import Structure

from chemeleon_jax.rl.config import rl_config


def reward(structures: list[Structure]) -> np.ndarray:
    """Crystals of about 5 g/cm^3: minus the distance of the mass density to it.

    It runs in a worker process.

    Args:
      structures: the valid crystals of a batch, n of them.

    Returns:
      [n], higher is better. If it raises, hangs or returns NaN for a crystal, that one
      counts as the worst of its batch, and the run goes on.
    """
    return np.array([-abs(structure.density - 5.0) for structure in structures])


def get_config(preset: str = "mini"):
    """Presets: mini (the default), mp_20, alex_mp_20."""
    config = rl_config(preset)
    config.reward.components.custom.function = f"{__file__}:reward"
    return config

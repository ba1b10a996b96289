"""Rewards of crystals.

The names below are imported when first asked for (PEP 562): worker processes load the
modules of this package that they need, and not JAX.
"""

from importlib import import_module

_EXPORTS = {
    "Reward": "chemeleon_jax.rewards.reward",
    "RewardOutput": "chemeleon_jax.rewards.reward",
    "compute_rewards": "chemeleon_jax.rewards.scoring",
    "make_reward": "chemeleon_jax.rewards.reward",
}

__all__ = list(_EXPORTS)  # noqa: PLE0604


def __getattr__(name: str):
    """Import an exported name when it is first asked for."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)

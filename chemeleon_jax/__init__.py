"""GRPO fine-tuning of crystal diffusion models, in JAX.

The functions that the training loop calls are exported here, lazily: a worker process
or a tool that needs none of them does not pay for their imports.
"""

import os
from importlib import import_module

# Before jaxlib is loaded. Of programs that JAX reads back from its cache XLA may say at
# length that they were compiled for another machine, and mean preferences of the same
# one (openxla/xla#44565). What goes wrong is raised; what ends the process is printed.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

_EXPORTS = {
    "load": "chemeleon_jax.interface",
    "relax": "chemeleon_jax.interface",
    "sample_group": "chemeleon_jax.rl.sampler",
    "compute_rewards": "chemeleon_jax.rewards",
    "grpo_loss": "chemeleon_jax.rl.objective",
    "train_step": "chemeleon_jax.rl.learner",
    "load_checkpoint": "chemeleon_jax.models.loading",
    "CrystalBatch": "chemeleon_jax.data.types",
    "Trajectory": "chemeleon_jax.data.types",
}

__all__ = list(_EXPORTS)  # noqa: PLE0604
__version__ = "0.1.0"


def __getattr__(name: str):
    """Import an exported name when it is first asked for (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'chemeleon_jax' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)

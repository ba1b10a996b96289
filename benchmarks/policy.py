"""A policy of a published size with random weights, and what it is asked for."""

import argparse
import contextlib
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from chemeleon_jax.data.dataset import MP20_ATOM_COUNTS
from chemeleon_jax.models import buckets
from chemeleon_jax.models.dit import DiT, dit_size
from chemeleon_jax.models.generator import Generator
from chemeleon_jax.models.vae import make_vae

MAX_ATOMS = 20
MEMORY_BUDGET = 8.0  # GB, as in rl/config.py
# Layers of VAEs: one that costs nothing beside the denoiser, and the paper's.
SMALL_VAE = {"width": 128, "layers": 2, "heads": 4, "mlp_width": 256}
PAPER_VAE = {"width": 512, "layers": 8, "heads": 8, "mlp_width": 2048}


def parse_sizes(doc: str | None) -> argparse.Namespace:
    """Flags of the sizes that rollout and update share."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--size", default="S", help="of the DiT: S, B, L or XL")
    parser.add_argument("--groups", type=int, default=5)
    parser.add_argument("--group_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="cost is linear in them")
    parser.add_argument("--atoms", type=int, default=0, help="0: as in MP-20")
    parser.add_argument("--repeats", type=int, default=2)
    return parser.parse_args()


def random_generator(size: str, max_atoms: int) -> tuple[Generator, Any]:
    """A DiT of a size, unconditional, a small VAE, and the policy's parameters."""
    return random_models(DiT(**dit_size(size), learn_sigma=False), SMALL_VAE, max_atoms)


def random_models(dit: DiT, vae: dict[str, int], max_atoms: int):
    """A generator of a denoiser and of a VAE with such layers, and its policy."""
    model, policy = generator_shapes(dit, vae, max_atoms)
    rng = np.random.default_rng(0)

    def draw(x):
        noise = rng.standard_normal(x.shape, np.float32)
        return jnp.asarray(np.float32(0.02) * noise, x.dtype)

    return model.replace(frozen=jax.tree.map(draw, model.frozen)), jax.tree.map(
        draw, policy
    )


def generator_shapes(dit: DiT, vae: dict[str, int], max_atoms: int):
    """The same with the shapes of parameters in place of them: it takes no memory."""
    module = make_vae({"encoder": vae, "decoder": vae, "latent_channels": 8})
    z, mask = jnp.zeros((1, 4, 8)), jnp.ones((1, 4), bool)

    def shapes(module, *inputs, **kwargs):
        init = lambda key: module.init(key, *inputs, **kwargs)["params"]  # noqa: E731
        return jax.eval_shape(init, jax.random.key(0))

    frozen = {"vae": shapes(module, z, mask, method="decode")}
    policy = {"dit": shapes(dit, z, jnp.zeros(1), mask)}
    return Generator(dit, module, None, frozen, jnp.float32(1.0), max_atoms), policy


def typical_atom_counts(groups: int) -> np.ndarray:
    """Quantiles of MP-20's atom counts at equal distances, [G]."""
    at = (np.arange(groups) + 0.5) / groups
    return 1 + np.searchsorted(np.cumsum(MP20_ATOM_COUNTS), at)


def useful_operations(dit: DiT, num_atoms: np.ndarray) -> float:
    """Of one forward pass in the blocks' matrix products; padding does not count."""
    n = num_atoms.astype(float)
    return dit.depth * (24 * n * dit.width**2 + 4 * n**2 * dit.width).sum()


def all_padded() -> contextlib.AbstractContextManager:
    """Where every crystal is padded to the longest there may be: the baseline."""
    return mock.patch.object(buckets, "WIDTH_STEP", 10**6)

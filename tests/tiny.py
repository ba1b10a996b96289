"""A generator so small that it compiles in a second, with weights that do something."""

from functools import cache

import jax
import jax.numpy as jnp

from chemeleon_jax.checkpoints import Checkpoint
from chemeleon_jax.models.dit import DiT
from chemeleon_jax.models.generator import make_generator
from chemeleon_jax.models.vae import make_vae
from chemeleon_jax.types import CrystalBatch

TRANSFORMER = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 32}
VAE = {"encoder": TRANSFORMER, "decoder": TRANSFORMER, "latent_channels": 4}
DIT = {"depth": 2, "width": 16, "heads": 2, "latent_channels": 4}
MAX_ATOMS = 6


def crystals(num_atoms=(2, 5), width=MAX_ATOMS, seed=0) -> CrystalBatch:
    """Random crystals of given atom counts."""
    keys = jax.random.split(jax.random.key(seed), 4)
    size = len(num_atoms)
    mask = jnp.arange(width)[None] < jnp.asarray(num_atoms)[:, None]
    types = jax.random.randint(keys[0], (size, 20), 1, 90)[:, :width]
    coords = jax.random.uniform(keys[1], (size, 20, 3))[:, :width]
    return CrystalBatch(
        atom_types=jnp.where(mask, types, 0),
        frac_coords=jnp.where(mask[..., None], coords, 0.0),
        lengths=4 + jax.random.uniform(keys[2], (size, 3)),
        angles=85 + 10 * jax.random.uniform(keys[3], (size, 3)),
        mask=mask,
    )


def stir(params, key=None, scale=0.1):
    """Parameters moved at random, so that zero-initialised layers take part."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(7) if key is None else key, len(leaves))
    moved = [
        leaf + scale * jax.random.normal(k, leaf.shape)
        for leaf, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, moved)


@cache
def vae_checkpoint() -> Checkpoint:
    """A VAE."""
    example, vae = crystals(), make_vae(VAE)
    noise = jnp.zeros((*example.mask.shape, 4))
    params = jax.jit(vae.init)(jax.random.key(1), example, example.lattice, noise)[
        "params"
    ]
    return Checkpoint({"vae": params}, {"kind": "vae", "vae": VAE})


@cache
def ldm_checkpoint(learn_sigma=False) -> Checkpoint:
    """A denoiser."""
    config = DIT | {"learn_sigma": learn_sigma}
    mask = crystals().mask
    z, t = jnp.zeros((*mask.shape, 4)), jnp.zeros(1)
    params = jax.jit(DiT(**config).init)(jax.random.key(2), z, t, mask)["params"]
    return Checkpoint(
        {"dit": stir(params)},
        {"kind": "ldm", "dit": config, "condition": None, "latent_std": 1.5},
    )


@cache
def generator(learn_sigma=False, max_atoms=MAX_ATOMS):
    """A generator and its policy."""
    ldm, vae = ldm_checkpoint(learn_sigma), vae_checkpoint()
    both = Checkpoint(ldm.params | vae.params, ldm.config | {"vae": VAE})
    model, policy = make_generator(both, max_atoms)
    return model, jax.tree.map(jnp.asarray, policy)

"""A generator so small that it compiles in a second, with weights that do something.

Everything is drawn with NumPy: JAX would compile each draw.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.models.dit import DiT
from chemeleon_jax.models.generator import make_generator
from chemeleon_jax.models.store import Checkpoint
from chemeleon_jax.models.vae import make_vae
from chemeleon_jax.rl.sampler import Sampler, make_sampler

TRANSFORMER = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 32}
VAE = {"encoder": TRANSFORMER, "decoder": TRANSFORMER, "latent_channels": 4}
DIT = {"depth": 2, "width": 16, "heads": 2, "latent_channels": 4}
MAX_ATOMS = 6


def crystals(num_atoms=(2, 5), width=MAX_ATOMS, seed=0) -> CrystalBatch:
    """Random crystals of given atom counts, the same for every width."""
    rng, size = np.random.default_rng(seed), len(num_atoms)
    mask = np.arange(width)[None] < np.asarray(num_atoms)[:, None]
    types = rng.integers(1, 90, (size, 20))[:, :width]
    coords = rng.uniform(size=(size, 20, 3)).astype(np.float32)[:, :width]
    batch = CrystalBatch(
        atom_types=np.where(mask, types, 0),
        frac_coords=np.where(mask[..., None], coords, np.float32(0)),
        lengths=rng.uniform(4, 5, (size, 3)).astype(np.float32),
        angles=rng.uniform(85, 95, (size, 3)).astype(np.float32),
        mask=mask,
    )
    return jax.tree.map(jnp.asarray, batch)


def random_params(module, *inputs, seed=0):
    """Parameters of a module: kernels and biases at random, norms near the identity."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape) / np.sqrt(max(leaf.shape[0], 1))
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(centre + 0.5 * noise, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def stir(params, scale=0.1, seed=7):
    """Parameters moved at random."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: x + jnp.asarray(scale * rng.normal(size=x.shape), x.dtype), params
    )


@cache
def vae_checkpoint() -> Checkpoint:
    """A VAE."""
    example = crystals()
    noise = jnp.zeros((*example.mask.shape, 4))
    params = random_params(make_vae(VAE), example, example.lattice, noise, seed=1)
    return Checkpoint({"vae": params}, {"kind": "vae", "vae": VAE})


@cache
def vae_of_valid_cells() -> Checkpoint:
    """A VAE that decodes almost anything into a cell near 3.5 Å and right angles.

    About nine crystals of ten are valid; of the other VAE's, none.
    """
    vae = vae_checkpoint()
    flat = flatten_dict(vae.params, sep="/")
    head = np.asarray(flat["vae/decode_atoms/lattice_head/kernel"])  # [D, 6]
    cell = np.array([3.5, 3.5, 3.5, np.pi / 2, np.pi / 2, np.pi / 2])
    norm = "vae/decode_atoms/transformer/norm"
    bias = np.linalg.lstsq(head.T, cell, rcond=None)[0]
    flat[f"{norm}/bias"] = jnp.asarray(bias, jnp.float32)
    flat[f"{norm}/scale"] *= 0.4
    return Checkpoint(unflatten_dict(flat, sep="/"), vae.config)


@cache
def ldm_checkpoint(learn_sigma=False, width=DIT["width"]) -> Checkpoint:
    """A denoiser."""
    config = DIT | {"learn_sigma": learn_sigma, "width": width}
    mask = crystals().mask
    z, t = jnp.zeros((*mask.shape, 4)), jnp.zeros(1)
    params = random_params(DiT(**config), z, t, mask, seed=2)
    return Checkpoint(
        {"dit": params},
        {"kind": "ldm", "dit": config, "condition": None, "latent_std": 1.5},
    )


@cache
def generator(learn_sigma=False, max_atoms=MAX_ATOMS, width=DIT["width"]):
    """A generator and its policy."""
    ldm, vae = ldm_checkpoint(learn_sigma, width), vae_checkpoint()
    both = Checkpoint(ldm.params | vae.params, ldm.config | {"vae": VAE})
    return make_generator(both, max_atoms)


def sampler(steps=5, name="ddim", eta=1.0, **kwargs) -> tuple[Sampler, dict]:
    """A sampler and its policy; `kwargs` of `generator`."""
    model, policy = generator(**kwargs)
    made = make_sampler(model, sampler=name, sampling_steps=steps, eta=eta)
    return made, policy

"""A small reward of every component, and random crystals for it to score."""

from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
from pymatgen.core import Lattice, Structure

from chemeleon_jax.data.crystals import from_structures, take
from chemeleon_jax.data.dataset import Dataset
from chemeleon_jax.models.predictor import Predictor
from chemeleon_jax.models.vae import make_vae
from chemeleon_jax.potentials.hull import Hull, composition_counts
from chemeleon_jax.potentials.types import Potential, Status
from chemeleon_jax.rewards import compute_rewards, make_reward

ELEMENTS = [3, 8, 11, 17, 26]
SIZE = {"width": 8, "layers": 1, "heads": 2, "mlp_width": 16}
VAE = make_vae({"encoder": SIZE, "decoder": SIZE, "latent_channels": 4})
PREDICTOR = Predictor(("band_gap", "density"), (1.0, 2.0), (0.5, 3.0))
DENSITY = "chemeleon_jax.workers.custom:atomic_density"
COMPONENTS = {
    "creativity": {"weight": 1.0, "normalize_fn": "none"},
    "energy": {"weight": 1.0, "normalize_fn": "norm"},
    "structure_diversity": {"weight": 0.1, "normalize_fn": "norm"},
    "composition_diversity": {"weight": 1.0, "normalize_fn": "norm"},
    "element_kl": {"weight": 0.3, "normalize_fn": "none"},
    "predictor": {"weight": 1.0, "property": "density", "target": 3.0},
    "custom": {
        "weight": 0.5,
        "function": "chemeleon_jax.workers.custom:atomic_density",
    },
}


def random_crystals(count, seed, width=6):
    rng = np.random.default_rng(seed)
    structures = []
    for _ in range(count):
        n = int(rng.integers(1, 4))
        places = rng.permutation(np.mgrid[:2, :2, :2].reshape(3, -1).T)[:n] / 2
        lattice = Lattice.from_parameters(*rng.uniform(4, 7, 3), 90, 95, 100)
        structures.append(Structure(lattice, rng.choice(ELEMENTS, n), places))
    return from_structures(structures, width)


def make_dataset(crystals):
    count = len(crystals.mask)
    ids = np.array([f"known-{i}" for i in range(count)])
    return Dataset(crystals, {}, ids, np.zeros(count, np.int8))


def stub_energies(crystals):
    """-n eV/atom for n atoms; no energy for those with lithium."""
    energy = -crystals.mask.sum(-1).astype(jnp.float32)
    lithium = (crystals.atom_types == 3).any(-1)
    status = jnp.where(lithium, Status.FAILED, 0)
    return jnp.where(lithium, jnp.nan, energy), status


PURE = composition_counts(np.array(ELEMENTS)[:, None])
HULL = Hull(PURE[:4], [-1.5] * 4)  # iron has no reference
KNOWN = make_dataset(random_crystals(30, seed=100))
BATCH = random_crystals(16, seed=0)


@cache
def models():
    crystals = jax.tree.map(jnp.asarray, take(BATCH, np.arange(2)))
    noise = jnp.zeros((2, 6, 4))
    init = jax.jit(VAE.init)
    vae = init(jax.random.key(0), crystals, crystals.lattice, noise)["params"]
    features, latent = jnp.zeros((2, 6, 8)), jnp.zeros((2, 6, 4))
    init = jax.jit(PREDICTOR.init)
    predictor = init(jax.random.key(1), features, latent, crystals.mask)
    predictor = {"vae": vae, "predictor": predictor["params"]}
    return {"vae": (VAE, vae), "predictor": (VAE, PREDICTOR, predictor)}


def build(pool, components=None, **config):
    config = {"normalize_fn": "std", "eps": 1e-4} | config
    config["components"] = COMPONENTS if components is None else components
    return make_reward(
        config,
        dataset=KNOWN,
        potential=Potential("stub", "stub", stub_energies),
        hull=HULL,
        pool=pool,
        **models(),
    )


score = jax.jit(compute_rewards, static_argnames=("group_size", "with_energies"))


def check_finite(output):
    for name, values in output.components.items():
        assert np.isfinite(values).all(), name
    for array in (output.total, output.advantage, output.raw):
        assert np.isfinite(array).all()
    assert all(np.isfinite(v) for v in output.metrics.values())


def assert_same(one, other, **tolerance):
    chex.assert_trees_all_close(one, other, **{"rtol": 1e-7} | tolerance)

"""Features of crystals: what models compute of them on the device, and compositions."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np

from chemeleon_jax.data.crystals import take
from chemeleon_jax.data.dataset import Dataset
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.models.layers import masked_mean
from chemeleon_jax.models.predictor import Predictor
from chemeleon_jax.models.store import params_digest
from chemeleon_jax.models.vae import VAE
from chemeleon_jax.runs.cached_arrays import cached_arrays

NUM_ELEMENTS = 100  # width of composition vectors, indexed by atomic number
_BATCH = 256  # reference crystals encoded at once


@partial(jax.jit, static_argnums=0)
def mean_latent(vae: VAE, params, crystals: CrystalBatch) -> jax.Array:
    """Structure features: posterior mean, averaged over atoms, [B, L]."""
    _, posterior = vae.apply({"params": params}, crystals, method="encode")
    return masked_mean(posterior.mean, crystals.mask)


@partial(jax.jit, static_argnums=(0, 1))
def predict_properties(
    vae: VAE, predictor: Predictor, params, crystals: CrystalBatch
) -> jax.Array:
    """Predicted properties in their own units, [B, targets].

    Args:
      vae: whose encoder the predictor was trained on.
      predictor: the predictor.
      params: {"vae": ..., "predictor": ...}.
      crystals: B crystals.
    """
    features, posterior = vae.apply(
        {"params": params["vae"]}, crystals, method="encode"
    )
    predicted = predictor.apply(
        {"params": params["predictor"]}, features, posterior.mean, crystals.mask
    )
    return predictor.denormalise(predicted)


def type_embedding(vae: VAE, params, num_types: int) -> np.ndarray:
    """The encoder's atom-type embedding, [num_types, D]."""
    types = jnp.arange(num_types)[None]
    table = vae.apply({"params": params}, types, method="embed_types")
    return np.asarray(table[0])


def embedding_root(vae: VAE, params) -> np.ndarray:
    """Square root R of E E^T, with E the VAE's type embedding, [100, 100].

    Between shares of elements times R, the Fréchet distance is the one between mean
    embeddings of atoms, at 100 numbers per crystal whatever the width of E.
    """
    embedding = type_embedding(vae, params, NUM_ELEMENTS)
    values, vectors = np.linalg.eigh(embedding_gram(embedding) * embedding.shape[1])
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def encode_references(vae: VAE, params, dataset: Dataset) -> np.ndarray:
    """Structure features of a data set, [M, L], computed once and kept on disk."""
    key = f"{dataset.digest} {params_digest(params)} {vae}"
    (features,) = cached_arrays(
        "features", key, lambda: [_encode(vae, params, dataset.crystals)]
    )
    return features


def _encode(vae: VAE, params, crystals: CrystalBatch) -> np.ndarray:
    """Structure features of many crystals, [M, L], batch by batch."""
    count = len(crystals.mask)
    features = []
    for start in range(0, count, _BATCH):
        # The last batch is filled up, so that one shape is compiled.
        rows = np.minimum(np.arange(start, start + _BATCH), count - 1)
        features.append(np.asarray(mean_latent(vae, params, take(crystals, rows))))
    return np.concatenate(features)[:count]


def composition_fractions(atom_types: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Share of each element, [B, 100], from atomic numbers [B, N] and mask [B, N].

    The mean of an embedding over a crystal's atoms is these shares times the embedding
    table: composition features of any width in 100 numbers.
    """
    chex.assert_rank(atom_types, 2)  # [B, N]
    chex.assert_equal_shape([atom_types, mask])
    counts = np.zeros((len(atom_types), NUM_ELEMENTS))
    known = mask & (atom_types > 0) & (atom_types < NUM_ELEMENTS)
    np.add.at(counts, (np.nonzero(known)[0], atom_types[known]), 1.0)
    return counts / np.maximum(counts.sum(-1, keepdims=True), 1.0)


def embedding_gram(embedding: np.ndarray) -> np.ndarray:
    """Inner products of an atom-type embedding [100, D], divided by D, [100, 100]."""
    embedding = np.asarray(embedding, np.float64)
    return embedding @ embedding.T / embedding.shape[1]

"""A training state of a few numbers, which an optimiser has really moved."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from chemeleon_jax.data.types import TrainState

TX = optax.adamw(1e-3)


def small_params(seed=0):
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(3, 2)).astype(np.float32)
    return {"dit": {"x_embedder": {"kernel": kernel, "bias": np.zeros(2, np.float32)}}}


def trained_state(steps=3):
    params = jax.tree.map(jnp.asarray, small_params())
    opt_state, ema = TX.init(params), params
    for i in range(steps):
        grads = jax.tree.map(lambda x, i=i: x + jnp.float32(i), params)
        updates, opt_state = TX.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        ema = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, ema, params)
    return TrainState(jnp.array(steps), params, opt_state, ema, jnp.array(0))


def blank_state():
    return jax.tree.map(jnp.zeros_like, trained_state(0))


def assert_identical(a, b):
    chex.assert_trees_all_equal_dtypes(a, b)
    chex.assert_trees_all_equal(a, b)

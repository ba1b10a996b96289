"""Calls of the host from inside jit."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PIECE = 16_384  # numbers of four bytes: 64 KiB


def call_host(function: Callable[..., Any], result: Any, *args) -> Any:
    """`jax.pure_callback`, of a function that gets trees of NumPy arrays.

    The function calls no JAX; `result` has the shapes and types of what it returns.

    What is larger than 100 kB JAX copies for the host in a thread of its pool, while
    the callback holds another. With as many callbacks as threads, such as one on one
    core, the first look at such an array then waits for ever. Pieces below 100 kB are
    copied at once.
    """
    leaves, structure = jax.tree.flatten(args)
    pieces = [
        [flat[i : i + PIECE] for i in range(0, max(flat.size, 1), PIECE)]
        for flat in (jnp.ravel(x) for x in leaves)
    ]
    shapes = [x.shape for x in leaves]

    def on_host(pieces):
        arrays = [
            np.concatenate([np.asarray(piece) for piece in some]).reshape(shape)
            for some, shape in zip(pieces, shapes, strict=True)
        ]
        return function(*jax.tree.unflatten(structure, arrays))

    return jax.pure_callback(on_host, result, pieces, vmap_method="sequential")

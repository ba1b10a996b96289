"""What a program is compiled for: a mesh, and a precision of matrix products."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

# As JAX names them; sums are float32 in each. The default is what is fast on the
# device: float32 on a CPU, TF32 on a GPU.
PRECISIONS = {"default": None, "float32": "float32", "bfloat16": "BF16_BF16_F32"}


def on_mesh(
    function: Callable[..., Any], mesh: Mesh, precision: str = "default"
) -> Callable[..., Any]:
    """`function` over the devices of a mesh, with one of `PRECISIONS`.

    It is a jitted function, or one that lowers or compiles another.
    """

    def call(*args, **kwargs):
        with jax.set_mesh(mesh), jax.default_matmul_precision(PRECISIONS[precision]):
            return function(*args, **kwargs)

    return call

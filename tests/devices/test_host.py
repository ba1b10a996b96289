"""Calls of the host from inside jit."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import paths
import pytest

from chemeleon_jax.devices.host import PIECE, call_host

ONE_CORE = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.environ["XLA_FLAGS"] = ""
import jax, jax.numpy as jnp, numpy as np
from chemeleon_jax.devices.host import call_host
total = lambda x: np.float32(x.sum())
double = jax.jit(lambda x: call_host(total, jax.ShapeDtypeStruct((), "float32"), 2 * x))
for _ in range(30):
    print(double(np.ones(115_200, np.float32)))
"""


def test_the_host_gets_what_it_was_given():
    given = {
        "large": jnp.arange(2.0 * PIECE + 6).reshape(-1, 2),
        "flags": jnp.array([[True, False]]),
        "number": jnp.int32(7),
        "nothing": jnp.zeros((0, 3)),
    }
    seen = []

    def look(tree, more):
        seen.append((tree, more))
        return np.float32(0)

    call = jax.jit(lambda *x: call_host(look, jax.ShapeDtypeStruct((), "float32"), *x))
    call(given, None).block_until_ready()
    [(tree, more)] = seen
    assert more is None
    for name, x in given.items():
        assert type(tree[name]) is np.ndarray
        assert tree[name].dtype == x.dtype
        np.testing.assert_array_equal(tree[name], x)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone has it")
def test_one_core_does_not_wait_for_itself():
    """By `jax.pure_callback` alone one call in a few never ends."""
    environment = os.environ | {"PYTHONPATH": str(paths.ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", ONE_CORE],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["230400.0"] * 30, done.stderr

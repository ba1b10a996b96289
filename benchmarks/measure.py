"""Seconds, the matrix-multiply rate of this machine, peak memory; tables of them."""

import functools
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Seconds(NamedTuple):
    """Of one call; the least of several."""

    wall: float
    cpu: float  # of all threads of this process: what other processes cannot disturb


def measure(function: Callable[..., Any], *args, repeats: int = 3) -> Seconds:
    """Time of `function(*args)` after a first call, which may compile."""
    jax.block_until_ready(function(*args))
    times = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(function(*args))
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return Seconds(*np.min(times, axis=0).tolist())


def matmul_rate(
    size: int = 1024, dtype: Any = jnp.float32, precision: str | None = None
) -> float:
    """Operations per CPU second (per second on an accelerator) of x @ x.

    By default in float32, at the precision that is JAX's default on the device.
    """
    x = jnp.asarray(np.random.default_rng(0).normal(size=(size, size)), dtype)
    product = jax.jit(functools.partial(jnp.matmul, precision=precision))
    return 2 * size**3 / busy(measure(product, x, x, repeats=20))


def busy(seconds: Seconds) -> float:
    """The time to divide work by: CPU seconds, or an accelerator's wall clock."""
    return seconds.cpu if jax.default_backend() == "cpu" else seconds.wall


def peak_memory() -> float:
    """Most memory that this process has held, GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def print_table(rows: list[dict[str, Any]]) -> None:
    """Rows with the same columns, as a Markdown table, and the peak memory so far."""
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        cells = (f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values())
        print("| " + " | ".join(cells) + " |")
    print(f"\npeak memory {peak_memory():.1f} GB, {jax.devices()[0].device_kind}")

"""Crystals of similar size go through the network together, and little is padded.

Sorted by atom count, a batch is cut into equal microbatches, computed one after
another, each at the smallest of a few widths that holds its largest crystal. The
widths are branches of one compiled program: no batch compiles anything new, whatever
its sizes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import lax

from chemeleon_jax.models.diffusion import Schedule
from chemeleon_jax.models.generator import Generator

# Crystals of MP-20 are then padded by 10 % on average, by 92 % where all have 20 atoms.
# Every width costs seconds of compilation.
WIDTH_STEP = 4
# Crystals at once that keep a CPU busy: of 10 atoms, 320 rows of every matrix product.
_CPU_CRYSTALS = 32
# Bytes that a gradient keeps per atom, block and unit of width: 20 numbers as XLA
# reports for DiT-S on a CPU, and some to spare.
_KEPT = 4 * 24


def network_widths(model: Generator, schedule: Schedule) -> tuple[int, ...]:
    """The widths that crystals may be padded to, ascending, `model.max_atoms` last.

    That one alone for DDPM with learned variances: released models lay these out in a
    way that depends on the width (see `DiT`).
    """
    if schedule.sampler == "ddpm" and model.dit.learn_sigma:
        return (model.max_atoms,)
    return (*range(WIDTH_STEP, model.max_atoms, WIDTH_STEP), model.max_atoms)


def at_width(
    function: Callable[[int], Any], num_atoms: jax.Array, widths: tuple[int, ...]
) -> Any:
    """`function(N)` at the smallest width N that holds crystals of `num_atoms` [B].

    Its results have the same shapes at every width: see `pad_atoms`.
    """
    index = jnp.searchsorted(jnp.asarray(widths), num_atoms.max())
    return lax.switch(index, [partial(function, width) for width in widths])


def pad_atoms(x: jax.Array, width: int, axis: int = 1) -> jax.Array:
    """Zeros (False) behind the atoms of an axis, up to `width`."""
    missing = [(0, 0)] * x.ndim
    missing[axis] = (0, width - x.shape[axis])
    return jnp.pad(x, missing)


def microbatches_by_size(num_atoms: jax.Array, count: int) -> jax.Array:
    """Rows of each microbatch's crystals, sorted by atom count: [B] -> [count, b]."""
    chex.assert_shape(num_atoms, (None,), custom_message="num_atoms [B]")
    return jnp.argsort(num_atoms).reshape(count, -1)


def map_microbatches(
    function: Callable[[Any], Any], crystals: Any, num_atoms: jax.Array, count: int
) -> Any:
    """`function` of every crystal, one microbatch of similar sizes after another.

    Of crystals [B, ...] it gets [b, ...], as many as make `count` microbatches equal,
    and returns [b, ...]. The results [B, ...] are in the crystals' old order.
    """
    rows = microbatches_by_size(num_atoms, count)
    results = lax.map(
        lambda some: function(jax.tree.map(lambda x: x[some], crystals)), rows
    )
    old_order = jnp.argsort(rows.ravel())
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[old_order], results)


def choose_microbatches(
    crystals: int, model: Generator, memory_budget: float, devices: int = 1
) -> int:
    """How many microbatches to cut crystals into: as few as memory, or a CPU, suggests.

    An accelerator is fastest with as many crystals at once as fit; a CPU is busy with
    a few, and wastes least where these are alike. The budget is for what one gradient
    keeps, in GB per device; devices share each microbatch equally.
    """
    dit = model.dit
    kept = _KEPT * dit.depth * dit.width * model.max_atoms  # bytes per crystal
    at_most = max(int(memory_budget * 1e9 / kept), 1)
    if jax.default_backend() == "cpu":
        at_most = min(at_most, _CPU_CRYSTALS)
    each = crystals // devices
    return next(n for n in range(1, each + 1) if each % n == 0 and each // n <= at_most)

"""Placement: a mesh of two axes over all devices of all processes.

Crystals are cut along both axes, `data` and `fsdp`. Parameters, and what has their
shape, are cut along `fsdp` by one rule, `param_specs`; with fsdp = 1 every device has
all of them.

Inside `over_devices` a device sees its own crystals and nothing else, so that what
devices tell each other is written out below: parameters, gradients and means. Latents
and trajectories stay where they were made.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from chemeleon_jax.devices import distributed
from chemeleon_jax.errors import UserError

CRYSTALS = P(("data", "fsdp"))  # spec of arrays [B, ...]
_AXES = ("data", "fsdp")
_SMALL = 1024  # arrays of fewer numbers are not worth cutting


def make_mesh(num_devices: int | None = None, *, fsdp: int = 1) -> Mesh:
    """A mesh over the first `num_devices` (default: all, of all processes).

    As many as `fsdp` share one copy of the parameters.

    Raises:
      UserError: `fsdp` does not divide the number of devices.
    """
    devices = jax.devices()[:num_devices]
    if len(devices) % fsdp:
        raise UserError(
            f"config.fsdp = {fsdp}: does not divide the {len(devices)} devices"
        )
    # make_mesh's own default, Explicit axes, would put the sharding into array types.
    mesh = jax.make_mesh(
        (len(devices) // fsdp, fsdp),
        _AXES,
        axis_types=(AxisType.Auto,) * 2,
        devices=devices,
    )
    if jax.process_count() > 1:
        _connect(mesh)
    return mesh


def _connect(mesh: Mesh) -> None:
    """Lets devices meet while their processes are in step.

    On CPUs those that exchange something for the first time must come within 30 s of
    each other, and some processes compile faster than others.
    """
    distributed.broadcast_from_first(0)
    for axes in (*_AXES, _AXES):
        total = jax.shard_map(
            lambda x, axes=axes: lax.psum(x, axes),
            mesh=mesh,
            in_specs=P(),
            out_specs=P(),
            check_vma=False,
        )
        jax.block_until_ready(jax.jit(total)(replicate(np.float32(1), mesh)))


# ------------------------------------------------------------- onto the mesh, and off


def place(tree: Any, mesh: Mesh, specs: Any) -> Any:
    """Places arrays that every process has, without a word between processes.

    `specs` is a tree of partition specs, or one for all.
    """
    if isinstance(specs, P):
        specs = jax.tree.map(lambda _: specs, tree)

    def put(x, spec):
        x = np.asarray(x)
        x = x.astype(jax.dtypes.canonicalize_dtype(x.dtype), copy=False)
        sharding = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree, specs)


def shard_batch(tree: Any, mesh: Mesh) -> Any:
    """Places arrays [B, ...] with B cut into one part per device.

    Raises:
      UserError: B is not a multiple of the number of devices.
    """
    for path, x in jax.tree.leaves_with_path(tree):
        if x.shape[0] % mesh.size:
            raise UserError(
                f"{jax.tree_util.keystr(path) or 'array'}: {x.shape[0]} rows cannot be "
                f"shared equally by {mesh.size} devices"
            )
    return place(tree, mesh, CRYSTALS)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Places a copy of every array on every device."""
    return place(tree, mesh, P())


def shard_params(tree: Any, mesh: Mesh) -> Any:
    """Places parameters, and what has their shape, by the rule."""
    return place(tree, mesh, param_specs(tree, mesh))


# ------------------------------------------------------------------------ the layout


def param_specs(tree: Any, mesh: Any = None) -> Any:
    """The rule: which axis of each array is cut along `fsdp`.

    The longest that can be cut evenly; none of small arrays, of which every device has
    its copy. The tree may hold shapes instead of arrays. The mesh is by default the one
    that `jax.set_mesh` set, if any.
    """
    shape = (mesh or jax.sharding.get_abstract_mesh()).shape
    parts = shape.get("fsdp", 1)

    def spec(x):
        axes = [i for i, size in enumerate(x.shape) if size % parts == 0]
        if parts == 1 or not axes or np.prod(x.shape) < _SMALL:
            return P()
        return P(*[None] * max(axes, key=lambda i: (x.shape[i], i)), "fsdp")

    return jax.tree.map(spec, tree)


def device_order(crystals: int, num_parts: int, num_devices: int) -> np.ndarray:
    """Which crystal is in each row of arrays on the mesh, [B].

    Crystals are trained on in `num_parts` parts, in order. Each device holds an equal
    share of each part, part by part.
    """
    order = np.arange(crystals).reshape(num_parts, num_devices, -1)
    return order.swapaxes(0, 1).ravel()


# ------------------------------------------------------- what devices tell each other


def over_devices(function: Callable, *, in_specs: Any, out_specs: Any) -> Callable:
    """`function` on every device, of its own crystals.

    Under the mesh that `jax.set_mesh` set; without one it is the function itself, so
    that the pure functions run anywhere.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return function
    # Loops and widths differ between devices, so nothing in there counts as replicated.
    # The checks would also add up gradients at every step instead of once.
    return jax.shard_map(
        function, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def gather_params(params: Any, specs: Any) -> Any:
    """Inside `over_devices`: whole parameters of their parts."""

    def gather(x, spec):
        if spec == P():
            return x
        return lax.all_gather(x, "fsdp", axis=len(spec) - 1, tiled=True)

    return jax.tree.map(gather, params, specs)


def mean_gradient(gradient: Any, specs: Any) -> Any:
    """Inside `over_devices`: the mean over devices; to each its part."""

    def mean(x, spec):
        if spec == P():
            return device_mean(x)
        part = lax.psum_scatter(x, "fsdp", scatter_dimension=len(spec) - 1, tiled=True)
        return lax.pmean(part, "data") / lax.axis_size("fsdp")

    return jax.tree.map(mean, gradient, specs)


def replicate_in_jit(tree: Any) -> Any:
    """Inside jit: a copy of small arrays on every device."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.tree.map(lambda x: lax.with_sharding_constraint(x, P()), tree)


def device_mean(tree: Any) -> Any:
    """Inside `over_devices`: the mean over devices."""
    return tree if jax.sharding.get_abstract_mesh().empty else lax.pmean(tree, _AXES)


def device_extremes(low: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Inside `over_devices`: the least and the greatest over devices."""
    if jax.sharding.get_abstract_mesh().empty:
        return low, high
    return lax.pmin(low, _AXES), lax.pmax(high, _AXES)

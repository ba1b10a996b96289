"""Placement: one mesh axis, `data`, over all devices.

Crystals are sharded along their leading axis, parameters are replicated. The compiled
functions carry no placement of their own: XLA follows their arguments.
"""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from chemeleon_jax.errors import UserError


def make_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh of one axis, `data`, over the first `num_devices` (default: all)."""
    devices = jax.devices()[:num_devices]
    # make_mesh's own default, Explicit axes, would put the sharding into array types.
    return jax.make_mesh(
        (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
    )


def shard_batch(tree, mesh: Mesh):
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
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec("data")))


def replicate(tree, mesh: Mesh):
    """Places a copy of every array on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def check_divisible(
    batch_size: int,
    num_group_samples: int,
    num_inner_batch: int,
    grad_accum: int,
    num_devices: int,
) -> None:
    """Checks that an iteration's crystals split into equal parts, and those by device.

    Raises:
      UserError: they do not. The message names the config fields.
    """
    crystals = batch_size * num_group_samples
    parts = num_inner_batch * grad_accum * num_devices
    if crystals % parts:
        raise UserError(
            f"config.data.batch_size * config.rl.num_group_samples = {batch_size} * "
            f"{num_group_samples} = {crystals} crystals cannot be cut into "
            f"config.rl.num_inner_batch * config.rl.grad_accum * devices = "
            f"{num_inner_batch} * {grad_accum} * {num_devices} = {parts} equal parts: "
            f"make the first product a multiple of {parts}"
        )


def constrain(x: jax.Array, axis: int = 0) -> jax.Array:
    """Inside jit: shards an axis, under the mesh that `jax.set_mesh` set.

    Without a mesh it does nothing, so the pure functions run anywhere.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*[None] * axis, "data"))

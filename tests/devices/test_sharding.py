import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chemeleon_jax.devices.sharding import make_mesh, replicate, shard_batch
from chemeleon_jax.errors import UserError


def test_the_tests_have_four_devices():
    assert jax.device_count() == 4
    assert make_mesh().shape == {"data": 4, "fsdp": 1}


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_batches_are_cut_and_parameters_copied(devices):
    mesh = make_mesh(devices)
    batch = {"x": np.arange(24.0).reshape(8, 3), "mask": np.ones(8, bool)}
    placed = shard_batch(batch, mesh)
    parts = placed["x"].addressable_shards
    assert [part.data.shape for part in parts] == [(8 // devices, 3)] * devices
    assert placed["x"].dtype == jnp.float32
    np.testing.assert_array_equal(placed["x"], batch["x"])
    copies = replicate({"w": jnp.arange(3.0)}, mesh)["w"].addressable_shards
    assert [copy.data.tolist() for copy in copies] == [[0.0, 1.0, 2.0]] * devices


def test_a_jitted_function_follows_the_placement():
    mesh = make_mesh(4)
    x = shard_batch(jnp.arange(8.0), mesh)
    w = replicate(jnp.float32(2.0), mesh)
    y = jax.jit(lambda w, x: w * x)(w, x)
    assert y.sharding.is_equivalent_to(x.sharding, y.ndim)
    total = jax.jit(lambda w, x: (w * x).sum())(w, x)
    assert float(total) == 56.0  # 2 * (0 + 1 + ... + 7)


def test_a_batch_that_cannot_be_cut_is_named():
    with pytest.raises(UserError, match=r"\['x'\]: 6 rows .* 4 devices"):
        shard_batch({"x": np.zeros((6, 2))}, make_mesh(4))

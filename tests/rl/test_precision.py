import re
from functools import partial

import jax
import jax.numpy as jnp
import tiny

from chemeleon_jax import sample_group
from chemeleon_jax.devices.compilation import on_mesh
from chemeleon_jax.devices.sharding import make_mesh

DOT = re.compile(r"stablehlo\.dot_general.*")


def products(precision: str) -> list[str]:
    """The matrix products of a rollout, as the compiler gets them."""
    sampler, policy = tiny.sampler()
    rollout = jax.jit(partial(sample_group, group_size=2))
    lower = on_mesh(rollout.lower, make_mesh(1), precision)
    key, num_atoms = jax.random.key(0), jnp.array([3])
    lowered = lower(policy, key, num_atoms, sampler=sampler)
    return DOT.findall(lowered.as_text())


def test_bfloat16_products_are_summed_in_float32():
    found = products("bfloat16")
    assert len(found) > 10
    for product in found:
        assert "lhs_precision_type = bf16" in product
        assert "rhs_precision_type = bf16" in product
        assert "accumulation_type = f32" in product


def test_the_default_asks_for_nothing():
    assert not any("algorithm" in product for product in products("default"))

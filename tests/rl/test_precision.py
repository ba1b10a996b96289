import functools
import re

import jax
import jax.numpy as jnp
import tiny

from chemeleon_jax import sample_group
from chemeleon_jax.models.diffusion import make_schedule
from chemeleon_jax.rl.experience import matmul_precision
from configs.rl_dng import get_config

DOT = re.compile(r"stablehlo\.dot_general.*")


def products(precision: str) -> list[str]:
    """The matrix products of a rollout, as the compiler gets them."""
    config = get_config()
    config.precision = precision
    model, policy = tiny.generator()
    with matmul_precision(config):
        rollout = functools.partial(sample_group, group_size=2, model=model)
        lowered = jax.jit(rollout).lower(
            policy,
            jax.random.key(0),
            jnp.array([3]),
            schedule=make_schedule("ddim", 5),
        )
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

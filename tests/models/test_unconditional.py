import jax
import jax.numpy as jnp
import numpy as np
import tiny

from chemeleon_jax.models.condition import (
    input_width,
    make_condition_encoder,
    without_conditions,
)
from chemeleon_jax.models.dit import DiT

SPECS = [
    {"name": "composition", "kind": "composition"},
    {"name": "chemical_system", "kind": "chemical_system"},
]


def test_asked_for_nothing_a_conditional_model_is_the_unconditional_one():
    crystals = tiny.crystals((3, 2))
    dit = DiT(depth=1, width=16, heads=2, latent_channels=4, learn_sigma=False)
    config = {"condition": {"specs": SPECS, "width": 16}}
    encoder = make_condition_encoder(config["condition"])
    nothing = {s["name"]: jnp.zeros((2, input_width(s))) for s in SPECS}
    z = jax.random.normal(jax.random.key(0), (*crystals.mask.shape, 4))
    t = jnp.array([3.0, 700.0])
    keep = jnp.zeros(2, bool)
    encoder_params = tiny.random_params(encoder, nothing, keep)
    encode, apply = jax.jit(encoder.apply), jax.jit(dit.apply)
    y = encode({"params": encoder_params}, nothing, keep)
    params = tiny.random_params(dit, z, t, crystals.mask, y)
    plain, config = without_conditions(
        {"dit": params, "condition": encoder_params}, config
    )
    assert set(plain) == {"dit"} and config["condition"] is None
    np.testing.assert_allclose(
        apply({"params": plain["dit"]}, z, t, crystals.mask),
        apply({"params": params}, z, t, crystals.mask, y),
        atol=1e-5,
    )
    plain = apply({"params": params}, z, t, crystals.mask)
    assert not np.allclose(plain, apply({"params": params}, z, t, crystals.mask, y))

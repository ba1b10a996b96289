import contextlib
import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from chemeleon_jax import load_checkpoint, sample_group
from chemeleon_jax.devices.compilation import on_mesh
from chemeleon_jax.devices.sharding import make_mesh
from chemeleon_jax.models import dit
from chemeleon_jax.models.generator import combine_checkpoints, make_generator
from chemeleon_jax.rl.sampler import make_sampler

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


def rounded(x):
    """As a card rounds what it multiplies."""
    return x.astype(jnp.bfloat16).astype(x.dtype)


def rounding_inputs(next_function, args, kwargs, context):
    if isinstance(context.module, nn.Dense):
        args = rounded(args[0]), *args[1:]
    return next_function(*args, **kwargs)


@contextlib.contextmanager
def bfloat16_layers():
    """Dense layers whose inputs are rounded: a CPU ignores `precision`."""
    dit.apply_block.clear_cache()
    with nn.intercept_methods(rounding_inputs):
        yield
    dit.apply_block.clear_cache()


def round_kernels(policy):
    def one(path, x):
        return rounded(x) if path[-1].key == "kernel" else x

    return jax.tree_util.tree_map_with_path(one, policy)


@pytest.fixture(scope="module")
def trained():
    """The embedded model, and a noisy batch."""
    models = [load_checkpoint(name) for name in ("mini:ldm", "mini:vae")]
    model, policy = make_generator(combine_checkpoints(*models), 8)
    mask = np.arange(8) < np.array([4, 7, 8])[:, None]
    drawn = np.random.default_rng(0).normal(
        size=(2, *mask.shape, model.dit.latent_channels)
    )
    z, noise = jnp.asarray(drawn * mask[..., None], jnp.float32)
    return make_sampler(model, sampling_steps=10), policy, z, noise, mask


def test_bfloat16_changes_a_trained_policy_little(trained):
    """Early and midway; at the last step that is trained on it changes much more.

    That step's noise is 0.01, as large as the error, and a log-probability divides by
    it: docs/performance.md says what follows.
    """
    sampler, policy, z, noise, mask = trained

    def step(policy, timestep, z_next):
        gaussian = sampler.step(policy, z, timestep, mask)
        return gaussian.log_prob(z_next, mask).mean(), gaussian

    exact, found = jax.jit(jax.value_and_grad(step, has_aux=True)), {}
    for timestep in (9, 5, 1):
        _, gaussian = exact(policy, timestep, z)[0]
        z_next = gaussian.sample(noise)
        found[timestep] = z_next, exact(policy, timestep, z_next)
    limits = {9: (0.04, 2e-3, 0.998), 5: (0.02, 1e-3, 0.998), 1: (0.02, 0.07, 0.8)}
    with bfloat16_layers():
        coarse = jax.jit(jax.value_and_grad(step, has_aux=True))
        for timestep, (z_next, ((log_prob, gaussian), gradient)) in found.items():
            outcome = coarse(round_kernels(policy), timestep, z_next)
            (moved_log_prob, moved), moved_gradient = outcome
            a, b = (
                np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
                for tree in (gradient, moved_gradient)
            )
            error = np.abs(moved.mean - gaussian.mean)[mask].max()
            most, log_most, alike = limits[timestep]
            assert most / 10 < error < most  # it rounds at all
            assert abs(moved_log_prob - log_prob) < log_most
            assert a @ b > alike * np.linalg.norm(a) * np.linalg.norm(b)

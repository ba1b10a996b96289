from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from chemeleon_jax import sample_group
from chemeleon_jax.devices.sharding import make_mesh, replicate

KEY = jax.random.key(3)


def sample(num_atoms, **kwargs):
    sampler, policy = tiny.sampler(10, **kwargs)
    rollout = jax.jit(sample_group, static_argnames="group_size")
    return rollout(policy, KEY, jnp.asarray(num_atoms), sampler=sampler, group_size=2)


def test_shapes_and_atom_counts():
    crystals, trajectory = sample([2, 5])
    np.testing.assert_array_equal(crystals.num_atoms, [2, 2, 5, 5])
    # The step with sigma = 0 is taken but not part of the trajectory.
    assert trajectory.steps.z.shape == (9, 4, 6, 4)
    np.testing.assert_array_equal(trajectory.steps.timestep, np.arange(9, 0, -1))
    assert not crystals.atom_types[~np.asarray(crystals.mask)].any()
    assert not np.allclose(crystals.lengths[0], crystals.lengths[1])


def test_a_crystal_does_not_depend_on_padding_or_company():
    small, _ = sample([2, 5])
    wide, _ = sample([2, 5], max_atoms=9)
    more, _ = sample([2, 5, 3])
    for other in (wide, more):
        np.testing.assert_allclose(small.lengths, other.lengths[:4], atol=1e-5)
        np.testing.assert_allclose(
            small.frac_coords, other.frac_coords[:4, :6], atol=1e-5
        )


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_rescoring_gives_the_stored_log_probabilities(name):
    _, trajectory = sample([2, 5], name=name)
    sampler, policy = tiny.sampler(10, name)
    mask = trajectory.mask

    @jax.jit
    def rescore(step):
        gaussian = sampler.step(policy, step.z, step.timestep, mask)
        return gaussian.log_prob(step.z_next, mask)

    rescored = jax.lax.map(rescore, trajectory.steps)
    assert np.isfinite(rescored).all()
    np.testing.assert_allclose(rescored, trajectory.steps.log_prob, atol=1e-5)


def test_without_noise_sampling_is_a_function_of_the_first_latent():
    first, second = (sample([4], eta=0.0)[0] for _ in range(2))
    np.testing.assert_array_equal(first.lengths, second.lengths)


@pytest.mark.parametrize(("devices", "fsdp"), [(2, 1), (4, 2)])
def test_the_same_crystals_on_any_number_of_devices(devices, fsdp):
    alone, _ = sample([2, 5])
    mesh = make_mesh(devices, fsdp=fsdp)
    sampler, policy = replicate(tiny.sampler(10), mesh)
    rollout = jax.jit(partial(sample_group, group_size=2))
    with jax.set_mesh(mesh):
        sharded, trajectory = rollout(policy, KEY, jnp.array([2, 5]), sampler=sampler)
    assert len(trajectory.steps.z.sharding.device_set) == devices
    assert trajectory.steps.z.addressable_shards[0].data.shape[1] == 4 // devices
    np.testing.assert_allclose(alone.lengths, sharded.lengths, atol=1e-5)
    np.testing.assert_allclose(alone.frac_coords, sharded.frac_coords, atol=1e-5)

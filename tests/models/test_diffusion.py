import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chemeleon_jax.models.diffusion import (
    Gaussian,
    denoise_step,
    ldm_loss,
    make_schedule,
    respaced_timesteps,
)


def test_ddim_takes_the_smallest_stride():
    steps = respaced_timesteps("ddim", 50)
    np.testing.assert_array_equal(steps, np.arange(0, 1000, 20))


def test_ddpm_keeps_both_ends():
    steps = respaced_timesteps("ddpm", 50)
    np.testing.assert_array_equal(steps[:3], [0, 20, 41])
    assert steps[-1] == 999 and len(steps) == 50


def test_impossible_stride_says_what_would_do():
    with pytest.raises(ValueError, match="exactly 300.*try 10"):
        respaced_timesteps("ddim", 300)


def test_full_schedule_by_hand():
    schedule = make_schedule("ddpm", 1000)
    np.testing.assert_allclose(schedule.log_beta[0], np.log(1e-4), rtol=1e-6)
    np.testing.assert_allclose(schedule.log_beta[-1], np.log(0.02), rtol=1e-6)
    np.testing.assert_allclose(schedule.noise[0] ** 2, 1e-4, rtol=1e-6)
    # 1 - (1 - 1e-4) (1 - (1e-4 + 0.0199 / 999))
    second = 1 - 0.9999 * (1 - 1e-4 - 0.0199 / 999)
    np.testing.assert_allclose(schedule.noise[1] ** 2, second, rtol=1e-6)
    # log of 0 is replaced by the next one
    assert schedule.posterior_log_variance[0] == schedule.posterior_log_variance[1]


def test_ddim_step_with_eta_one_has_the_posterior_variance():
    schedule = make_schedule("ddim", 10)
    variance = jnp.exp(schedule.posterior_log_variance)
    np.testing.assert_allclose(schedule.ddim_std[1:] ** 2, variance[1:], rtol=1e-3)
    assert schedule.ddim_std[0] == 0


def test_ddim_recovers_the_clean_latent_from_the_true_noise():
    schedule = make_schedule("ddim", 10)
    z, noise = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    noisy = schedule.add_noise(z, noise, jnp.full(3, 7))
    step = denoise_step(
        lambda z, t: noise, noisy, jnp.array(7), schedule=schedule, eta=0.0
    )
    expected = schedule.add_noise(z, noise, jnp.full(3, 6))
    np.testing.assert_allclose(step.mean, expected, atol=1e-5)
    assert not step.std.any()


def test_ddpm_fixed_variance_is_beta_except_at_the_end():
    schedule = make_schedule("ddpm", 10)
    z = jnp.zeros((1, 2, 3))
    stds = [
        denoise_step(lambda z, t: z, z, jnp.array(i), schedule=schedule).std[0, 0, 0]
        for i in range(10)
    ]
    betas = jnp.exp(schedule.log_beta)
    np.testing.assert_allclose(stds[1:], jnp.sqrt(betas[1:]), rtol=1e-5)
    first = jnp.exp(schedule.posterior_log_variance[1])
    np.testing.assert_allclose(stds[0] ** 2, first, rtol=1e-5)


def test_log_prob_and_kl_by_hand():
    mask = jnp.array([[True, False]])
    z = jnp.array([[[1.5], [100.0]]])
    gaussian = Gaussian(jnp.array([[[0.5], [0.0]]]), jnp.ones((1, 2, 1)))
    # -0.5 (1 + ln 2 pi), the padded atom not counted
    log_prob = gaussian.log_prob(z, mask)
    np.testing.assert_allclose(log_prob, [-1.4189385], rtol=1e-6)
    # 0.5 (1/4 + 1/4 - 1 + ln 4) for N(0.5, 1) against N(1.5, 2^2)
    other = Gaussian(gaussian.mean + 1, 2 * gaussian.std)
    kl = gaussian.kl(other, mask)
    np.testing.assert_allclose(kl, [0.5 * (0.5 - 1 + np.log(4))], rtol=1e-6)


def test_a_perfect_denoiser_has_no_loss():
    schedule = make_schedule("ddpm", 1000)
    z, noise = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    mask = jnp.ones((3, 4), bool)
    terms = ldm_loss(
        lambda z, t: noise, z, noise, jnp.array([0, 10, 900]), mask, schedule=schedule
    )
    np.testing.assert_allclose(terms["loss"], 0.0, atol=1e-10)


def test_the_bound_trains_the_variance_and_not_epsilon():
    schedule = make_schedule("ddpm", 1000)
    z, noise = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    mask = jnp.ones((3, 4), bool)

    def bound(eps, values):
        output = jnp.concatenate([eps, values], 1)
        timestep = jnp.array([0, 10, 900])
        terms = ldm_loss(
            lambda z, t: output, z, noise, timestep, mask, schedule=schedule
        )
        return terms["vb"].sum()

    eps_grad, value_grad = jax.grad(bound, (0, 1))(noise + 0.1, jnp.zeros_like(z))
    assert not eps_grad.any()
    assert value_grad.any()


def test_shapes_that_do_not_fit_are_named():
    """A mask of other crystals would broadcast."""
    gaussian = Gaussian(jnp.zeros((3, 4, 5)), jnp.ones((3, 4, 5)))
    with pytest.raises(AssertionError, match="shape"):
        gaussian.log_prob(jnp.zeros((3, 4, 5)), jnp.ones((1, 4), bool))
    with pytest.raises(AssertionError, match=r"mask \[B, N\]"):
        gaussian.log_prob(jnp.zeros((3, 4, 5)), jnp.ones((3, 4, 1), bool))
    with pytest.raises(AssertionError, match="shape"):
        gaussian.kl(Gaussian(jnp.zeros((1, 4, 5)), jnp.ones((1, 4, 5))), jnp.ones(3))

"""Diffusion: schedules, respacing, one denoising step, the training loss.

DDPM is Ho et al. (arXiv:2006.11239), DDIM is Song et al. (arXiv:2010.02502), learned
variances and respacing are Nichol and Dhariwal (arXiv:2102.09672).
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.scipy.special import ndtri

from chemeleon_jax.errors import UserError
from chemeleon_jax.models.layers import masked_mean

NUM_TIMESTEPS = 1000
# Quantile functions of the densities that training timesteps are drawn from, [0, 1) ->
# [0, 1). The second (arXiv:2403.03206) spares a small model the timesteps where hardly
# anything is left to predict.
TIMESTEP_QUANTILES = {
    "uniform": lambda u, mean, std: u,
    "logit_normal": lambda u, mean, std: jax.nn.sigmoid(mean + std * ndtri(u)),
}

# (z [B, N, L], t [B] or [1]) -> [B, N, L], or [B, 2N, L] with learned variances
Denoiser = Callable[[jax.Array, jax.Array], jax.Array]


@struct.dataclass
class Gaussian:
    """Independent normal distributions of the coordinates of latents."""

    mean: jax.Array  # [B, N, L]
    std: jax.Array  # [B, N, L]

    def sample(self, noise: jax.Array, drawn: jax.Array | bool = True) -> jax.Array:
        """Latents [B, N, L] from standard normal noise of that shape.

        The mean where nothing is `drawn` [].
        """
        chex.assert_equal_shape([self.mean, noise])
        return self.mean + self.std * noise * drawn

    def log_prob(self, z: jax.Array, mask: jax.Array) -> jax.Array:
        """Log-density of latents, averaged over real atoms and channels.

        The average (not the sum) makes crystals of different size comparable: the ratio
        of two policies is the geometric mean of the per-coordinate ratios, as in GSPO
        (arXiv:2507.18071). z [B, N, L], mask [B, N] -> [B], in nats per coordinate.
        """
        chex.assert_equal_shape([self.mean, z])
        distance = (z - self.mean) / self.std
        log_density = -0.5 * (distance**2 + jnp.log(2 * jnp.pi * self.std**2))
        return coordinate_mean(log_density, mask)

    def kl(self, other: "Gaussian", mask: jax.Array) -> jax.Array:
        """KL(self || other), averaged over real atoms and channels, [B]."""
        chex.assert_equal_shape([self.mean, other.mean])
        ratio = (self.std / other.std) ** 2
        distance = ((self.mean - other.mean) / other.std) ** 2
        return coordinate_mean(0.5 * (ratio + distance - 1 - jnp.log(ratio)), mask)


def coordinate_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over real atoms and channels: x [B, N, L], mask [B, N] -> [B]."""
    chex.assert_rank([x, mask], [3, 2], custom_message="x [B, N, L], mask [B, N]")
    chex.assert_equal_shape_prefix([x, mask], 2)
    return masked_mean(x, mask).mean(-1)


@struct.dataclass
class Schedule:
    """A respaced noise schedule of T timesteps, taken from T - 1 down to 0.

    With a the cumulative product of alphas, and a' that of the next timestep to be
    taken (1 at timestep 0). Tables, because 1 - a would lose its digits in float32.
    """

    model_timesteps: jax.Array  # [T] int, of the unrespaced schedule: the model's input
    signal: jax.Array  # [T]  sqrt(a)
    noise: jax.Array  # [T]  sqrt(1 - a)
    clean_from_z: jax.Array  # [T]  sqrt(1 / a)
    clean_from_eps: jax.Array  # [T]  sqrt(1 / a - 1)
    mean_from_clean: jax.Array  # [T]  of the DDPM posterior
    mean_from_z: jax.Array  # [T]
    log_beta: jax.Array  # [T]
    posterior_log_variance: jax.Array  # [T], timestep 0 has that of timestep 1
    cumprod_prev: jax.Array  # [T]  a'
    ddim_std: jax.Array  # [T]  of a DDIM step with eta 1
    sampler: str = struct.field(pytree_node=False, default="ddim")

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.model_timesteps)

    @property
    def num_recorded(self) -> int:
        """S, the steps that have a density: DDIM's last has a point for one."""
        return self.num_steps - (1 if self.sampler == "ddim" else 0)

    def add_noise(
        self, z: jax.Array, noise: jax.Array, timestep: jax.Array
    ) -> jax.Array:
        """z_t from clean latents: q(z_t | z_0). Timesteps are [] or [B], as below."""
        return _at(self.signal, timestep) * z + _at(self.noise, timestep) * noise

    def predict_clean(
        self, z: jax.Array, eps: jax.Array, timestep: jax.Array
    ) -> jax.Array:
        """The clean latent that the noise prediction implies; never clipped."""
        from_eps = _at(self.clean_from_eps, timestep)
        return _at(self.clean_from_z, timestep) * z - from_eps * eps

    def posterior_mean(
        self, z: jax.Array, z_clean: jax.Array, timestep: jax.Array
    ) -> jax.Array:
        """Mean of q(z_{t-1} | z_t, z_0), Ho et al. eq. 7."""
        from_clean = _at(self.mean_from_clean, timestep)
        return from_clean * z_clean + _at(self.mean_from_z, timestep) * z

    def log_variance(self, values: jax.Array | None, timestep: jax.Array) -> jax.Array:
        """Log-variance of a DDPM step, [B or 1, N or 1, L or 1].

        Learned: interpolates in log space between beta and the posterior variance
        (Nichol and Dhariwal, eq. 15). Fixed: beta, but the posterior variance at step
        0.
        """
        low = _at(self.posterior_log_variance, timestep)
        high = _at(self.log_beta, timestep)
        if values is None:
            return jnp.where(jnp.reshape(timestep, (-1, 1, 1)) == 0, low, high)
        fraction = (values + 1) / 2
        return fraction * high + (1 - fraction) * low


def _at(table: jax.Array, timestep: jax.Array) -> jax.Array:
    """table[timestep] for timestep [] or [B], shaped to broadcast against [B, N, L]."""
    return jnp.reshape(table[timestep], (-1, 1, 1))


def respaced_timesteps(sampler: str, steps: int) -> np.ndarray:
    """Which timesteps a sampler of `steps` steps visits, in ascending order.

    DDIM takes the smallest integer stride that gives exactly that many steps
    (50: 0, 20, ..., 980); DDPM spaces them evenly and keeps both ends (50: 0, 20, 41,
    ..., 999).

    Raises:
      UserError: no stride gives that many steps, or the sampler is unknown.
    """
    total = NUM_TIMESTEPS
    if not 1 <= steps <= total:
        raise UserError(f"sampling_steps must be 1 .. {total}, not {steps}")
    if sampler == "ddim":
        for stride in range(1, total + 1):
            if len(range(0, total, stride)) == steps:
                return np.arange(0, total, stride)
        raise UserError(
            f"sampling_steps: DDIM cannot take exactly {steps} of {total} steps with "
            "an integer stride; try 10, 20, 25, 40, 50, 100, 125, 200 or 250"
        )
    if sampler == "ddpm":
        return np.round(np.linspace(0, total - 1, steps)).astype(int)
    raise UserError(f"sampler must be 'ddim' or 'ddpm', not {sampler!r}")


def make_schedule(sampler: str, steps: int) -> Schedule:
    """A respaced schedule; `make_schedule("ddpm", 1000)` is the one models train on.

    The unrespaced one is linear: betas from 1e-4 to 0.02 over 1000 timesteps. The kept
    cumulative products give the new betas.
    """
    timesteps = respaced_timesteps(sampler, steps)
    a = np.cumprod(1 - np.linspace(1e-4, 0.02, NUM_TIMESTEPS))[timesteps]
    a_prev = np.append(1.0, a[:-1])
    beta = 1 - a / a_prev
    variance = beta * (1 - a_prev) / (1 - a)
    first = variance[1] if steps > 1 else beta[0]
    # Song et al. eq. 16 with eta 1. In float32, as Chemeleon2 has it: the step before
    # the last is off by 1e-4 of itself, which its log-probabilities show.
    a32, prev32 = a.astype(np.float32), a_prev.astype(np.float32)
    ddim_std = np.sqrt((1 - prev32) / (1 - a32)) * np.sqrt(1 - a32 / prev32)
    tables = {
        "signal": np.sqrt(a),
        "noise": np.sqrt(1 - a),
        "clean_from_z": np.sqrt(1 / a),
        "clean_from_eps": np.sqrt(1 / a - 1),
        "mean_from_clean": beta * np.sqrt(a_prev) / (1 - a),
        "mean_from_z": (1 - a_prev) * np.sqrt(1 - beta) / (1 - a),
        "log_beta": np.log(beta),
        "posterior_log_variance": np.log(np.append(first, variance[1:])),
        "cumprod_prev": a_prev,
        "ddim_std": ddim_std,
    }
    return Schedule(
        model_timesteps=jnp.asarray(timesteps, jnp.int32),
        sampler=sampler,
        **{name: jnp.asarray(x, jnp.float32) for name, x in tables.items()},
    )


def split_output(output: jax.Array, num_atoms: int):
    """Epsilon, and the variance values if the model learns them (else None)."""
    if output.shape[1] == num_atoms:
        return output, None
    return output[:, :num_atoms], output[:, num_atoms:]


def denoise_step(
    denoiser: Denoiser,
    z: jax.Array,
    timestep: jax.Array,
    *,
    schedule: Schedule,
    eta: jax.Array | float = 1.0,
) -> Gaussian:
    """The Gaussian that one reverse step draws from.

    Args:
      denoiser: `model.denoiser(params, mask, condition)`.
      z: [B, N, L] latents before the step.
      timestep: [] of the schedule, T-1 .. 0.
      schedule: names the sampler too.
      eta: of DDIM; 0 is deterministic, 1 has DDPM's noise.

    Returns:
      Of the latents after the step. DDIM's std is 0 at timestep 0.
    """
    chex.assert_rank([z, timestep], [3, 0], custom_message="z [B, N, L], timestep []")
    t = schedule.model_timesteps[timestep][None]
    eps, values = split_output(denoiser(z, t), z.shape[1])
    z_clean = schedule.predict_clean(z, eps, timestep)
    if schedule.sampler == "ddpm":
        mean = schedule.posterior_mean(z, z_clean, timestep)
        std = jnp.exp(0.5 * schedule.log_variance(values, timestep))
    else:
        a_prev, std = schedule.cumprod_prev[timestep], eta * schedule.ddim_std[timestep]
        mean = jnp.sqrt(a_prev) * z_clean + jnp.sqrt(1 - a_prev - std**2) * eps
    return Gaussian(mean, jnp.broadcast_to(std, z.shape))


def ldm_loss(
    denoiser: Denoiser,
    z: jax.Array,
    noise: jax.Array,
    timestep: jax.Array,
    mask: jax.Array,
    *,
    schedule: Schedule,
) -> dict[str, jax.Array]:
    """Training loss of the denoiser, per crystal.

    Args:
      denoiser: of the model in training.
      z: [B, N, L] clean latents, already divided by the latent std.
      noise: [B, N, L] standard normal.
      timestep: [B] of the schedule.
      mask: [B, N].
      schedule: `make_schedule("ddpm", 1000)`.

    Returns:
      `mse` of epsilon, `vb` (the variational bound's term, in bits, times T / 1000,
      which trains the variance only; 0 for fixed variances) and their sum `loss`, each
      [B].
    """
    chex.assert_rank([z, timestep], [3, 1], custom_message="z [B, N, L], timestep [B]")
    chex.assert_equal_shape_prefix([z, noise, mask], 2)
    z_noisy = schedule.add_noise(z, noise, timestep)
    output = denoiser(z_noisy, schedule.model_timesteps[timestep])
    return denoising_errors(output, z, noise, timestep, mask, schedule=schedule)


def denoising_errors(
    output: jax.Array,
    z: jax.Array,
    noise: jax.Array,
    timestep: jax.Array,
    mask: jax.Array,
    *,
    schedule: Schedule,
) -> dict[str, jax.Array]:
    """`ldm_loss` of what a denoiser has said, [B, N or 2N, L]."""
    eps, values = split_output(output, z.shape[1])
    terms = {"mse": coordinate_mean((noise - eps) ** 2, mask)}
    terms["vb"] = jnp.zeros_like(terms["mse"])
    if values is not None:
        eps = jax.lax.stop_gradient(eps)
        z_noisy = schedule.add_noise(z, noise, timestep)
        bound = variational_bound(schedule, z, z_noisy, eps, values, timestep, mask)
        terms["vb"] = bound * schedule.num_steps / 1000
    return terms | {"loss": terms["mse"] + terms["vb"]}


def variational_bound(schedule, z, z_noisy, eps, values, timestep, mask) -> jax.Array:
    """Bits per coordinate of one step: KL to the true posterior; at step 0 the decoder.

    The decoder's likelihood is the standard normal density of the standardised latent,
    without the standard deviation in front that would make it a density of the latent:
    Chemeleon2's, which its models were trained with.
    """
    true_mean = schedule.posterior_mean(z_noisy, z, timestep)
    z_clean = schedule.predict_clean(z_noisy, eps, timestep)
    mean = schedule.posterior_mean(z_noisy, z_clean, timestep)
    logvar = schedule.log_variance(values, timestep)
    true_logvar = _at(schedule.posterior_log_variance, timestep)
    kl = 0.5 * (
        logvar
        - true_logvar
        - 1
        + jnp.exp(true_logvar - logvar)
        + (true_mean - mean) ** 2 * jnp.exp(-logvar)
    )
    decoder_nll = 0.5 * ((z - mean) ** 2 * jnp.exp(-logvar) + jnp.log(2 * jnp.pi))
    kl, decoder_nll = (
        coordinate_mean(term, mask) / jnp.log(2.0) for term in (kl, decoder_nll)
    )
    return jnp.where(timestep == 0, decoder_nll, kl)

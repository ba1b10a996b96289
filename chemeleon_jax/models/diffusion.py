"""Diffusion: schedules, respacing, one denoising step, the training loss.

DDPM is Ho et al. (arXiv:2006.11239), DDIM is Song et al. (arXiv:2010.02502), learned
variances and respacing are Nichol and Dhariwal (arXiv:2102.09672).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from chemeleon_jax.errors import UserError
from chemeleon_jax.models.layers import masked_mean

NUM_TIMESTEPS = 1000

# (z [B, N, L], t [B] or [1]) -> [B, N, L], or [B, 2N, L] with learned variances
Denoiser = Callable[[jax.Array, jax.Array], jax.Array]


@struct.dataclass
class Schedule:
    """A respaced noise schedule of T steps. Step 0 is the last one to be taken.

    With a the cumulative product of alphas, and a' that of the next step to be taken (1
    at step 0). Tables, because 1 - a would lose its digits in float32.
    """

    timesteps: jax.Array  # [T] int, in the unrespaced schedule: what the model sees
    signal: jax.Array  # [T]  sqrt(a)
    noise: jax.Array  # [T]  sqrt(1 - a)
    clean_from_z: jax.Array  # [T]  sqrt(1 / a)
    clean_from_eps: jax.Array  # [T]  sqrt(1 / a - 1)
    mean_from_clean: jax.Array  # [T]  of the DDPM posterior
    mean_from_z: jax.Array  # [T]
    log_beta: jax.Array  # [T]
    posterior_log_variance: jax.Array  # [T], step 0 has that of step 1
    cumprod_prev: jax.Array  # [T]  a'
    ddim_std: jax.Array  # [T]  of a DDIM step with eta 1
    sampler: str = struct.field(pytree_node=False, default="ddim")

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.timesteps)

    @property
    def num_recorded(self) -> int:
        """S, the steps that have a density: DDIM's last has a point for one."""
        return self.num_steps - (1 if self.sampler == "ddim" else 0)


def noise_level_weights(schedule: Schedule) -> jax.Array:
    """Weights of a trajectory's steps in the policy gradient, [T], mean 1.

    The gradient of a step's log-probability grows with one over its std, so that the
    last steps, which change least, would drown all others. The weight is the std
    (TempFlow-GRPO, arXiv:2508.04324).
    """
    std = jnp.exp(0.5 * schedule.posterior_log_variance)
    if schedule.sampler == "ddim":
        std = schedule.ddim_std
    return std * schedule.num_recorded / std[-schedule.num_recorded :].sum()


def linear_betas(num_timesteps: int = NUM_TIMESTEPS) -> np.ndarray:
    """Linear schedule, 1e-4 to 0.02 over 1000 timesteps, [num_timesteps] float64."""
    scale = 1000 / num_timesteps
    return np.linspace(scale * 1e-4, scale * 0.02, num_timesteps)


def respaced_timesteps(sampler: str, steps: int, total: int = NUM_TIMESTEPS):
    """Which timesteps a sampler of `steps` steps visits, in ascending order.

    DDIM takes the smallest integer stride that gives exactly that many steps
    (50: 0, 20, ..., 980); DDPM spaces them evenly and keeps both ends (50: 0, 20, 41,
    ..., 999).

    Raises:
      UserError: no stride gives that many steps, or the sampler is unknown.
    """
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


def make_schedule(sampler: str = "ddim", steps: int = 50) -> Schedule:
    """A respaced schedule; `make_schedule("ddpm", 1000)` is the one models train on.

    The kept cumulative products give the new betas.
    """
    timesteps = respaced_timesteps(sampler, steps)
    a = np.cumprod(1 - linear_betas())[timesteps]
    a_prev = np.append(1.0, a[:-1])
    beta = 1 - a / a_prev
    variance = beta * (1 - a_prev) / (1 - a)
    first = variance[1] if steps > 1 else beta[0]
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
        "ddim_std": _ddim_std(a.astype(np.float32), a_prev.astype(np.float32)),
    }
    return Schedule(
        timesteps=jnp.asarray(timesteps, jnp.int32),
        sampler=sampler,
        **{name: jnp.asarray(x, jnp.float32) for name, x in tables.items()},
    )


def _ddim_std(a: np.ndarray, a_prev: np.ndarray) -> np.ndarray:
    """Song et al. eq. 16 with eta 1.

    In float32, as Chemeleon2 has it: the step before the last is off by 1e-4 of itself,
    which its log-probabilities show.
    """
    return np.sqrt((1 - a_prev) / (1 - a)) * np.sqrt(1 - a / a_prev)


def _per_crystal(table: jax.Array, index: jax.Array) -> jax.Array:
    """table[index] for index [] or [B], shaped to broadcast against [B, N, L]."""
    return jnp.reshape(table[index], (-1, 1, 1))


def split_output(output: jax.Array, num_atoms: int):
    """Epsilon, and the variance values if the model learns them (else None)."""
    if output.shape[1] == num_atoms:
        return output, None
    return output[:, :num_atoms], output[:, num_atoms:]


def predict_clean(
    schedule: Schedule, z: jax.Array, eps: jax.Array, index: jax.Array
) -> jax.Array:
    """The clean latent that the noise prediction implies; never clipped."""
    from_z = _per_crystal(schedule.clean_from_z, index)
    return from_z * z - _per_crystal(schedule.clean_from_eps, index) * eps


def posterior_mean(
    schedule: Schedule, z: jax.Array, z_clean: jax.Array, index: jax.Array
) -> jax.Array:
    """Mean of q(z_{t-1} | z_t, z_0), Ho et al. eq. 7."""
    from_clean = _per_crystal(schedule.mean_from_clean, index)
    return from_clean * z_clean + _per_crystal(schedule.mean_from_z, index) * z


def model_log_variance(
    schedule: Schedule, values: jax.Array | None, index: jax.Array
) -> jax.Array:
    """Log-variance of a DDPM step, [B or 1, N or 1, L or 1].

    Learned: interpolates in log space between beta and the posterior variance (Nichol
    and Dhariwal, eq. 15). Fixed: beta, but the posterior variance at step 0.
    """
    low = _per_crystal(schedule.posterior_log_variance, index)
    high = _per_crystal(schedule.log_beta, index)
    if values is None:
        return jnp.where(jnp.reshape(index, (-1, 1, 1)) == 0, low, high)
    fraction = (values + 1) / 2
    return fraction * high + (1 - fraction) * low


def denoise_step(
    denoiser: Denoiser,
    z: jax.Array,
    index: jax.Array,
    *,
    schedule: Schedule,
    eta: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """The Gaussian that one reverse step draws from. Rollout and loss both call this.

    Args:
      denoiser: `model.denoiser(params, mask, condition)`.
      z: [B, N, L] latents before the step.
      index: [] step of the schedule, T-1 .. 0.
      schedule: names the sampler too.
      eta: of DDIM; 0 is deterministic, 1 has DDPM's noise.

    Returns:
      mean and std, both [B, N, L]. DDIM's std is 0 at step 0.
    """
    t = schedule.timesteps[index][None]
    eps, values = split_output(denoiser(z, t), z.shape[1])
    z_clean = predict_clean(schedule, z, eps, index)
    if schedule.sampler == "ddpm":
        mean = posterior_mean(schedule, z, z_clean, index)
        std = jnp.exp(0.5 * model_log_variance(schedule, values, index))
    else:
        a_prev, std = schedule.cumprod_prev[index], eta * schedule.ddim_std[index]
        mean = jnp.sqrt(a_prev) * z_clean + jnp.sqrt(1 - a_prev - std**2) * eps
    return mean, jnp.broadcast_to(std, z.shape)


def gaussian_log_prob(
    z: jax.Array, mean: jax.Array, std: jax.Array, mask: jax.Array
) -> jax.Array:
    """Log-density of N(mean, std^2), averaged over real atoms and channels.

    The average (not the sum) makes crystals of different size comparable: the ratio of
    two policies is the geometric mean of the per-coordinate ratios, as in GSPO
    (arXiv:2507.18071).

    Returns:
      [B], in nats per coordinate.
    """
    log_density = -0.5 * (((z - mean) / std) ** 2 + jnp.log(2 * jnp.pi * std**2))
    return masked_mean(log_density, mask).mean(-1)


def gaussian_kl(
    mean: jax.Array,
    std: jax.Array,
    other_mean: jax.Array,
    other_std: jax.Array,
    mask: jax.Array,
) -> jax.Array:
    """KL(N(mean, std^2) || N(other)), averaged over real atoms and channels, [B]."""
    ratio = (std / other_std) ** 2
    distance = ((mean - other_mean) / other_std) ** 2
    return masked_mean(0.5 * (ratio + distance - 1 - jnp.log(ratio)), mask).mean(-1)


def add_noise(
    schedule: Schedule, z: jax.Array, noise: jax.Array, index: jax.Array
) -> jax.Array:
    """z_t from clean latents: q(z_t | z_0) at steps index [B]."""
    signal = _per_crystal(schedule.signal, index)
    return signal * z + _per_crystal(schedule.noise, index) * noise


def ldm_loss(
    denoiser: Denoiser,
    z: jax.Array,
    noise: jax.Array,
    index: jax.Array,
    mask: jax.Array,
    *,
    schedule: Schedule,
) -> dict[str, jax.Array]:
    """Training loss of the denoiser, per crystal.

    Args:
      denoiser: of the model in training.
      z: [B, N, L] clean latents, already divided by the latent std.
      noise: [B, N, L] standard normal.
      index: [B] steps of the schedule.
      mask: [B, N].
      schedule: `make_schedule("ddpm", 1000)`.

    Returns:
      `mse` of epsilon, `vb` (the variational bound's term, in bits, times T / 1000,
      which trains the variance only; 0 for fixed variances) and their sum `loss`, each
      [B].
    """
    z_noisy = add_noise(schedule, z, noise, index)
    output = denoiser(z_noisy, schedule.timesteps[index])
    eps, values = split_output(output, z.shape[1])
    terms = {"mse": masked_mean((noise - eps) ** 2, mask).mean(-1)}
    terms["vb"] = jnp.zeros_like(terms["mse"])
    if values is not None:
        eps = jax.lax.stop_gradient(eps)
        bound = variational_bound(schedule, z, z_noisy, eps, values, index, mask)
        terms["vb"] = bound * schedule.num_steps / 1000
    return terms | {"loss": terms["mse"] + terms["vb"]}


def variational_bound(schedule, z, z_noisy, eps, values, index, mask) -> jax.Array:
    """Bits per coordinate of one step: KL to the true posterior; at step 0 the decoder.

    The decoder's likelihood is the standard normal density of the standardised latent,
    without the standard deviation in front that would make it a density of the latent:
    Chemeleon2's, which its models were trained with.
    """
    true_mean = posterior_mean(schedule, z_noisy, z, index)
    z_clean = predict_clean(schedule, z_noisy, eps, index)
    mean = posterior_mean(schedule, z_noisy, z_clean, index)
    logvar = model_log_variance(schedule, values, index)
    true_logvar = _per_crystal(schedule.posterior_log_variance, index)
    kl = 0.5 * (
        logvar
        - true_logvar
        - 1
        + jnp.exp(true_logvar - logvar)
        + (true_mean - mean) ** 2 * jnp.exp(-logvar)
    )
    decoder_nll = 0.5 * ((z - mean) ** 2 * jnp.exp(-logvar) + jnp.log(2 * jnp.pi))
    kl, decoder_nll = (
        masked_mean(term, mask).mean(-1) / jnp.log(2.0) for term in (kl, decoder_nll)
    )
    return jnp.where(index == 0, decoder_nll, kl)

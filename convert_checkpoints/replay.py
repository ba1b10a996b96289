"""Recorded sampling runs, replayed: trajectories, GRPO losses, gradients, updates."""

import re
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from chemeleon_jax.data.types import CrystalBatch, Step
from chemeleon_jax.models.generator import Generator
from chemeleon_jax.models.optimizer import apply_gradient, make_optimizer
from chemeleon_jax.rl.config import GRPOConfig
from chemeleon_jax.rl.objective import grpo_loss
from chemeleon_jax.rl.sampler import Condition, Sampler, make_sampler, roll_out
from convert_checkpoints.comparison import FORWARD, GRADIENT, TRAJECTORY, Recording
from convert_checkpoints.records import CheckpointError
from convert_checkpoints.tables import DIT, Flat, convert_tensor

CFG_SCALE = 2.0
KL_WEIGHT = 1.0
ENTROPY_WEIGHT = 1e-5
LEARNING_RATE = 1e-5
STEP = 5e-7  # tolerance of weights after a step of LEARNING_RATE
ROUNDING = 6e-8  # of float32
CAP = 8e-3  # no tolerance is wider: a change of 1 % must show


def pad(flat: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Flat [atoms, ...] -> padded [B, N, ...], zero on padding."""
    padded = np.zeros(mask.shape + flat.shape[1:], flat.dtype)
    padded[mask] = flat
    return padded


def flat(padded, mask) -> np.ndarray:
    """Padded [B, N, ...] -> flat [atoms, ...]."""
    return np.asarray(padded)[mask]


def compare_crystals(rec: Recording, prefix: str, batch: CrystalBatch, tolerance):
    """Crystals that the decoder made."""
    mask = np.asarray(batch.mask)
    lattice = np.asarray(batch.lattice)
    rec.exact(f"{prefix}atom_types", flat(batch.atom_types, mask))
    rec.compare(f"{prefix}frac_coords", flat(batch.frac_coords, mask), tolerance)
    rec.compare(f"{prefix}lengths", batch.lengths, tolerance)
    rec.compare(f"{prefix}angles", batch.angles, tolerance)
    rec.compare(f"{prefix}lattices", lattice, tolerance)
    cartesian = np.asarray(batch.frac_coords) @ lattice
    rec.compare(f"{prefix}cart_coords", flat(cartesian, mask), tolerance)


class Run(NamedTuple):
    """What the computations of one run share. All arrays, so that `jit` sees them."""

    sampler: Sampler
    mask: jax.Array  # [B, N]
    condition: Condition


def check_runs(
    rec: Recording, name, ldm: Generator, policy, mask, vectors, clip_ratio
) -> None:
    """Every recorded run of one LDM."""
    moved = moved_policy(rec, f"{name}/moved_policy/")
    for folder in sorted({key.split("/")[1] for key in rec.keys(f"{name}/dd")}):
        match = re.fullmatch(r"(ddim|ddpm)(\d+)_eta([\d.]+)", folder)
        if match:
            prefix = f"{name}/{folder}/"
            sampler = make_sampler(
                ldm,
                sampler=match[1],
                sampling_steps=int(match[2]),
                eta=float(match[3]),
                cfg_scale=CFG_SCALE,
            )
            run = Run(sampler, jnp.asarray(mask), vectors)
            log_probs, noise = check_trajectory(rec, prefix, run, policy)
            check_grpo(rec, prefix, run, moved, policy, log_probs, clip_ratio, noise)


def moved_policy(rec: Recording, prefix: str) -> dict[str, Any]:
    """The recorded weights of the current policy, as parameters."""
    params = {}
    for key in rec.keys(prefix):
        params |= convert_tensor(DIT, key.removeprefix(prefix), rec.input(key))
    return {"dit": jax.tree.map(jnp.asarray, unflatten_dict(params, sep="/"))}


@jax.jit
def replay(run: Run, policy, z, noise, recorded):
    """A trajectory from the recorded noise, and each recorded step by itself.

    From the initial latent z [B, N, L], noise [T, B, N, L] in sampling order, and the
    recorded latents [T + 1, B, N, L].

    Returns:
      Latents [T + 1, B, N, L]; crystals of the last; mean, std and log-probability of
      the recorded steps.
    """
    sampler, last = run.sampler, run.sampler.schedule.num_steps - 1
    z, steps = roll_out(
        policy,
        z,
        lambda timestep: noise[last - timestep],
        run.mask,
        sampler=sampler,
        condition=run.condition,
    )
    # A DDIM trajectory has one more step than those that drew noise.
    zs = jnp.concatenate([steps.z, steps.z_next[-1:], z[None]])[: last + 2]

    def step(_, inputs):
        timestep, z, z_next = inputs
        gaussian = sampler.step(policy, z, timestep, run.mask, run.condition)
        log_prob = gaussian.log_prob(z_next, run.mask)
        return None, (gaussian.mean, gaussian.std, log_prob)

    inputs = jnp.arange(last, -1, -1), recorded[:-1], recorded[1:]
    found = jax.lax.scan(step, None, inputs)[1]
    return zs, sampler.model.decode(zs[-1], run.mask), found


def check_moves(rec: Recording, ldms: dict[str, Flat]) -> None:
    """The moved policies, where the recording moves each of its LDMs alike.

    `ldms` are the denoisers' tensors {PyTorch name: array}, by the LDM's name.
    """
    for name, tensors in ldms.items():
        others = {other: ldms[other] for other in ldms if other != name}
        for key, start in tensors.items():
            holders = {other: x[key] for other, x in others.items() if key in x}
            if any(x.shape != start.shape for x in holders.values()):
                break  # from here on the moves were drawn differently
            moves = [
                rec.input(f"{other}/moved_policy/{key}") - x
                for other, x in holders.items()
            ]
            if len(moves) > 1 and np.ptp(moves, axis=0).max() < 1e-6:
                note = "moved as in the other LDMs of the recording"
                rec.compare(f"{name}/moved_policy/{key}", start + moves[0], STEP, note)


def check_trajectory(rec, prefix, run: Run, policy) -> tuple[jax.Array, float]:
    """A run's latents, its crystals, and the Gaussians of its steps.

    Returns:
      Log-probabilities of the recorded steps [T, B], and what float32 leaves uncertain
      in a standardised latent: its digits, times the latent over the step's noise.
    """
    rec.exact(f"{prefix}timestep_map", run.sampler.schedule.model_timesteps)
    rec.exact(f"{prefix}mask", run.mask)
    z = pad(rec.input(f"{prefix}z_init_flat"), np.asarray(run.mask))
    noise, recorded = rec.input(f"{prefix}noise"), rec.input(f"{prefix}zs")
    zs, batch, (means, stds, log_probs) = replay(run, policy, z, noise, recorded)
    rec.compare(f"{prefix}zs", zs, TRAJECTORY)
    compare_crystals(rec, f"{prefix}gen_", batch, TRAJECTORY)
    rec.compare(f"{prefix}means", means)
    rec.compare(f"{prefix}stds", stds)
    stds = np.asarray(stds)
    noisy = stds > 0
    uncertain = float((np.abs(recorded[:-1])[noisy] / stds[noisy]).max()) * ROUNDING
    largest = np.abs(np.asarray(log_probs)[noisy.any((1, 2, 3))]).max()
    rec.compare(f"{prefix}log_probs", log_probs, wider=room(uncertain / largest))
    if rec.rows[f"{prefix}zs"].ok:
        check_noise(rec, prefix, run, means, stds, uncertain)
    return log_probs, uncertain


def check_noise(rec, prefix, run: Run, means, stds, uncertain) -> None:
    """The random inputs of a run, from the latents that they led to."""
    mask, zs = np.asarray(run.mask), rec.input(f"{prefix}zs")
    rec.compare(f"{prefix}z_init_flat", flat(zs[0], mask))
    noise = rec.input(f"{prefix}noise")
    drawn = (stds > 0) & mask[None, ..., None]
    if run.sampler.schedule.sampler == "ddpm":
        drawn[-1] = False  # the last noise is drawn but not used
    implied = np.divide(zs[1:] - means, stds, where=drawn, out=noise.copy())
    tolerance = room(TRAJECTORY + uncertain / np.abs(noise).max())
    rec.compare(f"{prefix}noise", implied, TRAJECTORY, wider=tolerance)


def room(noise: float) -> tuple[float, str]:
    """A tolerance that leaves room for float32, and the reason.

    The rounding of a latent, divided by the small noise of a late step, shows in its
    log-probability, and through the ratio in losses and gradients: a replay in float64
    differs from the recording as much as this one.
    """
    return min(noise, CAP), "float32: latents are large beside the step's noise"


@partial(jax.jit, static_argnames="clip_ratio")
def update(run: Run, params, steps: Step, advantages, clip_ratio: float):
    """The original's loss over a trajectory, its gradient, and an optimiser step.

    Returns:
      Metrics of each step, the gradient, its norm, and the parameters after the step.
    """
    loss_and_grad = jax.value_and_grad(grpo_loss, has_aux=True)
    config = GRPOConfig(clip_ratio, KL_WEIGHT, entropy_weight=ENTROPY_WEIGHT)

    def add_step(total, step):
        (loss, metrics), grad = loss_and_grad(
            params,
            step,
            advantages,
            run.mask,
            sampler=run.sampler,
            config=config,
            condition=run.condition,
        )
        return jax.tree.map(jnp.add, total, grad), metrics | {"loss": loss}

    zeros = jax.tree.map(jnp.zeros_like, params)
    total, metrics = jax.lax.scan(add_step, zeros, steps)
    num_steps = run.sampler.schedule.num_steps
    gradient = jax.tree.map(lambda g: g / num_steps, total)
    optimizer = make_optimizer(LEARNING_RATE)
    loss, opt_state = metrics["loss"].sum(), optimizer.init(params)
    after, _, norm = apply_gradient(params, opt_state, gradient, loss, optimizer)
    return metrics, gradient, norm["grad_norm"], after


def check_grpo(rec, prefix, run, params, unmoved, log_probs, clip_ratio, noise) -> None:
    """Loss of the moved policy on a recorded trajectory, its gradient, one update."""
    schedule = run.sampler.schedule
    last = schedule.num_steps - 1
    first = schedule.num_steps - schedule.num_recorded  # DDIM's last: no density
    zs = jnp.asarray(rec.input(f"{prefix}zs"))[: last + 2 - first]
    timesteps = jnp.arange(last, first - 1, -1)
    steps = Step(timesteps, zs[:-1], zs[1:], log_probs[: len(timesteps)])
    advantages = rec.input(f"{prefix}advantages")
    metrics, gradient, norm, after = update(run, params, steps, advantages, clip_ratio)
    compare_loss(rec, f"{prefix}loss/", metrics, last + 1, noise)
    rec.compare(f"{prefix}grad_norm", norm, GRADIENT, wider=room(2 * noise))
    gradient = flatten_dict(gradient["dit"], sep="/")
    compare_gradient(rec, f"{prefix}grad/", gradient, float(norm), noise)
    compare_update(rec, prefix, params, after, unmoved)


def compare_loss(rec: Recording, prefix: str, metrics, num_steps: int, noise) -> None:
    """Sums over the steps; `ratio` and `log_ratio` are the last step's.

    KL and ratio are exponentials of a log-ratio; the other terms feel less of `noise`.
    """
    sums = {
        name: np.asarray(value, np.float64).sum() for name, value in metrics.items()
    }
    linear, exponential = room(noise / 2), room(2 * noise)
    rec.compare(f"{prefix}sorrogate_objective", sums["surrogate"], wider=linear)
    rec.compare(f"{prefix}entropy", sums["neg_log_prob"], wider=linear)
    rec.compare(f"{prefix}kl_div", sums["kl_old"], wider=exponential)
    terms = linear[0] * abs(sums["surrogate"]) + exponential[0] * abs(sums["kl_old"])
    both = room(terms / abs(sums["loss"]))
    rec.compare(f"{prefix}loss", sums["loss"], wider=both)
    rec.compare(f"{prefix}scaled_loss", sums["loss"] / num_steps, wider=both)
    ratio, log_ratio = (float(metrics[name][-1]) for name in ("ratio", "log_ratio"))
    rec.compare(f"{prefix}ratio", ratio, wider=exponential)
    recorded_ratio = rec.rows.get(f"{prefix}ratio")
    if abs(log_ratio) < 1e-2 and recorded_ratio and recorded_ratio.ok:
        # So small a difference of log-probabilities is in their last digits, and better
        # told from the recorded ratio: exp's curvature leads from one to the other.
        curvature = ratio - 1 - log_ratio
        log_ratio = float(rec.input(f"{prefix}ratio")) - 1 - curvature
        digits = min(FORWARD + 4 * ROUNDING / abs(log_ratio), CAP)
        exponential = digits, "the last digits of log-probabilities"
    rec.compare(f"{prefix}log_ratio", log_ratio, wider=exponential)


def compare_gradient(rec: Recording, prefix: str, gradient, norm, noise) -> None:
    """Gradients {path: array}, under the names of the PyTorch tensors.

    Torch clips in place: a recording that kept a reference instead of a copy holds the
    gradient after the clip to norm 1. Which of the two it is shows in its own norm.
    """
    recorded = [rec.arrays[key] for key in rec.keys(prefix)]
    recorded_norm = np.sqrt(sum(np.square(x, dtype=np.float64).sum() for x in recorded))
    clipped = norm > 1 and abs(recorded_norm - 1) < abs(recorded_norm - norm)
    note = "recorded after the clip to norm 1" if clipped else ""
    for key in rec.keys(prefix):
        converted = convert_tensor(DIT, key.removeprefix(prefix), rec.arrays[key])
        if not converted:
            raise CheckpointError(f"golden.npz has {key!r}, which the model has not")
        parts = [np.asarray(gradient[path]) for path in converted]
        actual = np.concatenate([x.T if x.ndim == 2 else x for x in parts])
        actual = actual / (norm if clipped else 1)
        rec.compare(key, actual, GRADIENT, note, wider=room(2 * noise))


def compare_update(rec: Recording, prefix: str, before, after, unmoved) -> None:
    """One weight after an optimiser step.

    The tolerance is that of float32 itself, because a step of 1e-5 is small beside the
    weight. A recording that kept a reference instead of a copy holds what was loaded
    into that weight later, the policy that the rollout began with.
    """
    key = f"{prefix}after_adamw/x_embedder.weight"
    weight, start, step = (
        np.asarray(p["dit"]["latent"]["kernel"]).T for p in (unmoved, before, after)
    )
    recorded = rec.arrays.get(key)
    if recorded is not None and recorded.shape == weight.shape:
        moved_back = np.abs(recorded - weight).max() < np.abs(recorded - start).max()
        if moved_back:
            note = "recorded after the weights were set back: compared with those"
            rec.compare(key, weight, STEP, note=note)
            return
    rec.compare(key, step, STEP)

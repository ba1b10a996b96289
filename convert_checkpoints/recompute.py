"""Everything in a recording of Chemeleon2, computed again by this project's functions.

Names follow the recording. Flat arrays run over the atoms of all crystals in order, so
a padded array [B, N, ...] becomes flat by its mask.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import unflatten_dict
from pymatgen.core import Structure

from chemeleon_jax import crystals, diffusion, objective, rollout
from chemeleon_jax.lattice import lattice_matrix
from chemeleon_jax.models.condition import ConditionEncoder, preprocess
from chemeleon_jax.models.dit import DiT
from chemeleon_jax.models.generator import Generator
from chemeleon_jax.models.predictor import Predictor
from chemeleon_jax.models.vae import VAE, Decoded, to_crystals, vae_loss
from chemeleon_jax.rewards.diversity import kernel_mean, leave_one_out_mmd
from chemeleon_jax.rewards.normalize import NORMALIZATIONS
from chemeleon_jax.types import CrystalBatch, Step
from convert_checkpoints.comparison import GRADIENT, TRAJECTORY, Recording
from convert_checkpoints.opcodes import CheckpointError
from convert_checkpoints.tables import DIT, convert_tensor

CFG_SCALE = 2.0
KL_WEIGHT = 1.0
ENTROPY_WEIGHT = 1e-5
LEARNING_RATE = 1e-5
STEP = 5e-7  # of weights after a step of LEARNING_RATE
REWARD_EPS = 1e-4

Model = tuple[dict[str, Any], dict[str, Any]]  # config, nested parameters


def pad(flat: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Flat [atoms, ...] -> padded [B, N, ...], zero on padding."""
    padded = np.zeros(mask.shape + flat.shape[1:], flat.dtype)
    padded[mask] = flat
    return padded


def flat(padded, mask) -> np.ndarray:
    """Padded [B, N, ...] -> flat [atoms, ...]."""
    return np.asarray(padded)[mask]


def check_batch(rec: Recording, meta: dict) -> CrystalBatch:
    """The input crystals, from the structures in meta.json."""
    structures = [Structure.from_dict(s) for s in meta["structures"]]
    batch = crystals.from_structures(structures)
    mask = batch.mask
    counts = mask.sum(-1)
    rec.exact("batch/num_atoms", counts)
    rec.exact("batch/batch", np.repeat(np.arange(len(counts)), counts))
    rec.exact("batch/token_idx", np.concatenate([np.arange(n) for n in counts]))
    rec.exact("batch/atom_types", flat(batch.atom_types, mask))
    rec.compare("batch/frac_coords", flat(batch.frac_coords, mask))
    rec.compare("batch/lengths", batch.lengths)
    rec.compare("batch/angles", batch.angles)
    lattice = np.asarray(lattice_matrix(batch.lengths, batch.angles))
    rec.compare("batch/lattices", lattice)
    rec.compare("batch/cart_coords", flat(batch.frac_coords @ lattice, mask))
    return jax.tree.map(jnp.asarray, batch)


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


def check_vae(rec: Recording, model: Model, batch: CrystalBatch) -> None:
    """Encoder, posterior, decoder, reconstruction and loss."""
    config, params = model
    vae, variables = VAE(**config["vae"]), {"params": params["vae"]}
    mask = np.asarray(batch.mask)
    features, posterior = vae.apply(variables, batch, method="encode")
    mean_and_logvar = np.concatenate([posterior.mean, posterior.logvar], -1)
    rec.compare("vae/encoder_x", flat(features, mask))
    # The recording's log-variance is not clipped yet; within the bounds it is the same.
    rec.compare("vae/moments", flat(mean_and_logvar, mask))
    rec.compare("vae/mean", flat(posterior.mean, mask))
    rec.compare("vae/std", flat(posterior.std, mask))
    rec.compare("vae/kl", flat(posterior.kl(), mask))
    embedded = vae.apply(variables, batch.atom_types, method="embed_types")
    rec.compare("vae/composition_feature_atoms", flat(embedded, mask))

    z = pad(rec.input("vae/z"), mask)
    decoded: Decoded = vae.apply(variables, z, batch.mask, method="decode")
    rec.compare("vae/dec_atom_types", flat(decoded.atom_logits, mask))
    rec.compare("vae/dec_frac_coords", flat(decoded.frac_coords, mask))
    rec.compare("vae/dec_lengths", decoded.lengths_scaled)
    rec.compare("vae/dec_angles", decoded.angles_radians)
    compare_crystals(rec, "vae/rec_", to_crystals(decoded, batch.mask), 2e-5)

    noise = pad(rec.input("vae/loss_noise"), mask)
    decoded = vae.apply(variables, posterior.sample(noise), batch.mask, method="decode")
    total, terms = vae_loss(decoded, posterior, batch)
    rec.compare("vae/loss/total_loss", total)
    for name, value in terms.items():
        rec.compare(f"vae/loss/loss_{name}", value)
    note = "foundation alignment, which neither these files nor this project have"
    rec.exact("vae/loss/fa_loss", 0.0, note)


def check_predictor(rec: Recording, model: Model, batch: CrystalBatch) -> None:
    """Predicted properties in their own units."""
    config, params = model
    vae, predictor = VAE(**config["vae"]), Predictor(**config["predictor"])
    features, posterior = vae.apply({"params": params["vae"]}, batch, method="encode")
    y = predictor.apply(
        {"params": params["predictor"]}, features, posterior.mean, batch.mask
    )
    for name, column in zip(predictor.targets, predictor.denormalise(y).T, strict=True):
        rec.compare(f"predictor/{name}", column)


def generator(model: Model, max_atoms: int) -> Generator:
    """The modules of a converted LDM."""
    config, params = model
    condition = config.get("condition")
    return Generator(
        dit=DiT(**config["dit"]),
        vae=VAE(**config["vae"]),
        condition=ConditionEncoder(**condition) if condition else None,
        frozen={k: v for k, v in params.items() if k != "dit"},
        latent_std=jnp.asarray(config["latent_std"], jnp.float32),
        max_atoms=max_atoms,
    )


def condition_vectors(config: dict, meta: dict) -> dict[str, jax.Array] | None:
    """The recording's conditions, preprocessed."""
    if not config.get("condition"):
        return None
    return {
        spec["name"]: jnp.asarray(preprocess(spec, meta["conditions"][spec["name"]]))
        for spec in config["condition"]["specs"]
    }


def check_ldm(rec: Recording, name: str, model: Model, mask, meta: dict) -> None:
    """Denoiser, training loss, and every recorded run of one LDM."""
    config, params = model
    ldm = generator(model, mask.shape[1])
    vectors = condition_vectors(config, meta)
    rec.exact(f"{name}/mask", mask)
    policy = {"dit": params["dit"]}
    check_denoiser(rec, name, ldm, policy, mask, vectors)
    check_training_loss(rec, name, ldm, policy, mask, vectors)
    moved = moved_policy(rec, f"{name}/moved_policy/")
    runs = {key.split("/")[1] for key in rec.keys(f"{name}/")}
    for run in sorted(r for r in runs if re.fullmatch(r"(ddim|ddpm)\d+_eta[\d.]+", r)):
        sampler, steps, eta = re.match(r"(ddi?d?[pm]m?)(\d+)_eta(.+)", run).groups()
        settings = {
            "model": ldm,
            "schedule": diffusion.make_schedule(sampler, int(steps)),
            "eta": float(eta),
            "cfg_scale": CFG_SCALE if vectors else None,
            "condition": vectors,
        }
        check_rollout(rec, f"{name}/{run}/", policy, mask, **settings)
        clip_ratio = meta["cfg"]["clip"]
        check_grpo(rec, f"{name}/{run}/", moved, policy, mask, clip_ratio, **settings)


def check_denoiser(rec, name, ldm: Generator, params, mask, vectors) -> None:
    """The network's output for given latents and timesteps."""
    x, t = rec.input(f"{name}/x"), rec.integers(f"{name}/t")
    unconditional = ldm.denoiser(params, mask)(x, t)
    rec.compare(f"{name}/denoise", unconditional)
    if vectors is not None:
        keep = jnp.ones(len(mask), bool)
        embedded = [ldm.encode_condition(vectors, k) for k in (keep, ~keep)]
        rec.compare(f"{name}/y_embed_infer", jnp.concatenate(embedded))
        guided = ldm.denoiser(params, mask, vectors, CFG_SCALE)(x, t)
        dropped = ldm.denoiser(params, mask, vectors, 0.0)(x, t)
        rec.compare(f"{name}/denoise_uncond", dropped)
        # The original computes the guided output for both halves of the doubled batch.
        rec.compare(f"{name}/denoise_cfg", jnp.tile(guided, (2, 1, 1)))


def check_training_loss(rec, name, ldm: Generator, params, mask, vectors) -> None:
    """LDM loss per crystal, at the recorded timesteps and at timestep 0."""
    schedule = diffusion.make_schedule("ddpm", diffusion.NUM_TIMESTEPS)
    x, noise = rec.input(f"{name}/x"), rec.input(f"{name}/train_noise")
    times = rec.integers(f"{name}/t")
    denoiser = ldm.denoiser(params, mask, vectors)
    for key, t in (("train_t", times), ("train_t0", np.zeros_like(times))):
        terms = diffusion.ldm_loss(
            denoiser, x, noise, jnp.asarray(t), mask, schedule=schedule
        )
        for term, value in terms.items():
            rec.compare(f"{name}/{key}/{term}", value)


def moved_policy(rec: Recording, prefix: str) -> dict[str, Any]:
    """The recorded weights of the current policy, as parameters."""
    params = {}
    for key in rec.keys(prefix):
        params |= convert_tensor(DIT, key.removeprefix(prefix), rec.input(key))
    return {"dit": jax.tree.map(jnp.asarray, unflatten_dict(params, sep="/"))}


def check_rollout(rec, prefix, params, mask, *, model, schedule, eta, **guidance):
    """A whole trajectory from the recorded noise, and each of its steps by itself."""
    rec.exact(f"{prefix}timestep_map", schedule.timesteps)
    rec.exact(f"{prefix}mask", mask)
    noise = rec.input(f"{prefix}noise")
    z = jnp.asarray(pad(rec.input(f"{prefix}z_init_flat"), mask))
    denoiser = model.denoiser(
        params, mask, guidance["condition"], guidance["cfg_scale"]
    )
    last = schedule.num_steps - 1
    draws = jnp.asarray(noise)
    z_final, steps = jax.jit(
        lambda z: rollout.roll_out(
            denoiser, z, lambda i: draws[last - i], mask, schedule=schedule, eta=eta
        )
    )(z)
    # A DDIM trajectory has one more step than those that drew noise.
    reached = [steps.z, steps.z_next[-1:], z_final[None]]
    zs = jnp.concatenate(reached)[: schedule.num_steps + 1]
    rec.compare(f"{prefix}zs", zs, TRAJECTORY)
    batch = model.decode(zs[-1], mask)
    compare_crystals(rec, f"{prefix}gen_", batch, TRAJECTORY)

    recorded = jnp.asarray(rec.input(f"{prefix}zs"))

    def one_step(i):
        return diffusion.denoise_step(
            denoiser, recorded[last - i], i, schedule=schedule, eta=eta
        )

    means, stds = jax.lax.map(one_step, jnp.arange(last, -1, -1))
    rec.compare(f"{prefix}means", means)
    rec.compare(f"{prefix}stds", stds)
    log_probs = jax.vmap(diffusion.gaussian_log_prob, (0, 0, 0, None))(
        recorded[1:], means, stds, mask
    )
    rec.compare(f"{prefix}log_probs", log_probs)


def check_grpo(
    rec, prefix, params, before, mask, clip_ratio, *, model, schedule, eta, **guidance
) -> None:
    """Loss of the moved policy on a recorded trajectory, its gradient, one update."""
    zs = jnp.asarray(rec.input(f"{prefix}zs"))
    first = 1 if schedule.sampler == "ddim" else 0  # DDIM's last step has no density
    count = schedule.num_steps - first
    steps = Step(
        index=jnp.arange(schedule.num_steps - 1, first - 1, -1),
        z=zs[:count],
        z_next=zs[1 : count + 1],
        log_prob=jnp.asarray(rec.input(f"{prefix}log_probs"))[:count],
    )
    advantages = jnp.asarray(rec.input(f"{prefix}advantages"))
    loss_and_grad = jax.value_and_grad(objective.grpo_loss, has_aux=True)

    def add_step(total, step):
        (loss, metrics), grad = loss_and_grad(
            params,
            step,
            advantages,
            mask,
            model=model,
            schedule=schedule,
            clip_ratio=clip_ratio,
            kl_weight=KL_WEIGHT,
            entropy_weight=ENTROPY_WEIGHT,
            eta=eta,
            **guidance,
        )
        return jax.tree.map(jnp.add, total, grad), metrics | {"loss": loss}

    zeros = jax.tree.map(jnp.zeros_like, params)
    total, metrics = jax.jit(lambda s: jax.lax.scan(add_step, zeros, s))(steps)
    gradient = jax.tree.map(lambda g: g / schedule.num_steps, total)
    compare_loss(rec, f"{prefix}loss/", metrics, schedule.num_steps)
    norm = optax.global_norm(gradient)
    rec.compare(f"{prefix}grad_norm", norm, GRADIENT)
    compare_gradient(rec, f"{prefix}grad/", gradient["dit"], float(norm))

    optimizer = objective.make_optimizer(LEARNING_RATE)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    compare_update(rec, prefix, params, optax.apply_updates(params, updates), before)


def compare_loss(rec: Recording, prefix: str, metrics, num_steps: int) -> None:
    """Sums over the steps; `ratio` and `log_ratio` are the last step's."""
    sums = {
        name: np.asarray(value, np.float64).sum() for name, value in metrics.items()
    }
    rec.compare(f"{prefix}loss", sums["loss"])
    rec.compare(f"{prefix}scaled_loss", sums["loss"] / num_steps)
    rec.compare(f"{prefix}sorrogate_objective", sums["surrogate"])
    rec.compare(f"{prefix}kl_div", sums["kl_old"])
    rec.compare(f"{prefix}entropy", sums["neg_log_prob"])
    rec.compare(f"{prefix}log_ratio", metrics["log_ratio"][-1])
    rec.compare(f"{prefix}ratio", metrics["ratio"][-1])


def compare_gradient(rec: Recording, prefix: str, gradient, norm: float) -> None:
    """Gradients under the names of the PyTorch tensors that they belong to.

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
        parts = [_at(gradient, path) for path in converted]
        actual = np.concatenate([x.T if x.ndim == 2 else x for x in parts])
        rec.compare(key, actual / (norm if clipped else 1), GRADIENT, note=note)


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


def _at(tree, path: str) -> np.ndarray:
    for name in path.split("/"):
        tree = tree[name]
    return np.asarray(tree)


def check_rewards(rec: Recording) -> None:
    """Normalisations, and the MMD of two sets of features."""
    x = jnp.asarray(rec.input("reward/x"))
    for name, normalise in NORMALIZATIONS.items():
        rec.compare(f"reward/{name}", normalise(x, REWARD_EPS))
    if "reward/const_std" in rec.arrays:
        constant = jnp.ones(rec.arrays["reward/const_std"].shape)
        normalised = NORMALIZATIONS["std"](constant, REWARD_EPS)
        rec.exact("reward/const_std", normalised, "all values equal: zeros")
    generated = rec.input("reward/mmd_gen").astype(np.float64)
    reference = rec.input("reward/mmd_ref").astype(np.float64)
    means = kernel_mean(reference)
    rec.compare("reward/mmd_r_indiv", leave_one_out_mmd(generated, means))
    mmd = _mean_off_diagonal(means.kernel(generated, generated))
    mmd += _mean_off_diagonal(means.kernel(reference, reference))
    mmd -= 2 * means(generated).mean()
    rec.compare("reward/mmd_r", -mmd)


def _mean_off_diagonal(kernel: np.ndarray) -> float:
    n = len(kernel)
    return (kernel.sum() - np.trace(kernel)) / (n * (n - 1))

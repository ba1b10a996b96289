"""Models, losses and rewards of a recording, computed by this project's functions.

Names follow the recording. Flat arrays run over the atoms of all crystals in order, so
a padded array [B, N, ...] becomes flat by its mask.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from chemeleon_jax.data import crystals
from chemeleon_jax.data.crystals import read_structure
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.models import diffusion
from chemeleon_jax.models.condition import preprocess
from chemeleon_jax.models.generator import Generator, make_generator
from chemeleon_jax.models.predictor import make_predictor
from chemeleon_jax.models.store import Checkpoint
from chemeleon_jax.models.vae import Decoded, make_vae, to_crystals, vae_loss
from chemeleon_jax.rewards.diversity import kernel_mean, leave_one_out_mmd
from chemeleon_jax.rewards.features import predict_properties
from chemeleon_jax.rewards.normalize import NORMALIZATIONS
from convert_checkpoints import replay
from convert_checkpoints.comparison import FORWARD, Recording
from convert_checkpoints.replay import compare_crystals, flat, pad

REWARD_EPS = 1e-4


def check_batch(rec: Recording, meta: dict) -> CrystalBatch:
    """The input crystals, from the structures in meta.json."""
    structures = [read_structure(s) for s in meta["structures"]]
    batch = crystals.from_structures(structures)
    counts = batch.mask.sum(-1)
    rec.exact("batch/num_atoms", counts)
    rec.exact("batch/batch", np.repeat(np.arange(len(counts)), counts))
    rec.exact("batch/token_idx", np.concatenate([np.arange(n) for n in counts]))
    compare_crystals(rec, "batch/", batch, FORWARD)
    return jax.tree.map(jnp.asarray, batch)


def check_vae(rec: Recording, model: Checkpoint, batch: CrystalBatch) -> None:
    """Encoder, posterior, decoder, reconstruction and loss."""
    params, config = model
    vae, mask = make_vae(config["vae"]), np.asarray(batch.mask)
    apply = jax.jit(
        functools.partial(vae.apply, {"params": params["vae"]}),
        static_argnames="method",
    )
    features, posterior = apply(batch, method="encode")
    mean_and_logvar = np.concatenate([posterior.mean, posterior.logvar], -1)
    rec.compare("vae/encoder_x", flat(features, mask))
    # The recording's log-variance is not clipped yet; within the bounds it is the same.
    rec.compare("vae/moments", flat(mean_and_logvar, mask))
    rec.compare("vae/mean", flat(posterior.mean, mask))
    rec.compare("vae/std", flat(posterior.std, mask))
    rec.compare("vae/kl", flat(posterior.kl(), mask))
    embedded = apply(batch.atom_types, method="embed_types")
    rec.compare("vae/composition_feature_atoms", flat(embedded, mask))

    z = pad(rec.input("vae/z"), mask)
    decoded: Decoded = apply(z, batch.mask, method="decode")
    rec.compare("vae/dec_atom_types", flat(decoded.atom_logits, mask))
    rec.compare("vae/dec_frac_coords", flat(decoded.frac_coords, mask))
    rec.compare("vae/dec_lengths", decoded.lengths_scaled)
    rec.compare("vae/dec_angles", decoded.angles_radians)
    compare_crystals(rec, "vae/rec_", to_crystals(decoded, batch.mask), FORWARD)

    noise = pad(rec.input("vae/loss_noise"), mask)
    decoded = apply(posterior.sample(noise), batch.mask, method="decode")
    total, terms = vae_loss(decoded, posterior, batch)
    rec.compare("vae/loss/total_loss", total)
    for name, value in terms.items():
        rec.compare(f"vae/loss/loss_{name}", value)
    note = "foundation alignment, which neither these files nor this project have"
    rec.exact("vae/loss/fa_loss", 0.0, note)


def check_predictor(rec: Recording, model: Checkpoint, batch: CrystalBatch) -> None:
    """Predicted properties in their own units."""
    params, config = model
    vae, predictor = make_vae(config["vae"]), make_predictor(config["predictor"])
    predicted = predict_properties(vae, predictor, params, batch)
    for name, column in zip(predictor.targets, predicted.T, strict=True):
        rec.compare(f"predictor/{name}", column)


def check_ldm(rec: Recording, name: str, model: Checkpoint, mask, meta: dict) -> None:
    """Denoiser, training loss, and every recorded run of one LDM."""
    ldm, policy = make_generator(model, mask.shape[1])
    specs = (model.config.get("condition") or {}).get("specs")
    vectors = {
        spec["name"]: jnp.asarray(preprocess(spec, meta["conditions"][spec["name"]]))
        for spec in specs or ()
    } or None
    rec.exact(f"{name}/mask", mask)
    check_denoiser(rec, name, ldm, policy, mask, vectors)
    check_training_loss(rec, name, ldm, policy, mask, vectors)
    replay.check_runs(rec, name, ldm, policy, mask, vectors, meta["cfg"]["clip"])


def check_denoiser(rec, name, ldm: Generator, policy, mask, vectors) -> None:
    """The network's output for given latents and timesteps."""
    x, t = rec.input(f"{name}/x"), rec.integers(f"{name}/t")

    @jax.jit
    def outputs(x, t):
        if vectors is None:
            return {"denoise": ldm.denoiser(policy, mask)(x, t)}
        keep = jnp.ones(len(mask), bool)
        embedded = [ldm.encode_condition(vectors, k) for k in (keep, ~keep)]
        guided = ldm.denoiser(policy, mask, vectors, replay.CFG_SCALE)(x, t)
        return {
            "y_embed_infer": jnp.concatenate(embedded),
            # The original gives the guided output for both halves of the doubled batch.
            "denoise_cfg": jnp.tile(guided, (2, 1, 1)),
            "denoise_uncond": ldm.denoiser(policy, mask, vectors, 0.0)(x, t),
        }

    for key, value in outputs(x, t).items():
        rec.compare(f"{name}/{key}", value)


def check_training_loss(rec, name, ldm: Generator, policy, mask, vectors) -> None:
    """LDM loss per crystal, at the recorded timesteps and at timestep 0."""
    schedule = diffusion.make_schedule("ddpm", diffusion.NUM_TIMESTEPS)
    x, noise = rec.input(f"{name}/x"), rec.input(f"{name}/train_noise")
    times = rec.integers(f"{name}/t")

    @jax.jit
    def loss(x, noise, t):
        denoiser = ldm.denoiser(policy, mask, vectors)
        return diffusion.ldm_loss(denoiser, x, noise, t, mask, schedule=schedule)

    for key, t in (("train_t", times), ("train_t0", np.zeros_like(times))):
        for term, value in loss(x, noise, t).items():
            rec.compare(f"{name}/{key}/{term}", value)


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
    between = means(generated).mean()
    mmd = _mean_off_diagonal(means.kernel(generated, generated)) - 2 * between
    mmd += _mean_off_diagonal(means.kernel(reference, reference))
    # The recording is in float32, and an MMD is a small difference of kernel means.
    lost = replay.ROUNDING * 8 * between
    note = "a small difference of kernel means in float32"
    without, everything = leave_one_out_mmd(generated, means)
    for key, value in (("mmd_r", -mmd), ("mmd_r_indiv", without - everything)):
        digits = min(FORWARD + lost / np.abs(value).max(), replay.CAP)
        rec.compare(f"reward/{key}", value, wider=(digits, note))


def _mean_off_diagonal(kernel: np.ndarray) -> float:
    n = len(kernel)
    return (kernel.sum() - np.trace(kernel)) / (n * (n - 1))

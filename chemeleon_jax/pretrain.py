"""Program: the supervised stages (VAE, LDM, predictor), on one functional loop.

    python -m chemeleon_jax.pretrain --config=vae --workdir=runs/vae

The work directory becomes a model directory (`params.safetensors`, `config.json`: the
averaged weights that validated best) with the training's own state in `training/`. The
same command continues a training that was cut off, and ends where it would have ended.

Fields that are changed most, as --config.FIELD=VALUE:

    num_steps, validate_every, patience, seed, ema_decay
    init_from                  the model to start from
    vae_ckpt_path              ldm, predictor: the VAE whose latents or features count
    data.dataset               mp_mini, or the path of a CSV or npz file
    data.atoms_per_batch       padded atoms of a step: less takes less memory
    optimizer.lr, optimizer.warmup_steps, optimizer.weight_decay
"""

import contextlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from chemeleon_jax.cli import run
from chemeleon_jax.data.batches import BucketedBatches
from chemeleon_jax.data.dataset import Dataset, load_dataset
from chemeleon_jax.data.symmetry import with_symmetry_labels
from chemeleon_jax.devices import distributed
from chemeleon_jax.devices.compilation import PRECISIONS
from chemeleon_jax.devices.sharding import make_mesh, replicate, shard_batch
from chemeleon_jax.errors import UserError
from chemeleon_jax.models import store
from chemeleon_jax.models.optimizer import (
    apply_gradient,
    make_optimizer,
    moving_average,
)
from chemeleon_jax.pretraining.checks import check_pretrain
from chemeleon_jax.pretraining.ldm import ldm_stage
from chemeleon_jax.pretraining.predictor import labelled_crystals, predictor_stage
from chemeleon_jax.pretraining.stage import Stage, choose, start_from, with_kept
from chemeleon_jax.pretraining.vae import vae_stage
from chemeleon_jax.runs.console import count_parameters, say_next, say_start
from chemeleon_jax.runs.directory import work_directory, write_run_info
from chemeleon_jax.runs.interruption import SaveOnSignal
from chemeleon_jax.runs.mirror import import_wandb, open_mirror
from chemeleon_jax.runs.states import RunCheckpoints
from chemeleon_jax.runs.tracking import Tracker

STAGES = {"vae": vae_stage, "ldm": ldm_stage, "predictor": predictor_stage}
MAX_SKIPPED = 10  # steps in a row, before a run ends


@struct.dataclass
class PretrainState:
    """What a training carries from one step to the next."""

    step: jax.Array  # []  steps done
    params: Any
    ema_params: Any
    opt_state: Any
    best: jax.Array  # []  lowest validation loss so far
    since_best: jax.Array  # []  validations since then


def make_train_step(stage: Stage, optimizer, ema_decay: float):
    """One optimiser step, compiled once per bucket of atom counts."""

    @jax.jit  # the old state is not donated: a signal during the step saves it
    def train_step(state: PretrainState, frozen, crystals, labels, key):
        key = jax.random.fold_in(key, state.step)
        value_and_grad = jax.value_and_grad(stage.loss, has_aux=True)
        (loss, metrics), grads = value_and_grad(
            state.params, frozen, crystals, labels, key, True
        )
        params, opt_state, applied = apply_gradient(
            state.params, state.opt_state, grads, loss, optimizer
        )
        # The average of a training from nothing forgets its random start quickly.
        ema_params = moving_average(
            state.ema_params, params, state.step, ema_decay, warmup=10
        )
        state = state.replace(
            step=state.step + 1,
            params=params,
            ema_params=ema_params,
            opt_state=opt_state,
        )
        metrics = {name: metric.mean for name, metric in metrics.items()}
        metrics |= {
            "loss": loss,
            "grad_norm": applied["grad_norm"],
            "skipped_updates": applied["skipped_in_total"],
            "skipped_in_a_row": applied["skipped_in_a_row"],
        }
        return state, metrics

    return train_step


def make_validate(stage: Stage, batches: BucketedBatches, frozen, mesh):
    """The averaged model's mean loss and metrics on the crystals of a split.

    Each crystal, or each that has the label, counts once, whatever batch it is in. The
    same crystals, noise and timesteps every time, so that two results compare.
    """

    @jax.jit
    def add_up(params, frozen, crystals, labels, counted, key):
        _, metrics = stage.loss(params, frozen, crystals, labels, key, False)
        return {name: metric.sums(counted) for name, metric in metrics.items()}

    def validate(params) -> dict[str, float]:
        parts = []
        for i in range(batches.batches_per_epoch):
            batch = shard_batch((*batches.at(i), batches.counted(i)), mesh)
            key = jax.random.fold_in(jax.random.key(0), i)
            parts.append(jax.device_get(add_up(params, frozen, *batch, key)))
        sums = jax.tree.map(lambda *x: np.sum(x, 0, np.float64), *parts)
        return {k: float(np.mean(total / count)) for k, (total, count) in sums.items()}

    return validate


def load_splits(config) -> tuple[Dataset, Dataset]:
    """The crystals to train on, and those to validate, with the labels of the stage.

    Raises:
      UserError: there are none, or they lack labels.
    """
    source = config.data.dataset
    dataset = load_dataset(source)
    for split in ("train", "validation"):
        if not len(dataset.select(split)):
            raise UserError(
                f"config.data.dataset: none of the {len(dataset)} crystals of {source} "
                f"is in the split {split!r}: give them a column 'split' with train, "
                "validation or test in each row, some of each (a file without this "
                "column is split by chemical system, 5 % for validation)"
            )
    if config.stage == "predictor":
        dataset = labelled_crystals(dataset, config.targets)
    if config.stage == "ldm":
        dataset = with_symmetry_labels(dataset, config.conditions.values())
    return dataset.select("train"), dataset.select("validation")


def make_batches(
    config, train: Dataset, validation: Dataset, num_devices: int
) -> tuple[BucketedBatches, BucketedBatches]:
    """The batches to train on, and those to validate."""
    # Multiples of 8 crystals, so that 1, 2, 4 and 8 devices see the same batches.
    multiple_of = math.lcm(8, num_devices)
    atoms, most = config.data.atoms_per_batch, config.data.crystals_per_batch
    return (
        BucketedBatches(train, atoms, most, config.seed, multiple_of),
        BucketedBatches(validation, atoms // 8, multiple_of=multiple_of),
    )


def start_state(stage: Stage, optimizer) -> PretrainState:
    """The state of a stage before its first step."""
    return PretrainState(
        step=jnp.array(0),
        params=stage.params,
        ema_params=jax.tree.map(jnp.copy, stage.params),
        opt_state=optimizer.init(stage.params),
        best=jnp.array(jnp.inf),
        since_best=jnp.array(0),
    )


def after_validation(state: PretrainState, loss: float) -> tuple[PretrainState, bool]:
    """The state that knows of one validation more, and whether that was the best."""
    improved = bool(loss < state.best)  # in float32, as it is kept
    state = state.replace(
        best=jnp.where(improved, loss, state.best),
        since_best=jnp.where(improved, 0, state.since_best + 1),
    )
    return state, improved


def keep_model(workdir: str, stage: Stage, state: PretrainState, scores: dict) -> None:
    """Writes the averaged weights, as the model that `workdir` is."""
    summary = {"step": int(state.step), "validation": scores}
    config = {**stage.config, "training": summary}
    store.save_model(workdir, with_kept(stage, state.ema_params), config)


def pretrain(config, workdir: str) -> None:
    """Train one stage; see the module's docstring."""
    # ------------------------------------------------------------ data, model, state
    check_pretrain(config)
    make_stage = choose(config, "stage", STAGES)
    precision = choose(config, "precision", PRECISIONS)
    if config.tracking.wandb:
        import_wandb()  # or a UserError, before anything is loaded
    mesh = make_mesh()
    train, validation = load_splits(config)
    batches, held_out = make_batches(config, train, validation, mesh.size)
    key = jax.random.key(config.seed)
    stage = start_from(config.init_from, make_stage(config, train, key))
    optimizer = make_optimizer(**config.optimizer, num_steps=config.num_steps)
    state = replicate(start_state(stage, optimizer), mesh)
    frozen = replicate(stage.frozen, mesh)

    with contextlib.ExitStack() as stack:
        # ---------------------------------------------------- what is held till the end
        folder = stack.enter_context(work_directory(f"{workdir}/training"))
        write_run_info(folder, config.to_dict(), stage.config)
        saved = stack.enter_context(RunCheckpoints(folder))
        state = saved.restore_latest(state) or state
        start, total = int(state.step), config.num_steps
        interruption = stack.enter_context(SaveOnSignal(saved.save))
        mirror = open_mirror(config, folder)
        tracker = stack.enter_context(
            Tracker(folder, total, start=start, mirror=mirror)
        )

        # ------------------------------------------------------------------------ train
        stack.enter_context(jax.default_matmul_precision(precision))
        about = describe(config, stage, train, validation)
        say_start(about, workdir, start=start, total=total, unit="step")
        train_step = make_train_step(stage, optimizer, config.ema_decay)
        validate = make_validate(stage, held_out, frozen, mesh)
        stopped = int(state.since_best) >= config.patience
        for step in range(start, 0 if stopped else total):
            crystals, labels = shard_batch(batches.at(step), mesh)
            state, metrics = train_step(state, frozen, crystals, labels, key)
            if step % config.log_every == 0:
                tracker.log(step, {f"train/{k}": v for k, v in metrics.items()})
                if metrics["skipped_in_a_row"] >= MAX_SKIPPED:
                    tracker.sync()
                    saved.save(step + 1, state)
                    raise UserError(explain_skipped(step, metrics))

            # ---------------------------------------------------------------- validate
            if (step + 1) % config.validate_every == 0 or step + 1 == total:
                scores = validate(state.ema_params)
                tracker.log(step, {f"val/{k}": v for k, v in scores.items()})
                tracker.progress(step, loss=metrics["loss"], val_loss=scores["loss"])
                state, improved = after_validation(state, scores["loss"])
                if improved and distributed.is_first():
                    keep_model(workdir, stage, state, scores)
                tracker.sync()  # a state counts when all that led to it is on disk
                saved.save(step + 1, state, score=-scores["loss"])
                if int(state.since_best) >= config.patience:
                    break
            interruption.finished(step + 1, state)
    say_next(f"{workdir} holds the model. Next:", next_commands(config, workdir))


def describe(config, stage: Stage, train: Dataset, validation: Dataset) -> dict:
    """What is trained, and on what, for the terminal."""
    return {
        "stage": f"{config.stage}, {count_parameters(stage.params)}",
        "data": f"{config.data.dataset}, {len(train)} crystals to train on, "
        f"{len(validation)} to validate",
    }


def next_commands(config, workdir: str) -> list[list[str]]:
    """What to do with the model of a stage."""
    if config.stage == "vae":
        path = f"--config.vae_ckpt_path={workdir}"
        return [["chemeleon_jax.pretrain", "--config=ldm", path]]
    if config.stage == "predictor":
        field = "--config.reward.components.predictor"
        what = [f"{field}.ckpt_path={workdir}", f"{field}.property={config.targets[0]}"]
        return [["chemeleon_jax.train", "--config=rl_bandgap", *what]]
    vae = config.vae_ckpt_path
    models = [f"--config.ldm_ckpt_path={workdir}", f"--config.vae_ckpt_path={vae}"]
    sample = [f"--checkpoint={workdir}", f"--out={workdir}/samples"]
    return [
        ["chemeleon_jax.sample", *sample],
        ["chemeleon_jax.train", "--config=rl_dng", *models],
    ]


def explain_skipped(step: int, metrics: dict) -> str:
    """Why a training ends that skips its steps, one after the other."""
    return (
        f"step {step + 1}: no finite loss or gradient in "
        f"{metrics['skipped_in_a_row']} steps in a row (loss {metrics['loss']:.3g}). "
        "Such steps were skipped, and the state is saved as it was before them: "
        "continue with a lower config.optimizer.lr, or look for numbers in the data "
        "that are not finite"
    )


if __name__ == "__main__":
    run(pretrain, program="pretrain")

"""Program: fine-tune a crystal generator with GRPO.

    python -m chemeleon_jax.train --config=rl_dng
    python -m chemeleon_jax.train --config=rl_dng:mp_20 --workdir=runs/mine

Sample groups of crystals, score them, push the policy towards the better ones of each
group; again. The same command with the same --workdir continues a run.

Fields that are changed most, as --config.FIELD=VALUE:

    num_iterations, validate_every, checkpoint_every, seed
    ldm_ckpt_path, vae_ckpt_path            the model to start from
    data.batch_size, rl.num_group_samples   groups, and crystals of each
    data.max_atoms                          larger crystals are not trained on
    sampling.sampling_steps                 denoising steps of a crystal
    optimizer.lr, rl.clip_ratio, rl.kl_weight
    rl.memory_budget                        GB per device
    reward.workers                          processes that score; 0: one per CPU
    reward.components.energy.weight         of energy; others likewise, 0 for none
    reward.components.custom.function       your own reward, as module:function
"""

import contextlib
import functools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from chemeleon_jax.cli import run
from chemeleon_jax.data.dataset import MAX_ATOMS
from chemeleon_jax.data.types import CrystalBatch, TrainState, Trajectory
from chemeleon_jax.devices import distributed
from chemeleon_jax.devices.sharding import (
    make_mesh,
    replicate,
    shard_batch,
    shard_params,
)
from chemeleon_jax.errors import UserError
from chemeleon_jax.models.buckets import choose_parts
from chemeleon_jax.models.diffusion import Schedule
from chemeleon_jax.models.generator import (
    Generator,
    combine_checkpoints,
    make_generator,
)
from chemeleon_jax.models.loading import load_checkpoint
from chemeleon_jax.models.store import params_digest, save_start
from chemeleon_jax.report.pictures import log_validation
from chemeleon_jax.rewards.faults import FaultStreak
from chemeleon_jax.rewards.loading import load_reward
from chemeleon_jax.rewards.recent import load_recent
from chemeleon_jax.rl.config import check_rl
from chemeleon_jax.rl.experience import (
    Batch,
    Rollout,
    batch_size,
    crystal_order,
    draw_groups,
    make_sample_and_score,
    make_validate,
    matmul_precision,
    sampling_settings,
)
from chemeleon_jax.rl.objective import make_optimizer, reference_kl, update
from chemeleon_jax.rl.prompts import make_prompts
from chemeleon_jax.rl.timesteps import choose_steps, take_steps
from chemeleon_jax.runs import memory
from chemeleon_jax.runs.alarms import Alarms, explain_skipped
from chemeleon_jax.runs.directory import work_directory, write_run_info
from chemeleon_jax.runs.interruption import SaveOnSignal
from chemeleon_jax.runs.iteration_files import save_iteration
from chemeleon_jax.runs.states import RunCheckpoints
from chemeleon_jax.runs.tracking import Tracker

KL_EVERY = 12  # steps of a trajectory per one at which the KL to the original is taken


def train(config, workdir: str) -> None:
    """Run, or continue, one RL fine-tuning; see the module's docstring."""
    check_rl(config, jax.device_count())
    mesh = make_mesh(fsdp=config.fsdp)
    start_model = combine_checkpoints(
        load_checkpoint(config.ldm_ckpt_path),
        load_checkpoint(config.vae_ckpt_path),
    )
    model, policy = make_generator(start_model, MAX_ATOMS)
    source = config.data.dataset
    draw_prompts = make_prompts(model, source, config.data.max_atoms)
    optimizer = make_optimizer(**config.optimizer)
    state = shard_params(init_state(policy, optimizer), mesh)
    with contextlib.ExitStack() as stack:
        # ---------------------------------------------------- what is held till the end
        folder = stack.enter_context(work_directory(workdir))
        start_digest = params_digest(start_model.params)
        write_run_info(folder, config.to_dict(), start_model.config, start_digest)
        save_start(folder, start_model)
        saved = stack.enter_context(RunCheckpoints(folder))
        state = saved.restore_latest(state) or state
        start = int(state.iteration)
        interruption = stack.enter_context(SaveOnSignal(saved.save))
        reward = stack.enter_context(contextlib.closing(load_reward(config, model)))
        tracker = stack.enter_context(
            Tracker(folder, config.num_iterations, start=start)
        )
        log = make_log(config, folder, tracker)

        # ------------------------------------------------------------ what is compiled
        sampling = sampling_settings(config, replicate(model, mesh))
        rollout = Rollout(config, sampling, mesh)
        recent = load_recent(
            folder,
            config.reward.recent_iterations,
            start,
            batch_size=batch_size(config),
            max_atoms=MAX_ATOMS,
        )
        faults = FaultStreak(reward, workdir)
        sample_and_score = make_sample_and_score(config, reward, rollout, recent, mesh)
        draw_any = make_prompts(model, source, MAX_ATOMS)
        validate = make_validate(config, draw_any, reward, rollout, mesh)
        reference = shard_params(policy, mesh)
        improve = Improve(config, state, reference, optimizer, sampling, mesh)

        # -------------------------------------------------------------------- the loop
        for iteration in range(start, config.num_iterations):
            key = jax.random.fold_in(jax.random.key(config.seed), iteration)
            prompts = draw_groups(config, draw_prompts, key)
            places = choose_places(config, key, iteration, sampling["schedule"])
            if iteration == start:
                shapes = rollout.trajectory_shapes(state.params, prompts)
                improve.compile_ahead(state, shapes, places)
            batch = sample_and_score(
                state.params, prompts, window=places if config.rl.window else None
            )
            faults.add(batch.crystals, batch.rewards)
            state, metrics, seconds = improve(state, batch, places)
            log(iteration, batch, metrics, seconds)

            # ----------------------------------------------------------- validate, save
            done, score = iteration + 1, None
            last = done == config.num_iterations
            if config.validate_every and (done % config.validate_every == 0 or last):
                crystals, rewards = validate(state.ema_params)
                score = float(rewards.metrics["reward"])
                log_scores(config, tracker, iteration, crystals, rewards)
            stuck = metrics["skipped_in_a_row"] >= config.max_skipped
            due = done % config.checkpoint_every == 0 or score is not None
            if due or last or stuck:
                tracker.sync()  # a state counts when all that led to it is on disk
                saved.save(done, state, score=score)
                memory.give_back()
            if stuck:
                raise UserError(explain_skipped(iteration, metrics))
            interruption.finished(done, state)


def init_state(policy: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first iteration."""
    return TrainState(
        iteration=jnp.array(0),
        params=policy,
        opt_state=optimizer.init(policy),
        ema_params=jax.tree.map(jnp.array, policy),
        skipped=jnp.array(0),
    )


def choose_places(config, key: jax.Array, iteration: int, schedule: Schedule):
    """The steps of the trajectory that this iteration trains on; None for all."""
    return choose_steps(
        jax.random.fold_in(key, 2),
        iteration,
        schedule.num_recorded,
        num_train_steps=config.rl.num_train_steps,
        window=config.rl.window,
        window_iterations=config.rl.window_iterations,
    )


class Improve:
    """The second half of an iteration, compiled; see `improve_policy`."""

    def __init__(
        self,
        config,
        state: TrainState,
        reference: Any,
        optimizer: optax.GradientTransformation,
        sampling: dict,
        mesh: Mesh,
    ):
        """`state`: any, in its place on the mesh; `sampling`: `sampling_settings`."""
        self._config, self._mesh = config, mesh
        self._reference, self._sampling = reference, sampling
        names = (
            "kl_target ema_decay num_inner_batch clip_ratio kl_weight entropy_weight "
            "step_weight"
        )
        fixed = {name: config.rl[name] for name in names.split()}
        step_size = batch_size(config) // config.rl.num_inner_batch
        fixed["grad_accum"] = config.rl.grad_accum or choose_parts(
            step_size, sampling["model"], config.rl.memory_budget, mesh.size
        )
        # The old state is not donated: a signal during the update saves it.
        self._compiled = jax.jit(
            functools.partial(improve_policy, optimizer=optimizer, **fixed),
            out_shardings=(
                jax.tree.map(lambda x: x.sharding, state),
                NamedSharding(mesh, P()),
            ),
        )
        self._order = crystal_order(config, mesh)
        self._ahead: threading.Thread | None = None

    def __call__(
        self, state: TrainState, batch: Batch, places: jax.Array | None
    ) -> tuple[TrainState, dict, dict[str, float]]:
        """The next state, metrics on the host, seconds."""
        began = time.perf_counter()
        if self._ahead:
            self._ahead.join()
        with jax.set_mesh(self._mesh), matmul_precision(self._config):
            state, metrics = self._compiled(
                *self._inputs(state, batch.trajectory, batch.rewards.advantage, places),
                **self._sampling,
            )
        metrics = jax.device_get(metrics)
        return state, metrics, {"update": time.perf_counter() - began}

    def compile_ahead(
        self, state: TrainState, trajectory: Trajectory, places: jax.Array | None
    ) -> None:
        """Compiles while the first crystals are sampled and scored, in a thread.

        Args:
          state: any, or its shapes.
          trajectory: `Rollout.trajectory_shapes`.
          places: of any iteration.
        """
        advantage = np.zeros(batch_size(self._config), np.float32)

        def compile_now():
            with jax.set_mesh(self._mesh), matmul_precision(self._config):
                inputs = self._inputs(state, trajectory, advantage, places)
                self._compiled.lower(*inputs, **self._sampling).compile()

        self._ahead = threading.Thread(target=compile_now)
        self._ahead.start()

    def _inputs(self, state, trajectory, advantage, places):
        advantage = shard_batch(advantage[self._order], self._mesh)
        return state, trajectory, advantage, self._reference, places


def improve_policy(
    state: TrainState,
    trajectory: Trajectory,
    advantage: jax.Array,
    reference: Any,
    places: jax.Array | None = None,
    *,
    model: Generator,
    kl_target: str,
    ema_decay: float,
    **update_kwargs,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One iteration's updates, the average of policies, and the KL from the original.

    `kl_div` is the loss's own where the loss needs it. Else it is that of the policy
    that sampled, at a twelfth of the trajectory's steps, which is cheap. `places`: the
    steps that are trained on, all by default.
    """
    if places is not None:
        trajectory = take_steps(trajectory, places)
    sampling = {k: update_kwargs[k] for k in ("schedule", "eta", "cfg_scale")}
    in_loss = kl_target == "reference"
    measured = {}
    if not in_loss:
        measured["kl_div"] = reference_kl(
            state.params,
            reference,
            trajectory,
            model=model,
            num_steps=max(len(trajectory.steps.index) // KL_EVERY, 1),
            parts=update_kwargs["num_inner_batch"] * update_kwargs["grad_accum"],
            **sampling,
        )
    params, opt_state, metrics = update(
        state.params,
        state.opt_state,
        trajectory,
        advantage,
        model=model,
        reference_params=reference if in_loss else None,
        **update_kwargs,
    )
    state = state.replace(
        iteration=state.iteration + 1,
        params=params,
        opt_state=opt_state,
        ema_params=average(state.ema_params, params, state.iteration, ema_decay),
        skipped=jnp.where(metrics["skipped_updates"] > 0, state.skipped + 1, 0),
    )
    return state, metrics | measured | {"skipped_in_a_row": state.skipped}


def average(ema_params: Any, params: Any, iteration: jax.Array, decay: float) -> Any:
    """The moving average of policies, after one more.

    The plain mean of all, the first one included, until its memory is that of `decay`:
    a short run's average is then not just the policy that it started from.
    """
    kept = jnp.minimum(decay, (1 + iteration) / (2 + iteration))
    return optax.incremental_update(params, ema_params, 1 - kept)


def make_log(config, workdir: Path, tracker: Tracker) -> Callable[..., None]:
    """What an iteration leaves behind: events, the progress line, its crystals."""
    alarms = Alarms(config.alarms.to_dict())

    def log(iteration: int, batch: Batch, metrics: dict, seconds: dict) -> None:
        metrics = metrics | batch.rewards.metrics
        metrics |= alarms.check(iteration, metrics)
        seconds = seconds | batch.seconds
        tracker.log(iteration, {f"train/{k}": v for k, v in metrics.items()})
        tracker.log(iteration, {f"time/{k}": v for k, v in seconds.items()})
        tracker.progress(iteration, reward=metrics["reward"], KL=metrics["kl_div"])
        save_iteration(workdir, iteration, vars(batch.crystals), vars(batch.rewards))

    return log


def log_scores(
    config, tracker: Tracker, iteration: int, crystals: CrystalBatch, rewards
) -> None:
    """What a validation leaves behind: events."""
    tracker.log(iteration, {f"val/{k}": v for k, v in rewards.metrics.items()})
    if distributed.is_first():
        pictures = config.validation_pictures
        log_validation(tracker, iteration, crystals, rewards, pictures)


if __name__ == "__main__":
    run(train, program="train")

"""Program: fine-tune a crystal generator with GRPO.

    python -m chemeleon_jax.train --config=configs/rl_dng.py
    python -m chemeleon_jax.train --config=configs/rl_dng.py --workdir=runs/mine \
        --config.rl.clip_ratio=2e-3

Sample groups of crystals, score them, push the policy towards the better ones of each
group; again. The same command with the same --workdir continues a run.
"""

import contextlib
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from chemeleon_jax import checkpoints
from chemeleon_jax.alarms import Alarms, explain_skipped
from chemeleon_jax.buckets import choose_parts
from chemeleon_jax.config import active_components, check_rl, run
from chemeleon_jax.data import MAX_ATOMS
from chemeleon_jax.diffusion import make_schedule
from chemeleon_jax.errors import UserError
from chemeleon_jax.interruption import SaveOnSignal
from chemeleon_jax.models.generator import (
    Generator,
    combine_checkpoints,
    make_generator,
)
from chemeleon_jax.objective import make_optimizer, reference_kl, update
from chemeleon_jax.pictures import log_validation
from chemeleon_jax.prompts import make_prompts
from chemeleon_jax.rewards import Reward, RewardOutput, compute_rewards
from chemeleon_jax.rewards.loading import load_reward
from chemeleon_jax.rollout import crystal_keys, sample_group
from chemeleon_jax.runs import work_directory, write_run_info
from chemeleon_jax.sharding import make_mesh, replicate, shard_batch
from chemeleon_jax.states import RunCheckpoints
from chemeleon_jax.step_choice import choose_steps, stochastic_at, take_steps
from chemeleon_jax.tracking import Tracker
from chemeleon_jax.types import CrystalBatch, TrainState, Trajectory

# Of matrix products, as JAX names it; sums are float32 in each. The default is what is
# fast on the device: float32 on a CPU, TF32 on a GPU.
PRECISIONS = {"default": None, "float32": "float32", "bfloat16": "BF16_BF16_F32"}
KL_EVERY = 12  # steps of a trajectory per one at which the KL to the original is taken


class Batch(NamedTuple):
    """Crystals that were sampled and scored."""

    crystals: CrystalBatch  # on the host
    trajectory: Trajectory  # on the mesh
    rewards: RewardOutput  # on the host
    seconds: dict[str, float]


def train(config, workdir: str) -> None:
    """Run, or continue, one RL fine-tuning; see the module's docstring."""
    mesh = make_mesh()
    check_rl(config, mesh.size)
    start_model = combine_checkpoints(
        checkpoints.load(config.ldm_ckpt_path),
        checkpoints.load(config.vae_ckpt_path),
    )
    model, policy = make_generator(start_model, MAX_ATOMS)
    draw_prompts = make_prompts(model, config.data.dataset)
    optimizer = make_optimizer(**config.optimizer)
    state, reference, model = replicate(
        (init_state(policy, optimizer), jax.tree.map(jnp.array, policy), model), mesh
    )
    with contextlib.ExitStack() as stack:
        # ---------------------------------------------------- what is held till the end
        folder = stack.enter_context(work_directory(workdir))
        write_run_info(folder, config.to_dict(), start_model.config, start_model)
        saved = stack.enter_context(RunCheckpoints(folder))
        state = saved.restore_latest(state) or state
        start = int(state.iteration)
        interruption = stack.enter_context(SaveOnSignal(saved.save))
        reward = stack.enter_context(contextlib.closing(load_reward(config, model)))
        tracker = stack.enter_context(
            Tracker(folder, config.num_iterations, start=start)
        )
        alarms = Alarms(config.alarms.to_dict())

        # ------------------------------------------------------------ what is compiled
        schedule = make_schedule(
            config.sampling.sampler, config.sampling.sampling_steps
        )
        sampling = {
            "model": model,
            "schedule": schedule,
            "eta": config.sampling.eta,
            "cfg_scale": guidance(config.sampling.cfg_scale, model),
        }
        rollout = make_rollout(config, sampling, mesh)
        sample_and_score = make_sample_and_score(config, draw_prompts, reward, rollout)
        validate = make_validate(config, draw_prompts, reward, rollout)
        improve = make_improve(config, optimizer, reference, sampling, mesh)

        # -------------------------------------------------------------------- the loop
        seed = jax.random.key(config.seed)
        for iteration in range(start, config.num_iterations):
            key = jax.random.fold_in(seed, iteration)
            places = choose_steps(
                jax.random.fold_in(key, 2),
                iteration,
                schedule.num_recorded,
                num_train_steps=config.rl.num_train_steps,
                window=config.rl.window,
                window_iterations=config.rl.window_iterations,
            )
            batch = sample_and_score(
                state.params, key, window=places if config.rl.window else None
            )
            reward.raise_faults(workdir)
            state, metrics, seconds = improve(state, batch, places)

            # ----------------------------------------------------- log, validate, save
            metrics |= batch.rewards.metrics
            metrics |= alarms.check(iteration, metrics)
            seconds |= batch.seconds
            tracker.log(iteration, {f"train/{k}": v for k, v in metrics.items()})
            tracker.log(iteration, {f"time/{k}": v for k, v in seconds.items()})
            tracker.progress(iteration, reward=metrics["reward"], KL=metrics["kl_div"])
            save_crystals(folder, iteration, batch)
            done, score = iteration + 1, None
            last = done == config.num_iterations
            if config.validate_every and (done % config.validate_every == 0 or last):
                crystals, rewards = validate(state.params)
                score = float(rewards.metrics["reward"])
                found = {f"val/{k}": v for k, v in rewards.metrics.items()}
                tracker.log(iteration, found)
                log_validation(
                    tracker, iteration, crystals, rewards, config.validation_pictures
                )
            stuck = metrics["skipped_in_a_row"] >= config.max_skipped
            due = done % config.checkpoint_every == 0 or score is not None
            if due or last or stuck:
                tracker.sync()  # a state counts when all that led to it is on disk
                saved.save(done, state, score=score)
            if stuck:
                raise UserError(explain_skipped(iteration, metrics))
            interruption.finished(done, state)


def batch_size(config) -> int:
    """B, crystals of an iteration."""
    return config.data.batch_size * config.rl.num_group_samples


def init_state(policy: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first iteration."""
    return TrainState(
        iteration=jnp.array(0),
        params=policy,
        opt_state=optimizer.init(policy),
        ema_params=jax.tree.map(jnp.array, policy),
        skipped=jnp.array(0),
    )


def make_rollout(config, sampling: dict, mesh: Mesh) -> Callable:
    """Compiles sampling: B crystals, on the host, and their trajectory, on the mesh."""
    parts = choose_parts(
        batch_size(config), sampling["model"], config.rl.memory_budget, mesh.size
    )
    compiled = jax.jit(functools.partial(sample_group, group_size=1, parts=parts))

    def rollout(params, keys, num_atoms, condition, window=None):
        settings = sampling
        if window is not None:
            schedule = stochastic_at(sampling["schedule"], window)
            settings = sampling | {"schedule": schedule}
        with jax.set_mesh(mesh), matmul_precision(config):
            crystals, trajectory = compiled(
                params, keys, num_atoms, condition=condition, **settings
            )
        return jax.device_get(crystals), trajectory

    return rollout


def make_sample_and_score(
    config, draw_prompts: Callable, reward: Reward, rollout: Callable
) -> Callable[..., Batch]:
    """Compiles the first half of an iteration, on the devices and the host."""
    num_groups, group_size = config.data.batch_size, config.rl.num_group_samples
    score = jax.jit(
        functools.partial(
            compute_rewards,
            reward=reward,
            group_size=group_size
            if config.rl.group_reward_norm
            else batch_size(config),
            component_group_size=group_size
            if config.reward.normalize_in_group
            else None,
            with_energies="energy" in active_components(config),
        )
    )

    def sample_and_score(params, key, window=None):
        began = time.perf_counter()
        prompts = draw_prompts(jax.random.fold_in(key, 0), num_groups)
        # Groups are laid out here and go in as groups of one, so that validation,
        # where every crystal has an atom count of its own, is the same program.
        num_atoms, condition = jax.tree.map(
            lambda x: jnp.repeat(x, group_size, 0), prompts
        )
        keys = crystal_keys(jax.random.fold_in(key, 1), jnp.arange(len(num_atoms)))
        crystals, trajectory = rollout(params, keys, num_atoms, condition, window)
        sampled = time.perf_counter()
        # Rewards are host work, and small on the device: one device computes them.
        rewards = jax.device_get(score(crystals))
        seconds = {
            "sample": sampled - began,
            "reward": time.perf_counter() - sampled,
        }
        return Batch(crystals, trajectory, rewards, seconds)

    return sample_and_score


def make_validate(
    config, draw_prompts: Callable, reward: Reward, rollout: Callable
) -> Callable[[Any], tuple[CrystalBatch, RewardOutput]]:
    """Compiles validation: `validation_samples` crystals that nobody trains on.

    They always come from the same noise and are scored as one set. Their score depends
    neither on the training batch nor on how many are sampled at once.
    """
    count, size = config.validation_samples, batch_size(config)
    key = jax.random.key(config.seed + 1)
    num_atoms, condition = draw_prompts(jax.random.fold_in(key, 0), count)
    keys = crystal_keys(jax.random.fold_in(key, 1), jnp.arange(count))
    score = jax.jit(
        functools.partial(
            compute_rewards, reward=reward, group_size=count, with_energies=True
        )
    )

    def sample(params, rows):
        prompts = jax.tree.map(lambda x: x[rows], (keys, num_atoms, condition))
        return rollout(params, *prompts)[0]

    def validate(params):
        found = [
            # The last batch is filled up with crystals of the first.
            sample(params, np.arange(start, start + size) % count)
            for start in range(0, count, size)
        ]
        crystals = jax.tree.map(lambda *x: np.concatenate(x)[:count], *found)
        return crystals, jax.device_get(score(crystals))

    return validate


def make_improve(
    config,
    optimizer: optax.GradientTransformation,
    reference: Any,
    sampling: dict,
    mesh: Mesh,
) -> Callable[..., tuple[TrainState, dict, dict[str, float]]]:
    """Compiles the second half of an iteration: state, metrics on the host, seconds."""
    names = "kl_target ema_decay num_inner_batch clip_ratio kl_weight entropy_weight"
    fixed = {name: config.rl[name] for name in names.split()}
    step_size = batch_size(config) // config.rl.num_inner_batch
    fixed["grad_accum"] = config.rl.grad_accum or choose_parts(
        step_size, sampling["model"], config.rl.memory_budget, mesh.size
    )
    # The old state is not donated: a signal during the update saves it.
    compiled = jax.jit(functools.partial(improve_policy, optimizer=optimizer, **fixed))

    def improve(state, batch, places):
        began = time.perf_counter()
        with jax.set_mesh(mesh), matmul_precision(config):
            advantage = shard_batch(batch.rewards.advantage, mesh)
            state, metrics = compiled(
                state, batch.trajectory, advantage, reference, places, **sampling
            )
        metrics = jax.device_get(metrics)
        return state, metrics, {"update": time.perf_counter() - began}

    return improve


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
        ema_params=optax.incremental_update(params, state.ema_params, 1 - ema_decay),
        skipped=jnp.where(metrics["skipped_updates"] > 0, state.skipped + 1, 0),
    )
    return state, metrics | measured | {"skipped_in_a_row": state.skipped}


def matmul_precision(config) -> contextlib.AbstractContextManager:
    """Inside, rollout and update are compiled with the config's precision."""
    return jax.default_matmul_precision(PRECISIONS[config.precision])


def guidance(scale: float, model: Generator) -> float | None:
    """The guidance scale, or None where guidance would change nothing and cost half."""
    return scale if model.condition and scale != 1.0 else None


def save_crystals(workdir: Path, iteration: int, batch: Batch) -> None:
    """Keep an iteration's crystals and what they were worth, as npz."""
    folder = workdir / "crystals"
    folder.mkdir(exist_ok=True)
    scores = {f"component_{k}": v for k, v in batch.rewards.components.items()}
    names = ("total", "advantage", "valid", "unique", "novel", "e_above_hull")
    scores |= {k: v for k in names if (v := getattr(batch.rewards, k)) is not None}
    np.savez_compressed(
        folder / f"iteration_{iteration:06d}.npz", **vars(batch.crystals), **scores
    )


if __name__ == "__main__":
    run(train)

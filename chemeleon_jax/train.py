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
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp

from chemeleon_jax.cli import run
from chemeleon_jax.data.dataset import MAX_ATOMS
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.devices import distributed
from chemeleon_jax.devices.sharding import make_mesh, shard_params
from chemeleon_jax.errors import UserError
from chemeleon_jax.models.diffusion import Schedule
from chemeleon_jax.models.generator import combine_checkpoints, make_generator
from chemeleon_jax.models.loading import load_checkpoint
from chemeleon_jax.models.optimizer import make_optimizer
from chemeleon_jax.models.store import params_digest, save_start
from chemeleon_jax.report.pictures import log_validation
from chemeleon_jax.rewards import Reward, RewardOutput
from chemeleon_jax.rewards.audit import Audit
from chemeleon_jax.rewards.drift import Drift, window_iterations
from chemeleon_jax.rewards.features import embedding_root
from chemeleon_jax.rewards.loading import load_reward
from chemeleon_jax.rl.bulk import draw_prompts
from chemeleon_jax.rl.checks import check_rl
from chemeleon_jax.rl.config import alarm_limits, describe
from chemeleon_jax.rl.learner import init_state
from chemeleon_jax.rl.programs import make_programs
from chemeleon_jax.rl.prompts import asked_fractions, make_prompts
from chemeleon_jax.rl.replay import asked_arrays, gather_latents, load_replay
from chemeleon_jax.rl.scorer import Scorer
from chemeleon_jax.rl.timesteps import select_timesteps, stochastic_at
from chemeleon_jax.runs import memory
from chemeleon_jax.runs.alarms import Alarms, explain_skipped
from chemeleon_jax.runs.console import progress_numbers, say_next, say_start
from chemeleon_jax.runs.directory import work_directory, write_run_info
from chemeleon_jax.runs.interruption import SaveOnSignal
from chemeleon_jax.runs.iteration_files import save_iteration
from chemeleon_jax.runs.mirror import open_mirror
from chemeleon_jax.runs.states import RunCheckpoints
from chemeleon_jax.runs.tracking import Tracker


def train(config, workdir: str) -> None:
    """Run, or continue, one RL fine-tuning; see the module's docstring."""
    check_rl(config, jax.device_count())
    rl, mesh = config.rl, make_mesh(fsdp=config.fsdp)
    num_groups, group_size = config.data.batch_size, rl.num_group_samples
    start_model = combine_checkpoints(
        load_checkpoint(config.ldm_ckpt_path),
        load_checkpoint(config.vae_ckpt_path),
    )
    model, policy = make_generator(start_model, MAX_ATOMS)
    source = config.data.dataset
    ask_for = partial(
        make_prompts, model, source, compositions=config.data.compositions
    )
    draw = ask_for(config.data.max_atoms)
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
        mirror = open_mirror(config, folder)
        tracker = stack.enter_context(
            Tracker(folder, config.num_iterations, start=start, mirror=mirror)
        )
        alarms = Alarms(alarm_limits(config.alarms))
        audit = Audit(config, reward, mesh, workdir)
        scorer = Scorer(config, reward, model, mesh, folder, start)
        executor = stack.enter_context(background())

        # ------------------------------------------------ what is compiled, and watched
        programs = make_programs(config, model, mesh)
        sampler, grpo, place = programs.sampler, programs.grpo, programs.place
        reference = shard_params(policy, mesh)
        # Crystals that nobody trains on, always from the same noise.
        validation = draw_prompts(
            ask_for(MAX_ATOMS),
            jax.random.key(config.seed + 1),
            config.validation_samples,
        )
        # What the original model makes of what is trained on, likewise.
        looks_back = window_iterations(scorer.num_scored, rl.ema_decay)
        base = draw_prompts(
            draw, jax.random.key(config.seed + 2), looks_back * scorer.num_scored
        )
        replay = load_replay(
            folder,
            rl.replay,
            start,
            shape=(MAX_ATOMS, model.dit.latent_channels),
            condition=base.condition,
        )

        def validate(params):
            found = programs.sample(params, validation)
            asked = asked_fractions(model, validation.condition)
            return found, jax.device_get(scorer.score_validation(found, asked=asked))

        # -------------------------------------------------------------------- the loop
        about = describe(config)
        total = config.num_iterations
        say_start(about, workdir, start=start, total=total, unit="iteration")
        for iteration in range(start, total):
            key = jax.random.fold_in(jax.random.key(config.seed), iteration)
            prompts = draw_prompts(draw, key, num_groups, group_size)
            timesteps = trained_timesteps(rl, key, iteration, sampler.schedule)
            fixed = {"sampler": sampler, "reference_params": reference}
            fixed["timesteps"] = timesteps
            if replay:
                again = jax.tree.map(place, replay.draw(jax.random.fold_in(key, 3)))
                fixed["replayed"] = again, jax.random.fold_in(key, 4)
            if iteration == start:  # while the first crystals are sampled and scored
                traced = programs.trace_rollout(state.params, prompts, sampler=sampler)
                train_step = executor.submit(
                    programs.compile_step,
                    state,
                    traced.out_info[1],
                    place(jnp.zeros(programs.batch_size)),
                    config=grpo,
                    optimizer=optimizer,
                    **fixed,
                )
                drift = start_drift(
                    config, reward, programs.sample(reference, base), looks_back
                )
                drift.resume(folder, start)
                audit.start(lambda: validate(reference))
            seconds: dict[str, float] = {}
            with timed(seconds, "sample"):
                noisy = sampler
                if rl.window:  # steps outside of it draw no noise
                    schedule = stochastic_at(sampler.schedule, timesteps)
                    noisy = sampler.replace(schedule=schedule)
                actor = state.ema_params if rl.sample_average else state.params
                crystals, trajectory = programs.rollout(actor, prompts, sampler=noisy)
                sampled = jax.device_get(crystals)
            with timed(seconds, "reward"):
                asked = asked_fractions(model, prompts.condition)
                try:
                    crystals, rewards, advantage, kept = scorer(sampled, asked)
                except UserError:  # a custom reward fails: what was learnt stays
                    tracker.sync()
                    saved.save(iteration, state)
                    raise
                drift.add(crystals, rewards.valid)
                drifted, cause = drift.measure()
            with timed(seconds, "update"):
                state, metrics = train_step.result()(
                    state, trajectory, place(advantage), **fixed
                )
                metrics = jax.device_get(metrics) | rewards.metrics | drifted
            metrics |= alarms.check(iteration, metrics, {"element_growth": cause})
            log_iteration(tracker, iteration, metrics, seconds)
            if replay:
                latents = gather_latents(trajectory, grpo.num_inner_batch, mesh)
                kept |= {"latents": latents} | asked_arrays(prompts.condition)
                replay.add(vars(crystals) | vars(rewards) | kept)
            save_iteration(folder, iteration, vars(crystals), vars(rewards), **kept)

            # ----------------------------------------------------------- validate, save
            done, verdict = iteration + 1, None
            last = done == total
            if config.validate_every and (done % config.validate_every == 0 or last):
                found, rewards = validate(state.ema_params)
                pictures = config.validation_pictures
                log_scores(tracker, iteration, found, rewards, pictures)
                verdict = audit.score(iteration, found, rewards)
                tracker.log(iteration, verdict.metrics)
            stuck = metrics["skipped_in_a_row"] >= config.max_skipped
            due = done % config.checkpoint_every == 0 or verdict is not None
            if due or last or stuck:
                tracker.sync()  # a state counts when all that led to it is on disk
                saved.save(done, state, score=verdict and verdict.score)
                memory.give_back()
            if stuck:
                raise UserError(explain_skipped(iteration, metrics))
            if verdict and verdict.fooled:
                raise UserError(verdict.fooled)
            interruption.finished(done, state)
    say_next(f"{workdir} holds the policy. Next:", next_commands(workdir))


@contextlib.contextmanager
def background() -> Iterator[ThreadPoolExecutor]:
    """A thread for what is compiled ahead; nobody waits for it at the end."""
    executor = ThreadPoolExecutor(1)
    try:
        yield executor
    finally:
        executor.shutdown(wait=False)


def start_drift(config, reward: Reward, base: CrystalBatch, iterations: int) -> Drift:
    """The drift from crystals of the original model, over so many iterations."""
    context, alarms = reward.context, config.alarms
    assert context.vae is not None, "load_reward passes the policy's"
    return Drift(
        base,
        context.dataset.crystals,
        embedding_root(*context.vae),
        iterations=iterations,
        floor=alarms.element_share / alarms.element_growth,
    )


def trained_timesteps(
    rl, key: jax.Array, iteration: int, schedule: Schedule
) -> jax.Array | None:
    """The timesteps that an iteration trains on, None for all; see `config.rl`."""
    return select_timesteps(
        jax.random.fold_in(key, 2),
        iteration,
        schedule,
        num_train_steps=rl.num_train_steps,
        window=rl.window,
        window_iterations=rl.window_iterations,
    )


def next_commands(workdir: str) -> list[list[str]]:
    """What one does with a policy, a program and its arguments each."""
    out = f"{workdir}/samples"
    return [
        ["chemeleon_jax.sample", f"--checkpoint={workdir}", "--base", f"--out={out}"],
        ["chemeleon_jax.evaluate", out],
        ["chemeleon_jax.report", workdir],
    ]


def log_iteration(
    tracker: Tracker, iteration: int, metrics: dict, seconds: dict[str, float]
) -> None:
    """What an iteration leaves behind: events, and the progress line."""
    tracker.log(iteration, {f"train/{k}": v for k, v in metrics.items()})
    tracker.log(iteration, {f"time/{k}": v for k, v in seconds.items()})
    tracker.progress(iteration, **progress_numbers(metrics))


@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Notes how long what is done inside takes."""
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began


def log_scores(
    tracker: Tracker,
    iteration: int,
    crystals: CrystalBatch,
    rewards: RewardOutput,
    pictures: int,
) -> None:
    """What a validation leaves behind: events, and pictures of some crystals."""
    tracker.log(iteration, {f"val/{k}": v for k, v in rewards.metrics.items()})
    if distributed.is_first():
        log_validation(tracker, iteration, crystals, rewards, pictures)


if __name__ == "__main__":
    run(train, program="train")

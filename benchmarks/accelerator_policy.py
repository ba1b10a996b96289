"""Rollout and update on an accelerator, as `train` compiles them."""

import dataclasses
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator import Session, Setting
from benchmarks.measure import busy, measure
from benchmarks.policy import (
    MAX_ATOMS,
    MEMORY_BUDGET,
    random_models,
    typical_atom_counts,
    useful_operations,
)
from chemeleon_jax.data.types import TrainState
from chemeleon_jax.devices.compilation import on_mesh
from chemeleon_jax.devices.sharding import make_mesh, replicate, shard_params
from chemeleon_jax.models.buckets import choose_microbatches
from chemeleon_jax.models.optimizer import make_optimizer
from chemeleon_jax.rl.bulk import (
    Prompts,
    compile_sampling,
    fitting_batch,
    group_prompts,
    jit_rollout,
    sample_in_bulk,
    shard_as_trajectory,
)
from chemeleon_jax.rl.config import GRPOConfig
from chemeleon_jax.rl.learner import KL_EVERY, compile_train_step, init_state
from chemeleon_jax.rl.sampler import Sampler, make_sampler

MINIBATCHES = 2
COMPILERS = max((os.cpu_count() or 1) // 2, 1)  # programs compiled at once


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to run an iteration's rollout and update."""

    groups: int
    precision: str = "default"
    microbatches: int = 0  # of the rollout, and of each minibatch; 0: by memory
    objective: str = "grpo"

    def name(self, setting: Setting) -> str:
        """As the table says it."""
        said = f"{self.groups * setting.group_size} crystals, {self.precision}"
        if self.microbatches:
            said += f", {self.microbatches} microbatches"
        return said if self.objective == "grpo" else f"{said}, {self.objective}"


class Models(NamedTuple):
    """What all cases share, on the mesh."""

    mesh: Any
    sampler: Sampler
    state: TrainState
    optimizer: Any


class Programs(NamedTuple):
    """A case, compiled."""

    rollout: Any
    train_step: Any
    prompts: Prompts
    counts: np.ndarray  # [B] atoms of each crystal
    seconds: tuple[float, float]  # that each took to compile, tracing included


@cache
def make_models(setting: Setting) -> Models:
    """Random weights, drawn once."""
    mesh, optimizer = make_mesh(1), make_optimizer(1e-5)
    model, policy = random_models(setting.dit, setting.vae, MAX_ATOMS)
    sampler = make_sampler(replicate(model, mesh), sampling_steps=setting.steps)
    state = shard_params(init_state(policy, optimizer), mesh)
    return Models(mesh, sampler, state, optimizer)


def compile_case(setting: Setting, case: Case) -> Programs:
    """The rollout and the train step of `train`, compiled."""
    mesh, sampler, state, optimizer = make_models(setting)
    groups = typical_atom_counts(case.groups)
    counts = np.repeat(groups, setting.group_size)
    model = sampler.model

    def microbatches(crystals: int) -> int:
        budgeted = choose_microbatches(crystals, model, MEMORY_BUDGET)
        return case.microbatches or budgeted

    config = GRPOConfig(
        num_inner_batch=MINIBATCHES,
        grad_accum=microbatches(len(counts) // MINIBATCHES),
        objective=case.objective,
    )
    key = jax.random.key(0)
    prompts = group_prompts(key, jnp.asarray(groups), None, setting.group_size)
    record = case.objective == "grpo"
    jitted = jit_rollout(mesh, MINIBATCHES, microbatches(len(counts)), record=record)
    began = time.perf_counter()
    trace = on_mesh(jitted.trace, mesh, case.precision)
    traced = trace(state.params, prompts, sampler=sampler)
    rollout = on_mesh(lambda: traced.lower().compile(), mesh, case.precision)()
    between = time.perf_counter()
    train_step = on_mesh(compile_train_step, mesh, case.precision)(
        state,
        traced.out_info[1],
        shard_as_trajectory(np.zeros(len(counts), np.float32), MINIBATCHES, mesh),
        config=config,
        optimizer=optimizer,
        sampler=sampler,
        reference_params=state.params,
        timesteps=None,
    )
    seconds = between - began, time.perf_counter() - between
    return Programs(rollout, train_step, prompts, counts, seconds)


def held(compiled: Any) -> float | str:
    """GB that a program holds on the device, by XLA's count."""
    memory = compiled.memory_analysis()
    if memory is None:
        return "-"
    kinds = ("argument", "output", "temp")
    total = sum(getattr(memory, f"{kind}_size_in_bytes") for kind in kinds)
    return (total - memory.alias_size_in_bytes) / 1e9


def run_case(
    session: Session, setting: Setting, case: Case, programs: Programs, section: str
) -> dict[str, Any]:
    """Times both, and adds their rows; returns the update's metrics."""
    mesh, sampler, state, _ = make_models(setting)
    name, batch = case.name(setting), len(programs.counts)
    forward = float(useful_operations(setting.dit, programs.counts))
    rate = session.rates.get(case.precision, float("nan"))

    def add(what: str, seconds: float, operations: float, compiled, compile_s: float):
        session.add(
            section,
            f"{what}: {name}",
            **{
                "s": seconds,
                "crystals/s": batch / seconds,
                "TFLOP/s": operations / seconds / 1e12,
                "of matmul": operations / seconds / rate,
                "compile s": compile_s,
                "GB": held(compiled),
            },
        )

    rollout = partial(programs.rollout, state.params, programs.prompts, sampler=sampler)
    seconds = busy(measure(rollout, repeats=setting.repeats))
    steps = setting.steps
    add("rollout", seconds, forward * steps, programs.rollout, programs.seconds[0])
    _, trajectory = rollout()
    advantage = np.random.default_rng(1).normal(size=batch).astype(np.float32)
    update = partial(
        programs.train_step,
        state,
        trajectory,
        shard_as_trajectory(advantage, MINIBATCHES, mesh),
        sampler=sampler,
        reference_params=state.params,
        timesteps=None,
    )
    seconds = busy(measure(update, repeats=setting.repeats))
    config = GRPOConfig(objective=case.objective)
    learnt = steps - 1 if case.objective == "grpo" else config.timesteps_per_crystal
    # A gradient is three forward passes; the KL asks two policies at a few steps.
    passes = 3 * learnt + 2 * max(steps // KL_EVERY, 1)
    add("update", seconds, forward * passes, programs.train_step, programs.seconds[1])
    return jax.device_get(update()[1])


def compile_all(
    session: Session, setting: Setting, cases: list[Case], seconds: float
) -> dict[Case, Future]:
    """Several cases at once, most important first; what takes too long is left."""
    make_models(setting)  # here, once
    pool = ThreadPoolExecutor(COMPILERS)
    futures = {case: pool.submit(compile_case, setting, case) for case in cases}
    end = time.monotonic() + min(seconds, session.left)
    while time.monotonic() < end and not all(f.done() for f in futures.values()):
        time.sleep(0.2)
    pool.shutdown(wait=False, cancel_futures=True)
    return futures


def run_all(
    session: Session, setting: Setting, cases: list[Case], seconds: float, section: str
) -> None:
    """Compiles cases together, then times one after the other."""
    for case, future in compile_all(session, setting, cases, seconds).items():
        name = case.name(setting)
        if not future.done() or future.cancelled():
            session.add(section, name, note="skipped: not compiled in time")
            continue

        def run(case=case, future=future):
            run_case(session, setting, case, future.result(), section)

        session.attempt(section, name, 5.0, run)


def policy(session: Session, setting: Setting) -> None:
    """The paper's setting: the first update's ratio, precisions, microbatches."""
    case = Case(setting.groups)
    metrics = run_case(session, setting, case, compile_case(setting, case), "policy")
    first = {k: float(metrics[k]) for k in ("ratio_first", "ratio_min", "ratio_max")}
    note = ", ".join(f"{name} {value:.7f}" for name, value in first.items())
    session.add("policy", "ratio: of the first step (must be 1), of both", note=note)
    cases = [Case(setting.groups, name) for name in setting.precisions]
    cases += [
        Case(setting.groups, name, count)
        for count in setting.microbatches
        for name in ("default", "bfloat16")
    ]
    run_all(session, setting, cases, min(session.left / 2, 150.0), "policy")


def sizes(session: Session, setting: Setting) -> None:
    """Other numbers of crystals."""
    cases = [Case(count // setting.group_size) for count in setting.sizes]
    run_all(session, setting, cases, min(session.left * 0.6, 100.0), "sizes")


def objectives(session: Session, setting: Setting) -> None:
    """The objectives beside GRPO, of the paper's crystals."""
    cases = [Case(setting.groups, objective=name) for name in setting.objectives]
    run_all(session, setting, cases, min(session.left * 0.6, 60.0), "objectives")


def bulk(session: Session, setting: Setting) -> None:
    """What `sample` does, without its files."""
    mesh, sampler, state, _ = make_models(setting)
    counts = typical_atom_counts(setting.samples)
    prompts = group_prompts(jax.random.key(0), jnp.asarray(counts), None)
    batch = min(fitting_batch(sampler.model, False, mesh.size), setting.samples)
    began = time.perf_counter()
    compiled = compile_sampling(sampler, mesh)
    jax.block_until_ready(compiled(state.params, prompts.at(np.arange(batch))))
    compile_s = time.perf_counter() - began
    began = time.perf_counter()
    sample_in_bulk(state.params, prompts, sample=compiled, batch_size=batch)
    seconds = time.perf_counter() - began
    operations = float(useful_operations(setting.dit, counts)) * setting.steps
    session.add(
        "sample",
        f"{setting.samples} crystals, {batch} at once",
        **{
            "s": seconds,
            "crystals/s": setting.samples / seconds,
            "TFLOP/s": operations / seconds / 1e12,
            "of matmul": operations
            / seconds
            / session.rates.get("default", float("nan")),
            "compile s": compile_s,
        },
    )

"""The policy update: by size against padded, noised copies against trajectories."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.measure import busy, matmul_rate, measure, print_table
from benchmarks.policy import (
    MAX_ATOMS,
    MEMORY_BUDGET,
    all_padded,
    parse_sizes,
    random_generator,
    typical_atom_counts,
    useful_operations,
)
from chemeleon_jax.data.types import NoisyLatents, Step, Trajectory
from chemeleon_jax.models.buckets import choose_microbatches
from chemeleon_jax.models.optimizer import make_optimizer
from chemeleon_jax.rl.config import GRPOConfig
from chemeleon_jax.rl.learner import update
from chemeleon_jax.rl.sampler import make_sampler

COPIES = 3  # of each crystal, for objectives that learn from those


def random_trajectory(counts: np.ndarray, max_atoms: int, steps: int) -> Trajectory:
    """Latents and log-probabilities of no policy: the cost is the same."""
    rng = np.random.default_rng(0)
    mask = np.arange(max_atoms) < counts[:, None]
    shape = (steps, *mask.shape, 8)
    z, z_next = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    timesteps = np.arange(steps, 0, -1)
    log_prob = np.zeros(shape[:2], np.float32)
    trajectory = Trajectory(Step(timesteps, z, z_next, log_prob), mask)
    return jax.tree.map(jnp.asarray, trajectory)


def as_copies(trajectory: Trajectory, count: int) -> Trajectory:
    """As many noised copies of each crystal, at random timesteps."""
    steps = jax.tree.map(lambda x: x[:count], trajectory.steps)
    timestep = np.random.default_rng(2).integers(0, 1000, steps.log_prob.shape)
    copies = NoisyLatents(jnp.asarray(timestep), steps.z, steps.z_next)
    return trajectory.replace(steps=copies)


def make_update(
    microbatches: int, objective: str = "grpo"
) -> tuple[Callable, optax.GradientTransformation]:
    """`update` of two optimiser steps, each in `microbatches`, and its optimiser."""
    optimizer = make_optimizer(1e-5)
    config = GRPOConfig(num_inner_batch=2, grad_accum=microbatches, objective=objective)
    return partial(update, optimizer=optimizer, config=config), optimizer


def main() -> None:
    """Prints a table."""
    flags = parse_sizes(__doc__)
    model, policy = random_generator(flags.size, max(flags.atoms, MAX_ATOMS))
    groups = typical_atom_counts(flags.groups)
    if flags.atoms:
        groups[:] = flags.atoms
    counts = np.repeat(groups, flags.group_size)
    trajectory = random_trajectory(counts, model.max_atoms, flags.steps)
    advantage = jnp.asarray(np.random.default_rng(1).normal(size=len(counts)))
    operations = 3 * useful_operations(model.dit, counts) * flags.steps
    rate, rows = matmul_rate(), []

    sampler = make_sampler(model, sampling_steps=50)

    def add(name: str, microbatches: int, objective: str = "grpo"):
        call, optimizer = make_update(microbatches, objective)
        call, opt_state = jax.jit(call), optimizer.init(policy)
        learnt, others, share = trajectory, {"sampler": sampler}, 1.0
        if objective != "grpo":
            learnt, share = as_copies(trajectory, COPIES), COPIES / flags.steps
            others["old_params"] = policy
        seconds = measure(
            lambda: call(policy, opt_state, learnt, advantage, **others),
            repeats=flags.repeats,
        )
        rows.append(
            {
                "update": name,
                "microbatches": microbatches,
                "s": seconds.wall,
                "CPU s": seconds.cpu,
                "crystals/s at 49 steps": len(counts)
                / busy(seconds)
                * flags.steps
                / 49,
                "useful GFLOP/s": share * operations / busy(seconds) / 1e9,
                "share of matmul rate": share * operations / busy(seconds) / rate,
                "speed-up": busy(seconds),
            }
        )

    microbatches = choose_microbatches(len(counts) // 2, model, MEMORY_BUDGET)
    with all_padded():
        add(f"padded to {model.max_atoms}", microbatches)
    add("by size", microbatches)
    add(f"by size, awm, {COPIES} copies", microbatches, "awm")
    for row in rows[::-1]:
        row["speed-up"] = rows[0]["speed-up"] / row["speed-up"]
    print(f"{len(counts)} crystals of {sorted(groups.tolist())} atoms, ")
    print(f"DiT-{flags.size}, {flags.steps} steps, 2 optimiser steps; ")
    print(f"matrix products: {rate / 1e9:.0f} GFLOP/s\n")
    print_table(rows)


if __name__ == "__main__":
    main()

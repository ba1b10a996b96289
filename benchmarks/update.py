"""The policy update: crystals of similar size together, against all padded."""

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
from chemeleon_jax.data.types import Step, Trajectory
from chemeleon_jax.models.buckets import choose_parts
from chemeleon_jax.models.diffusion import make_schedule
from chemeleon_jax.rl.objective import make_optimizer, update


def random_trajectory(counts: np.ndarray, max_atoms: int, steps: int) -> Trajectory:
    """Latents and log-probabilities of no policy: the cost is the same."""
    rng = np.random.default_rng(0)
    mask = np.arange(max_atoms) < counts[:, None]
    shape = (steps, *mask.shape, 8)
    z, z_next = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    index = np.arange(steps, 0, -1)
    log_prob = np.zeros(shape[:2], np.float32)
    return jax.tree.map(jnp.asarray, Trajectory(Step(index, z, z_next, log_prob), mask))


def make_update(
    parts: int, steps: int
) -> tuple[Callable, optax.GradientTransformation]:
    """`update` of two optimiser steps, each in `parts`, and its optimiser.

    Of trajectories with at most `steps` DDIM steps.
    """
    optimizer = make_optimizer(1e-5)
    call = partial(
        update,
        optimizer=optimizer,
        num_inner_batch=2,
        grad_accum=parts,
        clip_ratio=1e-3,
        kl_weight=1.0,
        entropy_weight=1e-5,
        schedule=make_schedule("ddim", steps),
    )
    return call, optimizer


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

    def add(name: str, parts: int):
        call, optimizer = make_update(parts, 50)
        call, opt_state = jax.jit(call), optimizer.init(policy)
        seconds = measure(
            lambda: call(policy, opt_state, trajectory, advantage, model=model),
            repeats=flags.repeats,
        )
        rows.append(
            {
                "update": name,
                "parts": parts,
                "s": seconds.wall,
                "CPU s": seconds.cpu,
                "crystals/s at 49 steps": len(counts)
                / busy(seconds)
                * flags.steps
                / 49,
                "useful GFLOP/s": operations / busy(seconds) / 1e9,
                "share of matmul rate": operations / busy(seconds) / rate,
                "speed-up": busy(seconds),
            }
        )

    parts = choose_parts(len(counts) // 2, model, MEMORY_BUDGET)
    with all_padded():
        add(f"padded to {model.max_atoms}", parts)
    add("by size", parts)
    for row in rows[::-1]:
        row["speed-up"] = rows[0]["speed-up"] / row["speed-up"]
    print(f"{len(counts)} crystals of {sorted(groups.tolist())} atoms, ")
    print(f"DiT-{flags.size}, {flags.steps} steps, 2 optimiser steps; ")
    print(f"matrix products: {rate / 1e9:.0f} GFLOP/s\n")
    print_table(rows)


if __name__ == "__main__":
    main()

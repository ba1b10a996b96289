"""How rollout and update grow: with crystals, with their atoms, with steps.

    python -m benchmarks.growth
    python -m benchmarks.growth --size=B --atoms 5 20 64

One of the three varies, the others keep the first command's values. Times are of one
call; memory is what the compiled update takes beyond its arguments.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import busy, matmul_rate, measure, print_table
from benchmarks.policy import (
    MEMORY_BUDGET,
    all_padded,
    random_generator,
    typical_atom_counts,
    useful_operations,
)
from benchmarks.rollout import time_rollout
from benchmarks.update import make_update, random_trajectory
from chemeleon_jax.buckets import choose_parts

BATCH, STEPS = 64, 4  # of the rows that vary something else


def row(size: str, counts: np.ndarray, steps: int, rate: float) -> dict:
    """Times of one rollout and one update of crystals of `counts` atoms."""
    model, policy = random_generator(size, int(counts.max()))
    work = useful_operations(model.dit, counts) * steps
    parts = choose_parts(len(counts), model, MEMORY_BUDGET)
    rollout = time_rollout(model, policy, counts, 1, steps, parts)

    parts = choose_parts(len(counts) // 2, model, MEMORY_BUDGET)
    update, optimizer = make_update(parts, steps + 1)
    inputs = (
        policy,
        optimizer.init(policy),
        random_trajectory(counts, model.max_atoms, steps),
        jnp.asarray(np.random.default_rng(1).normal(size=len(counts))),
    )
    compiled = jax.jit(update).lower(*inputs, model=model).compile()
    seconds = measure(lambda: compiled(*inputs, model=model), repeats=1)
    memory = compiled.memory_analysis()
    return {
        "crystals": len(counts),
        "atoms": f"{counts.mean():.1f}",
        "steps": steps,
        "rollout s": busy(rollout),
        "of matmul rate": work / busy(rollout) / rate,
        "update s": busy(seconds),
        "of the rate": 3 * work / busy(seconds) / rate,
        "memory, MB": (memory.temp_size_in_bytes if memory else np.nan) / 1e6,
    }


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--size", default="S", help="of the DiT")
    add("--crystals", type=int, nargs="*", default=[16, 64, 256, 1024])
    add("--atoms", type=int, nargs="*", default=[5, 10, 20, 40, 64])
    add("--steps", type=int, nargs="*", default=[10, 30, 100])
    flags = parser.parse_args()
    rate, rows = matmul_rate(), []
    for batch in flags.crystals:
        rows.append(row(flags.size, typical_atom_counts(batch), STEPS, rate))
    with all_padded():  # to the one size there is
        for atoms in flags.atoms:
            rows.append(row(flags.size, np.full(BATCH, atoms), STEPS, rate))
        for steps in flags.steps:
            rows.append(row(flags.size, np.full(16, 8), steps, rate))
    print(f"DiT-{flags.size}; matrix products: {rate / 1e9:.0f} GFLOP/s\n")
    print_table(rows)


if __name__ == "__main__":
    main()

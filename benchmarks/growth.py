"""How rollout and update grow: with crystals, with their atoms, with steps.

    python -m benchmarks.growth
    python -m benchmarks.growth --size=B --atoms 5 20 64

One of the three varies, the others keep the first command's values. Times are of one
call; memory is what the compiled update takes beyond its arguments.
"""

import argparse
import sys
from functools import partial

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
from chemeleon_jax.models.buckets import choose_microbatches
from chemeleon_jax.rl.sampler import make_sampler

BATCH, STEPS = 64, 5  # of the rows that vary something else


def measure_one(size: str, counts: np.ndarray, steps: int, rate: float) -> dict:
    """Times of one rollout and one update, which has a step less to learn from."""
    model, policy = random_generator(size, int(counts.max()))
    work = useful_operations(model.dit, counts)
    sampler = make_sampler(model, sampling_steps=steps)
    microbatches = choose_microbatches(len(counts), model, MEMORY_BUDGET)
    rollout = time_rollout(sampler, policy, counts, 1, microbatches)

    microbatches = choose_microbatches(len(counts) // 2, model, MEMORY_BUDGET)
    update, optimizer = make_update(microbatches)
    inputs = (
        policy,
        optimizer.init(policy),
        random_trajectory(counts, model.max_atoms, steps - 1),
        jnp.asarray(np.random.default_rng(1).normal(size=len(counts))),
    )
    compiled = jax.jit(update).lower(*inputs, sampler=sampler).compile()
    seconds = measure(lambda: compiled(*inputs, sampler=sampler), repeats=1)
    memory = compiled.memory_analysis()
    row = {
        "crystals": len(counts),
        "atoms": f"{counts.mean():.1f}",
        "steps": steps,
        "rollout s": busy(rollout),
        "of matmul rate": steps * work / busy(rollout) / rate,
        "update s": busy(seconds),
        "of the rate": 3 * (steps - 1) * work / busy(seconds) / rate,
        "memory, MB": (memory.temp_size_in_bytes if memory else np.nan) / 1e6,
    }
    print(row, file=sys.stderr, flush=True)  # the whole takes minutes
    return row


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--size", default="S", help="of the DiT")
    add("--crystals", type=int, nargs="*", default=[16, 64, 256, 1024])
    add("--atoms", type=int, nargs="*", default=[5, 10, 20, 40, 64])
    add("--steps", type=int, nargs="*", default=[10, 30, 100])
    flags = parser.parse_args()
    rate = matmul_rate()
    one = partial(measure_one, flags.size, rate=rate)
    rows = [one(typical_atom_counts(batch), STEPS) for batch in flags.crystals]
    with all_padded():  # to the one size there is
        rows += [one(np.full(BATCH, atoms), STEPS) for atoms in flags.atoms]
        rows += [one(np.full(16, 8), steps) for steps in flags.steps]
    print(f"DiT-{flags.size}; matrix products: {rate / 1e9:.0f} GFLOP/s\n")
    print_table(rows)


if __name__ == "__main__":
    main()

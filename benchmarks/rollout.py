"""Sampling: crystals of similar size together, against all padded to the longest."""

from functools import partial

import jax
import jax.numpy as jnp

from benchmarks.measure import Seconds, busy, matmul_rate, measure, print_table
from benchmarks.policy import (
    MAX_ATOMS,
    MEMORY_BUDGET,
    all_padded,
    parse_sizes,
    random_generator,
    typical_atom_counts,
    useful_operations,
)
from chemeleon_jax import sample_group
from chemeleon_jax.models.buckets import choose_microbatches
from chemeleon_jax.rl.sampler import make_sampler


def time_rollout(
    sampler, policy, counts, group_size: int, microbatches: int, repeats: int = 2
) -> Seconds:
    """Of one call of `sample_group`, compiled, for groups of `counts` atoms."""
    rollout = jax.jit(
        partial(sample_group, group_size=group_size, num_microbatches=microbatches)
    )
    call = partial(rollout, sampler=sampler)
    inputs = policy, jax.random.key(0), jnp.asarray(counts)
    return measure(call, *inputs, repeats=repeats)


def main() -> None:
    """Prints a table."""
    flags = parse_sizes(__doc__)
    model, policy = random_generator(flags.size, max(flags.atoms, MAX_ATOMS))
    counts = typical_atom_counts(flags.groups)
    if flags.atoms:
        counts[:] = flags.atoms
    batch = flags.groups * flags.group_size
    operations = useful_operations(model.dit, counts) * flags.group_size * flags.steps
    rate, rows = matmul_rate(), []

    sampler = make_sampler(model, sampling_steps=flags.steps)

    def add(name: str, microbatches: int):
        seconds = time_rollout(
            sampler, policy, counts, flags.group_size, microbatches, flags.repeats
        )
        rows.append(
            {
                "rollout": name,
                "microbatches": microbatches,
                "s": seconds.wall,
                "CPU s": seconds.cpu,
                "crystals/s at 50 steps": batch / busy(seconds) * flags.steps / 50,
                "useful GFLOP/s": operations / busy(seconds) / 1e9,
                "share of matmul rate": operations / busy(seconds) / rate,
                "speed-up": busy(seconds),
            }
        )

    with all_padded():
        add(f"padded to {model.max_atoms}", 1)
    add("by size", choose_microbatches(batch, model, MEMORY_BUDGET))
    for row in rows[::-1]:
        row["speed-up"] = rows[0]["speed-up"] / row["speed-up"]
    print(f"{batch} crystals of {sorted(counts.tolist())} atoms, DiT-{flags.size}, ")
    print(f"{flags.steps} steps; matrix products: {rate / 1e9:.0f} GFLOP/s\n")
    print_table(rows)


if __name__ == "__main__":
    main()

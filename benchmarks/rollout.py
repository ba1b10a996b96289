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
from chemeleon_jax.models.buckets import choose_parts
from chemeleon_jax.models.diffusion import make_schedule


def time_rollout(
    model, policy, counts, group_size: int, steps: int, parts: int, repeats: int = 2
) -> Seconds:
    """Of one call of `sample_group`, compiled, for groups of `counts` atoms."""
    rollout = partial(
        sample_group,
        schedule=make_schedule("ddim", steps),
        group_size=group_size,
        parts=parts,
    )
    key = jax.random.key(0)
    call = jax.jit(lambda policy, model, n: rollout(policy, key, n, model=model))
    return measure(call, policy, model, jnp.asarray(counts), repeats=repeats)


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

    def add(name: str, parts: int):
        seconds = time_rollout(
            model, policy, counts, flags.group_size, flags.steps, parts, flags.repeats
        )
        rows.append(
            {
                "rollout": name,
                "parts": parts,
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
    add("by size", choose_parts(batch, model, MEMORY_BUDGET))
    for row in rows[::-1]:
        row["speed-up"] = rows[0]["speed-up"] / row["speed-up"]
    print(f"{batch} crystals of {sorted(counts.tolist())} atoms, DiT-{flags.size}, ")
    print(f"{flags.steps} steps; matrix products: {rate / 1e9:.0f} GFLOP/s\n")
    print_table(rows)


if __name__ == "__main__":
    main()

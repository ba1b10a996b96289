"""How often crystals have the space group that they are asked to have.

    python -m tools.measure_symmetry mini:ldm

Asks for each of the groups that are most frequent in mp_mini, and counts the crystals,
valid ones only, that spglib finds in that very group within 0.1 Å: of those asked for
it, and of those of which nothing is asked. A group that contains the one asked for, as
where two elements turn out the same, counts against it.
"""

import argparse
from collections import Counter

import numpy as np

from chemeleon_jax import load
from chemeleon_jax.data.dataset import load_dataset
from chemeleon_jax.data.symmetry import space_group_numbers
from chemeleon_jax.interface.result import Crystals
from chemeleon_jax.workers.matching import cell_of
from chemeleon_jax.workers.pool import WorkerPool
from chemeleon_jax.workers.symmetry import space_group_number


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--num_groups", type=int, default=20)
    parser.add_argument("--num_samples", type=int, default=50, help="of each")
    parser.add_argument("--sampling_steps", type=int, default=50)
    args = parser.parse_args()
    model, steps = load(args.model), {"sampling_steps": args.sampling_steps}
    found = Counter(space_group_numbers(load_dataset("mp_mini")).tolist())
    frequent = [int(number) for number, _ in found.most_common(args.num_groups)]
    free = model.sample(args.num_groups * args.num_samples, **steps)
    unasked = Counter(space_groups(free))
    print("group | asked: valid, % | and of the group, % | unasked, %")
    rows = []
    for number in frequent:
        made = model.sample(args.num_samples, space_group=number, **steps)
        valid = made.table["valid"].mean()
        right = space_groups(made).count(number) / args.num_samples
        rows.append((valid, right, unasked[number] / len(free.structures)))
        print(number, *(f"{100 * share:.1f}" for share in rows[-1]), flush=True)
    print("mean", *(f"{100 * share:.1f}" for share in np.mean(rows, 0)))
    print(f"unasked: {100 * free.table['valid'].mean():.1f} % valid")


def space_groups(crystals: Crystals) -> list[int]:
    """Those of the valid ones, by number."""
    valid = [
        cell_of(structure)
        for structure, row in zip(
            crystals.structures, crystals.table.itertuples(), strict=True
        )
        if row.valid
    ]
    with WorkerPool() as pool:
        return [outcome.value for outcome in pool.map(space_group_number, valid)]


if __name__ == "__main__":
    main()

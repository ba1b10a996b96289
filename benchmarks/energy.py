"""CHGNet energies: packed by size, against one crystal per call."""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import busy, measure, print_table
from chemeleon_jax.data.crystals import take
from chemeleon_jax.data.dataset import load_dataset
from chemeleon_jax.potentials.chgnet import energies, load_params
from chemeleon_jax.potentials.graph import Capacity

SINGLE = Capacity(crystals=2, atoms=24, edges=2048, bonds=384, angles=4096)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=320)
    parser.add_argument("--singly", type=int, default=40, help="crystals, one by one")
    parser.add_argument("--repeats", type=int, default=2)
    flags = parser.parse_args()
    known = load_dataset("mp_mini").crystals
    picked = np.random.default_rng(0).choice(len(known.mask), flags.batch)
    crystals = jax.tree.map(jnp.asarray, take(known, picked))
    evaluate = jax.jit(partial(energies, load_params()))
    # A graph no larger than the largest of the crystals needs.
    alone = jax.jit(partial(energies, load_params(), capacity=SINGLE))
    together = measure(evaluate, crystals, repeats=flags.repeats)
    single = [
        jax.tree.map(lambda x, i=i: x[i : i + 1], crystals) for i in range(flags.singly)
    ]
    apart = measure(lambda: [alone(c) for c in single], repeats=flags.repeats)
    rows = [
        {"energies": name, "s": t.wall, "CPU s": t.cpu, "crystals/CPU s": n / busy(t)}
        for name, n, t in (
            ("packed", flags.batch, together),
            ("one by one", flags.singly, apart),
        )
    ]
    fitted = sum(int(alone(c)[1][0]) == 0 for c in single)
    print(f"{fitted} of {flags.singly} fit into the graph for one crystal;")
    print(f"{flags.batch} crystals of mp_mini, {flags.singly} one by one\n")
    print_table(rows)


if __name__ == "__main__":
    main()

"""Limits in seconds and megabytes, which tests on a busy machine could not hold.

    python -m benchmarks.limits

Ends with status 1 if one is broken. Memory of a long run: `benchmarks.soak`.
"""

import os
import sys

from benchmarks.measure import measure
from benchmarks.soak import resident
from chemeleon_jax.data.batches import BucketedBatches
from chemeleon_jax.data.dataset import load_dataset
from chemeleon_jax.runs import memory


def seconds_of_a_batch() -> float:
    """Of 2,048 padded atoms of mp_mini, put together on the host."""
    batches = BucketedBatches(load_dataset("mp_mini"), 2048)

    def twenty():
        for step in range(20):
            batches.at(step)

    return measure(twenty).wall / 20


def freed_memory() -> float:
    """MB given back of 190 that were freed between blocks in use."""
    blocks = [bytes(100_000) for _ in range(2000)]
    used = blocks[::20]
    del blocks
    before = resident(os.getpid())
    memory.give_back()
    assert len(used) == 100
    return before - resident(os.getpid())


def main() -> None:
    """Prints each against its limit."""
    batch, freed = seconds_of_a_batch(), freed_memory()
    print(f"a batch takes {1000 * batch:.2f} ms; limit 50")
    print(f"{freed:.0f} MB of freed memory given back; at least 100 with glibc")
    sys.exit(batch > 0.05 or freed < 100)


if __name__ == "__main__":
    main()

"""A whole iteration of an RL config: sampling, rewards, update.

    python -m benchmarks.iteration
    python -m benchmarks.iteration --config=configs/rl_dng.py --iterations=4

Runs the training program in a scratch directory, by size and with every crystal padded,
and prints the seconds that it logs. The first iteration, which compiles, is left out.
"""

import argparse
import contextlib
import tempfile

import numpy as np

from benchmarks.measure import print_table
from benchmarks.policy import all_padded
from chemeleon_jax.cli import parse
from chemeleon_jax.runs.tracking import read_scalars
from chemeleon_jax.train import train


def seconds_per_iteration(config) -> dict[str, float]:
    """The least of each stage, after the first iteration."""
    with tempfile.TemporaryDirectory() as workdir:
        train(config, workdir)
        curves = read_scalars(workdir)
    return {
        stage: float(np.min(curves[f"time/{stage}"][1][1:]))
        for stage in ("sample", "reward", "update")
    }


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/rl_dng.py")
    parser.add_argument("--iterations", type=int, default=4)
    flags, overrides = parser.parse_known_args()
    rows = []
    for name, how in (
        ("padded", all_padded()),
        ("by size", contextlib.nullcontext()),
    ):
        config, _ = parse(["iteration", f"--config={flags.config}", *overrides])
        config.num_iterations = flags.iterations
        config.validate_every = 0
        config.checkpoint_every = flags.iterations
        with how:
            seconds = seconds_per_iteration(config)
        total = sum(seconds.values())
        crystals = config.data.batch_size * config.rl.num_group_samples
        row = {f"{stage} s": value for stage, value in seconds.items()}
        row |= {"all s": total, "crystals/s": crystals / total}
        rows.append({"iteration": name} | row)
    print_table(rows)


if __name__ == "__main__":
    main()

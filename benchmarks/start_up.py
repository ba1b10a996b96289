"""What rewards compute of the references when a run starts: at first, and again."""

import argparse
import os
import tempfile
import time
from typing import cast

import numpy as np

from benchmarks.measure import print_table
from benchmarks.rewards import enlarged
from chemeleon_jax.data.dataset import Dataset, load_dataset
from chemeleon_jax.models.loading import load_checkpoint
from chemeleon_jax.models.vae import make_vae
from chemeleon_jax.rewards.analysis import Context
from chemeleon_jax.rewards.components import COMPONENTS
from chemeleon_jax.rewards.matches import index_references
from chemeleon_jax.workers.pool import Pool


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--references", type=int, nargs="+", default=[13_740])
    flags = parser.parse_args()
    mini, rows = load_dataset("mp_mini").crystals, []
    checkpoint = load_checkpoint("mini:vae")
    vae = make_vae(checkpoint.config["vae"]), checkpoint.params["vae"]
    unused = cast(Pool, None)  # neither of the components compares crystals
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        for count in flags.references:
            names = np.arange(count).astype(str)
            dataset = Dataset(enlarged(mini, count), {}, names, np.zeros(count))
            row = {"references": count}
            for when in ("first", "again"):
                began = time.process_time()
                references = index_references(dataset.crystals)
                row[f"{when}: index"] = time.process_time() - began
                context = Context(dataset, references, unused, vae=vae)
                for name in ("structure_diversity", "composition_diversity"):
                    began = time.process_time()
                    COMPONENTS[name](context)
                    row[f"{when}: {name}"] = time.process_time() - began
            rows.append(row)
    print("CPU seconds; the first row's include compilation\n")
    print_table(rows)


if __name__ == "__main__":
    main()

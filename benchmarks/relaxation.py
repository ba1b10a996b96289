"""Relaxation of sampled crystals: energies asked for, seconds, and where they end.

python -m chemeleon_jax.sample --checkpoint=mini:ldm --num_samples=300 --out=DIR
python -m benchmarks.relaxation DIR --potentials=chgnet,sevennet-l3i5
"""

import argparse
import time
from pathlib import Path

import numpy as np

from benchmarks.measure import print_table
from chemeleon_jax.data.crystals import VALIDITY_REASONS, from_structures, validity
from chemeleon_jax.data.readers.files import read_crystals
from chemeleon_jax.evaluation.relaxation import relax_structures
from chemeleon_jax.potentials import relax
from chemeleon_jax.potentials.loading import load_potential


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("crystals", type=Path)
    parser.add_argument("--potentials", default="chgnet")
    parser.add_argument("--number", type=int, default=300, help="crystals, at most")
    parser.add_argument("--max_steps", type=int, default=relax.MAX_STEPS)
    flags = parser.parse_args()
    structures = [i.structure for i in read_crystals(flags.crystals) if i.structure]
    width = max(len(s) for s in structures)
    reasons = validity(from_structures(structures, width))
    valid = reasons == VALIDITY_REASONS.index("valid")
    structures = [structures[i] for i in np.flatnonzero(valid)[: flags.number]]
    print(f"{len(structures)} valid crystals of {flags.crystals}; it compiles too\n")
    rows = []
    for name in flags.potentials.split(","):
        wall, cpu = time.perf_counter(), time.process_time()
        found = relax_structures(
            structures, potential=load_potential(name), max_steps=flags.max_steps
        )
        steps = np.array([r.steps for r in found])
        rows.append(
            {
                "potential": name,
                "s": time.perf_counter() - wall,
                "CPU s": time.process_time() - cpu,
                "energies per crystal": float(steps.mean()),
                "at most": int(steps.max()),
                "converged": float(np.mean([r.converged for r in found])),
                "energy before, eV/atom": np.nanmean([r.initial_energy for r in found]),
                "after": np.nanmean([r.energy for r in found]),
                "RMSD, Å": np.nanmean([r.rmsd for r in found]),
            }
        )
    print_table(rows)


if __name__ == "__main__":
    main()

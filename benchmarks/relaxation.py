"""Relaxation of sampled crystals against FIRE: energies asked for, seconds, the ends.

python -m chemeleon_jax.sample --checkpoint=mini:ldm --num_samples=300 --out=DIR
python -m benchmarks.relaxation DIR --potentials=chgnet,sevennet-l3i5

FIRE has the same energies and the same stop. It may take `--fire_steps`, twice as many
by default, and 0 leaves it out.
"""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.fire import State, relax_by_fire
from benchmarks.measure import print_table
from chemeleon_jax.data.crystals import (
    VALIDITY_REASONS,
    empty_batch,
    from_structures,
    validity,
)
from chemeleon_jax.data.readers.files import read_crystals
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.evaluation.relaxation import WIDTH
from chemeleon_jax.potentials import relax
from chemeleon_jax.potentials.loading import load_potential


class Ends(NamedTuple):
    """Of B crystals."""

    steps: np.ndarray  # [B] energies
    energy: np.ndarray  # [B] eV/atom
    converged: np.ndarray  # [B]


def relax_all(crystals: CrystalBatch, *, potential, steps: int) -> relax.Relaxed:
    """As `evaluate` relaxes."""
    return relax.relax(crystals, potential, steps)


def relax_all_by_fire(crystals: CrystalBatch, *, potential, steps: int) -> State:
    """The same by FIRE."""
    return relax_by_fire(crystals, potential.energies, steps)


def measure(run, crystals: CrystalBatch) -> tuple[Ends, float, float]:
    """Where crystals end, and the wall and CPU seconds without compilation."""
    run = jax.jit(run)
    jax.block_until_ready(run(empty_batch(*crystals.mask.shape)))
    wall, cpu = time.perf_counter(), time.process_time()
    found = jax.device_get(run(crystals))
    ends = Ends(found.steps, found.energy, found.converged)
    return ends, time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Prints a table and a comparison for each potential."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("crystals", type=Path)
    parser.add_argument("--potentials", default="chgnet")
    parser.add_argument("--number", type=int, default=300, help="crystals, at most")
    parser.add_argument("--max_steps", type=int, default=relax.MAX_STEPS)
    parser.add_argument("--fire_steps", type=int, help="energies of FIRE, at most")
    flags = parser.parse_args()
    structures = [i.structure for i in read_crystals(flags.crystals) if i.structure]
    width = max(len(s) for s in structures)
    reasons = validity(from_structures(structures, width))
    valid = reasons == VALIDITY_REASONS.index("valid")
    structures = [structures[i] for i in np.flatnonzero(valid)[: flags.number]]
    crystals = from_structures(structures, -(-width // WIDTH) * WIDTH)
    print(f"{len(structures)} valid crystals of {flags.crystals}\n")
    methods = {"relax": (relax_all, flags.max_steps)}
    if flags.fire_steps != 0:
        most = flags.fire_steps or 2 * flags.max_steps
        methods["FIRE"] = relax_all_by_fire, most
    for name in flags.potentials.split(","):
        potential = load_potential(name)
        rows, found = [], {}
        for method, (run, steps) in methods.items():
            run = partial(run, potential=potential, steps=steps)
            ends, wall, cpu = measure(run, crystals)
            found[method] = ends
            rows.append(
                {
                    "potential": name,
                    "method": method,
                    "s": wall,
                    "CPU s": cpu,
                    "energies per crystal": float(ends.steps.mean()),
                    "median": float(np.median(ends.steps)),
                    "at most": int(ends.steps.max()),
                    "converged": float(ends.converged.mean()),
                    "energy, eV/atom": float(np.nanmean(ends.energy)),
                }
            )
        print_table(rows)
        if len(found) == 2:
            compare(found["relax"], found["FIRE"], rows)


def compare(ours: Ends, fires: Ends, rows: list[dict]) -> None:
    """Prints what FIRE took for what `relax` did."""
    energies, seconds = (
        rows[1][name] / rows[0][name] for name in ("energies per crystal", "CPU s")
    )
    both = ours.converged & fires.converged
    alike = fires.steps[both].sum() / ours.steps[both].sum()
    apart = 1000 * (ours.energy - fires.energy)[both]
    print(
        f"FIRE takes {energies:.2f} times the energies, {seconds:.2f} times the CPU "
        f"seconds, and of the {both.sum()} crystals that converge by both {alike:.2f} "
        f"times the energies. There `relax` ends {apart.mean():.1f} meV/atom above "
        f"FIRE in the mean, {np.median(apart):.1f} in the median; "
        f"{(apart < -2).mean():.0%} end more than 2 below, {(apart > 2).mean():.0%} "
        "more than 2 above.\n"
    )


if __name__ == "__main__":
    main()

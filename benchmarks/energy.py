"""Energies by the embedded potentials: packed by size, against one crystal per call.

With the `sevenn` package (and torch) installed, or a Python that has it named by
--sevenn, its calculator evaluates the same crystals, one by one.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import busy, measure, print_table
from chemeleon_jax.data.crystals import take
from chemeleon_jax.data.dataset import load_dataset
from chemeleon_jax.potentials import batches, chgnet, sevennet
from chemeleon_jax.potentials.batches import GraphPotential
from chemeleon_jax.potentials.graph import Capacity

# Graphs no larger than most of the crystals need.
SINGLE = Capacity(crystals=2, atoms=24, edges=2048, bonds=384, angles=4096)
SINGLE_BLOCKS = {"crystals": 2, "atoms": 24, "blocks": 192}

PACKAGE = """
import sys, time, warnings
warnings.simplefilter("ignore")
import numpy as np, torch
from ase import Atoms
from sevenn.calculator import SevenNetCalculator
torch.set_num_threads(2)
with np.load(sys.argv[1]) as f:
    rows = list(zip(f["types"], f["frac"], f["lattice"]))
calculator = SevenNetCalculator("7net-l3i5", device="cpu")
crystals = []
for types, frac, lattice in rows:
    n = (types > 0).sum()
    crystals.append(Atoms(types[:n], scaled_positions=frac[:n], cell=lattice, pbc=True))
def evaluate(crystal):
    crystal = crystal.copy()
    crystal.calc = calculator
    return crystal.get_potential_energy()
for crystal in crystals:  # compiles
    evaluate(crystal)
wall, cpu = time.perf_counter(), time.process_time()
for crystal in crystals:
    evaluate(crystal)
print(time.perf_counter() - wall, time.process_time() - cpu)
"""


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=320)
    parser.add_argument("--singly", type=int, default=40, help="crystals, one by one")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--sevenn", default="", help="a Python with sevenn and torch")
    flags = parser.parse_args()
    known = load_dataset("mp_mini").crystals
    picked = np.random.default_rng(0).choice(len(known.mask), flags.batch)
    crystals = jax.tree.map(jnp.asarray, take(known, picked))
    single = [
        jax.tree.map(lambda x, i=i: x[i : i + 1], crystals) for i in range(flags.singly)
    ]
    print(f"{flags.batch} crystals of mp_mini, {flags.singly} one by one\n")
    rows = []
    for name, (params, together, alone) in potentials().items():
        for how, potential, calls in (
            ("packed", together, [crystals]),
            ("one by one", alone, single),
        ):
            evaluate = jax.jit(
                lambda x, p=potential, w=params: batches.energies(p, w, x)
            )
            t = measure(
                lambda c=calls, f=evaluate: [f(x) for x in c], repeats=flags.repeats
            )
            size = sum(len(c.mask) for c in calls)
            fitted = sum(int((evaluate(c)[1] == 0).sum()) for c in calls)
            rows.append(row(f"{name}, {how}", fitted, size, t.wall, busy(t)))
    if flags.sevenn:
        wall, cpu = time_package(flags.sevenn, single)
        rows.append(row("sevenn, one by one", "-", flags.singly, wall, cpu))
    print_table(rows)


def potentials():
    """Name -> parameters, the potential in graphs of many crystals, and of one."""
    found = {
        "chgnet": (
            chgnet.load_params(),
            GraphPotential(chgnet.graph_energy, Capacity()),
            GraphPotential(chgnet.graph_energy, SINGLE),
        )
    }
    for name in sevennet.SHA256:
        params, packed = sevennet.load_model(name)
        alone = packed.capacity._replace(**SINGLE_BLOCKS)
        found[name] = params, packed, packed._replace(capacity=alone)
    return found


def row(name: str, fitted, size: int, wall: float, cpu: float) -> dict:
    """A line of the table."""
    return {
        "energies": name,
        "with energy": fitted,
        "s": wall,
        "CPU s": cpu,
        "crystals/s": size / wall,
        "crystals/CPU s": size / cpu,
    }


def time_package(python: str, single) -> tuple[float, float]:
    """Wall and CPU seconds of the package's calculator, forces included."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "crystals.npz"
        np.savez(
            path,
            types=np.concatenate([c.atom_types for c in single]),
            frac=np.concatenate([c.frac_coords for c in single]),
            lattice=np.concatenate([c.lattice for c in single]),
        )
        found = subprocess.run(
            [python, "-c", PACKAGE, str(path)],
            capture_output=True,
            text=True,
            check=True,
        )
    wall, cpu = map(float, found.stdout.split())
    return wall, cpu


if __name__ == "__main__":
    main()

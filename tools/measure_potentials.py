"""How good the potentials are: a table, against DFT labels and against each other.

    python -m tools.measure_potentials --potentials chgnet,sevennet-l3i5

Labels are energies above the hull, and of formation, of the Materials Project of 2015,
3,420 of each, which come with the embedded crystals. Its corrections were others than
MP2020: formation energies of halides, nitrides and hydrides differ by them, energies
above the hull hardly. Some four minutes for the embedded potentials on two cores.

Softness: known crystals, each atom moved by the same distance in a direction of its
own, and how far their energy rises in the median; a soft potential forgives it.
"""

import argparse
import time

import numpy as np
from scipy.stats import spearmanr

from benchmarks.measure import print_table
from chemeleon_jax.data.crystals import take
from chemeleon_jax.data.dataset import load_dataset
from chemeleon_jax.potentials.hull import Hull, composition_counts, evaluate, load_hull
from chemeleon_jax.potentials.loading import load_potential
from chemeleon_jax.potentials.types import Status
from tools.measure_hull_depth import hull_depths

MOVES = (0.03, 0.1, 0.2)  # Å
NUM_MOVED, NUM_COMPOUNDS, SEED = 200, 1500, 0


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--potentials", default="chgnet,sevennet-l3i5")
    args = parser.parse_args()
    dataset = load_dataset("mp_mini")
    labels = np.isfinite(dataset.labels["e_above_hull_dft"])
    labelled = dataset.subset(np.flatnonzero(labels))
    rows = [measure(name, labelled) for name in args.potentials.split(",")]
    print(f"{len(labelled)} labels, {NUM_MOVED} moved crystals; eV/atom\n")
    print_table(rows)


def measure(name: str, labelled) -> dict:
    """A line of the table."""
    potential = load_potential(name)
    hull = load_hull(potential)
    crystals = labelled.crystals
    cpu = time.process_time()
    energies, status = evaluate(potential, crystals)
    cpu = time.process_time() - cpu
    energies = np.where(status == Status.OK, energies.astype(np.float64), np.nan)
    above = hull.e_above_hull(crystals.atom_types, energies)
    formation = formation_energies(hull, crystals.atom_types, energies)
    depths = hull_depths(hull, NUM_COMPOUNDS)
    line = {
        "potential": name,
        "with energy": int(np.isfinite(above).sum()),
        "above hull, MAE": error(above, labelled.labels["e_above_hull_dft"]),
        "formation, MAE": error(formation, labelled.labels["formation_energy"]),
        "formation, rank": rank(formation, labelled.labels["formation_energy"]),
        "real, 0.2 below": f"{np.mean(depths < -0.2):.1%}",
        "crystals/CPU s": len(crystals.mask) / cpu,
    }
    still = take(crystals, np.arange(0, len(crystals.mask), 17)[:NUM_MOVED])
    start, _ = evaluate(potential, still)
    for distance in MOVES:
        rise = evaluate(potential, moved(still, distance))[0] - start
        line[f"rise at {distance} Å"] = f"{np.nanmedian(rise):.4f}"
    return line


def formation_energies(hull: Hull, atom_types, energies):
    """Energies over those of the elements on the hull, [B] eV/atom."""
    counts = composition_counts(atom_types)
    pure = (hull.fractions == 1).any(1)
    reference = np.full(counts.shape[1], np.nan)
    reference[hull.fractions[pure].argmax(1)] = hull.energies[pure]
    missing = (counts > 0) & np.isnan(reference)
    mixed = (counts * np.nan_to_num(reference)).sum(1) / counts.sum(1)
    return np.where(missing.any(1), np.nan, energies - mixed)


def error(found, expected) -> float:
    """Mean absolute error."""
    return float(np.nanmean(np.abs(found - expected)))


def rank(found, expected) -> float:
    """Spearman correlation."""
    known = np.isfinite(found) & np.isfinite(expected)
    return float(spearmanr(found[known], expected[known]).statistic)


def moved(crystals, distance: float):
    """Every atom moved by `distance`, in Å, each its own way."""
    rng = np.random.default_rng(SEED)
    step = rng.normal(size=crystals.frac_coords.shape)
    step *= distance / np.linalg.norm(step, axis=-1, keepdims=True)
    inverse = np.linalg.inv(np.asarray(crystals.lattice, np.float64))
    frac = crystals.frac_coords + np.einsum("bni,bij->bnj", step, inverse)
    return crystals.replace(frac_coords=(frac % 1.0).astype(np.float32))


if __name__ == "__main__":
    main()

"""How the hulls in chemeleon_jax/assets were made: energies of all embedded crystals.

    python -m tools.build_hull sevennet-0 hull-sevennet-0.npz

Elements and some binaries come in addition (`tools/build_references.py`): of these too
every energy is that of the potential whose hull it is.

`tools.build_assets` runs it for all that are embedded, after the crystals, weights and
references.
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from chemeleon_jax.data.dataset import load_dataset
from chemeleon_jax.potentials.hull import (
    HULLS,
    Hull,
    evaluate_entries,
    reference_crystals,
    save_hull,
)
from chemeleon_jax.potentials.loading import load_potential

DECIMALS = 5  # of an energy: what another machine agrees on, but for a rounding


def build_hulls(folder: Path) -> None:
    """Evaluate crystals and references with each potential, write and report."""
    for name, (file, _) in HULLS.items():
        build_hull(name, folder / file)


def build_hull(name: str, out: Path) -> None:
    """Evaluate crystals and references, write the hull to a file, and report."""
    potential = load_potential(name)
    dataset = load_dataset("mp_mini")
    known = evaluate_entries(potential, dataset.crystals)
    others = evaluate_entries(potential, reference_crystals())
    counts = np.concatenate([known[0], others[0]])
    energies = np.concatenate([known[1], others[1]]).astype(np.float64)
    energies = np.round(energies, DECIMALS)
    hull = Hull(counts, energies, potential.digest, potential.scheme)
    save_hull(out, hull)
    print(f"{name}: {np.isfinite(energies).sum()} of {len(energies)} crystals")
    print(f"{len(hull)} compositions")
    print(f'"{name}": "{hashlib.sha256(out.read_bytes()).hexdigest()}"')
    report(hull, dataset, *known)


def report(hull: Hull, dataset, counts, energies) -> None:
    """Print how the potential compares with the DFT labels of the data set."""
    pure = (hull.fractions == 1).any(1)
    reference = np.full(counts.shape[1], np.nan)
    reference[hull.fractions[pure].argmax(1)] = hull.energies[pure]
    fractions = counts / counts.sum(1, keepdims=True)
    formation = energies - np.nansum(fractions * reference, 1)
    above = hull.e_above_hull(dataset.crystals.atom_types, energies)
    for name, values in (("formation_energy", formation), ("e_above_hull_dft", above)):
        labels = dataset.labels[name]
        known = np.isfinite(labels) & np.isfinite(values)
        mae = np.abs(values - labels)[known].mean()
        rank = spearmanr(values[known], labels[known]).statistic
        print(
            f"{name}: {known.sum()} labels, MAE {mae:.3f} eV/atom, Spearman {rank:.3f}"
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("potential", help="a name, as reward.potential takes it")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    build_hull(args.potential, args.out)


if __name__ == "__main__":
    main()

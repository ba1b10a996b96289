"""How far below the hull of all others a known compound lies.

    python tools/measure_hull_depth.py

What a guard against energies far below the hull costs: crystals as real as these.
Takes out of the embedded hull, one by one, compounds whose chemical system has at least
two others on record.
"""

import argparse

import numpy as np

from chemeleon_jax.potentials.hull import Hull, hull_energy, load_hull
from chemeleon_jax.potentials.loading import load_potential

LIMITS = (-0.1, -0.2, -0.3, -0.5, -1.0)  # eV/atom


def main() -> None:
    """Prints the share of compounds below each limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--potential", default="chgnet")
    parser.add_argument("--num_compounds", type=int, default=1500)
    parser.add_argument("--min_others", type=int, default=2)
    args = parser.parse_args()
    hull = load_hull(load_potential(args.potential))
    depths = hull_depths(hull, args.num_compounds, args.min_others)
    print(f"{len(depths)} compounds, energy above the hull of the others, eV/atom:")
    for limit in LIMITS:
        print(f"  under {limit:5.1f}: {np.mean(depths < limit):6.1%}")


def hull_depths(hull: Hull, num_compounds: int, min_others: int = 2) -> np.ndarray:
    """Energies above the hull of all others, eV/atom, of compounds drawn from it.

    Args:
      hull: of whose compounds.
      num_compounds: at most.
      min_others: compounds that the rest of a chemical system has at least.
    """
    compounds = np.flatnonzero((hull.counts > 0).sum(1) >= 2)
    rng, depths = np.random.default_rng(0), []
    for i in rng.permutation(compounds):
        elements = np.flatnonzero(hull.counts[i])
        inside = hull.fractions[:, elements].sum(1) > 1 - 1e-9
        inside[i] = False
        if inside.sum() - len(elements) < min_others:
            continue
        others = hull.fractions[np.ix_(inside, elements)]
        target = hull.fractions[i, elements]
        depths.append(
            hull.energies[i] - hull_energy(others, hull.energies[inside], target)
        )
        if len(depths) == num_compounds:
            break
    return np.array(depths)


if __name__ == "__main__":
    main()

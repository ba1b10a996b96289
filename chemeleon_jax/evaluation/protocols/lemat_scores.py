"""LeMat-GenBench's scores of a set of valid crystals. NumPy.

Definitions of LeMat-GenBench (arXiv:2512.04562; Apache-2.0; commit 5bab2cd), written
anew; names as there, in lower case. `draws`: see `statistics.resample`.
"""

import numpy as np
from pymatgen.core import Element, Structure
from scipy.linalg import polar

from chemeleon_jax.evaluation import statistics
from chemeleon_jax.evaluation.protocols.distributions import (
    entropy_of_bins,
    histogram,
    js_distance,
    mmd,
)
from chemeleon_jax.evaluation.protocols.lemat_tables import HHI
from chemeleon_jax.evaluation.protocols.profile import NUM_ELEMENTS, Profile
from chemeleon_jax.evaluation.protocols.rows import without_interval
from chemeleon_jax.evaluation.statistics import Score

NUM_SPACE_GROUPS = 230
_LAST_GROUPS = (2, 15, 74, 142, 167, 194, 230)  # of the crystal systems
MMD_CRYSTALS, MMD_SEED = 15_000, 42  # of the reference, at most
DENSITY_BIN, LENGTH_BIN, PACKING_BIN = 0.5, 0.5, 0.05  # g/cm³, Å, 1
PRODUCTION_WEIGHT, RESERVE_WEIGHT = 0.25, 0.75
MAX_HHI = 10_000.0  # of an element that the table lacks


def crystal_system(space_group: np.ndarray) -> np.ndarray:
    """1, triclinic, to 7, cubic, of numbers of space groups."""
    return np.searchsorted(_LAST_GROUPS, space_group) + 1


def distribution_scores(found: Profile, known: Profile) -> dict[str, Score]:
    """Distances between the distributions of crystals and of references.

    Jensen-Shannon distances of space groups, crystal systems, elements by presence
    (`composition`) and by atoms; MMD of the cells' volume (Å³) and of both densities.
    Averages over what has one. Crystals without a space group count in neither.
    """
    groups = [x.space_group[x.space_group > 0] for x in (found, known)]
    pairs = {
        "space_group": [histogram(x, NUM_SPACE_GROUPS) for x in groups],
        "crystal_system": [histogram(crystal_system(x), 7) for x in groups],
        "composition": [(x.counts > 0).sum(0) for x in (found, known)],
        "composition_counts": [x.counts.sum(0) for x in (found, known)],
    }
    scores = {f"js_{name}": js_distance(*pair) for name, pair in pairs.items()}
    scores["js_average"] = float(np.mean(list(scores.values())))
    rows = np.arange(len(known.volume))
    if len(rows) > MMD_CRYSTALS:
        rng = np.random.default_rng(MMD_SEED)
        rows = np.sort(rng.choice(rows, MMD_CRYSTALS, replace=False))
    discrepancies = {
        f"mmd_{name}": mmd(getattr(found, name), getattr(known, name)[rows])
        for name in ("volume", "density", "atom_density")
    }
    discrepancies["mmd_average"] = float(np.mean(list(discrepancies.values())))
    scores |= discrepancies
    return {name: without_interval(value) for name, value in scores.items()}


def diversity_scores(found: Profile, draws: np.ndarray) -> dict[str, Score]:
    """How many kinds there are, as if equally common, and what share of all there is.

    Vendi scores are exp of the Shannon entropy (of a similarity that is 1 within a kind
    and 0 between kinds; Friedman and Dieng, TMLR 2023): of elements by atoms, of space
    groups, of numbers of atoms in the cell. `physical_size_entropy` is the mean entropy
    of density, cell lengths and packing factor in bins, over log2 of the crystals.
    """
    kinds = {
        "element": found.counts,
        "space_group": _indicator(found.space_group, NUM_SPACE_GROUPS)[:, 1:],
        "site_number": _indicator(found.num_atoms.astype(int)),
    }
    scores = {
        f"{name}_vendi": statistics.effective_number(table, draws)
        for name, table in kinds.items()
    }
    for name, most in (("element", NUM_ELEMENTS), ("space_group", NUM_SPACE_GROUPS)):
        coverage = kinds[name].any(0).sum() / most
        scores[f"{name}_coverage"] = without_interval(coverage)
    columns = [(found.density, DENSITY_BIN)]
    columns += [(length, LENGTH_BIN) for length in found.lengths.T]
    columns += [(found.packing, PACKING_BIN)]
    entropies = [entropy_of_bins(values, width) for values, width in columns]
    size = np.log2(len(found.volume)) if len(found.volume) > 1 else np.nan
    scores["physical_size_entropy"] = without_interval(np.mean(entropies) / size)
    return scores


def _indicator(kinds: np.ndarray, last: int | None = None) -> np.ndarray:
    """1 where a crystal is of a kind, [n, kinds]."""
    most = kinds.max(initial=0) if last is None else last
    return (kinds[:, None] == np.arange(most + 1)).astype(float)


def hhi(counts: np.ndarray) -> np.ndarray:
    """Herfindahl-Hirschman index of production and of reserves, [n, 2], 0 to 10.

    sum_i x_i H_i over the elements of atomic fraction x_i: how few countries produce
    them, or have them. An element that the table lacks has the highest value.

    Args:
      counts: [n, 118] atoms of each element.
    """
    symbols = [Element.from_Z(z).symbol for z in range(1, NUM_ELEMENTS + 1)]
    table = np.array([HHI.get(symbol, (MAX_HHI, MAX_HHI)) for symbol in symbols])
    return counts @ table / counts.sum(1, keepdims=True) / 1000


def hhi_scores(found: Profile, draws: np.ndarray) -> dict[str, Score]:
    """Means of the index of production and of reserves, and of both combined."""
    production, reserve = hhi(found.counts).T
    combined = PRODUCTION_WEIGHT * production + RESERVE_WEIGHT * reserve
    columns = {"production": production, "reserve": reserve, "combined": combined}
    return {
        f"hhi_{name}": statistics.mean_score(values, draws)
        for name, values in columns.items()
    }


def displacement(before: Structure, after: Structure) -> float:
    """Root mean square of how far the atoms of a crystal went, in Å.

    Of Cartesian positions, the strain of the cell included and no translation taken
    off: it depends on where the origin is, and on the size of the cell. A rotation of
    the cell counts for nothing: LeMat-GenBench's relaxation makes none. Atoms took the
    shortest way.
    """
    lattice, frac = before.lattice.matrix, before.frac_coords
    if np.linalg.det(lattice) * np.linalg.det(after.lattice.matrix) < 0:
        lattice, frac = -lattice, -frac  # the same crystal, of the other handedness
    moved = after.frac_coords - frac
    moved -= np.round(moved)
    # lattice @ strain @ rotation = lattice after
    _, strain = polar(np.linalg.solve(lattice, after.lattice.matrix), side="left")
    relaxed = (frac + moved) @ lattice @ strain
    return float(np.sqrt(((relaxed - frac @ lattice) ** 2).sum(1).mean()))

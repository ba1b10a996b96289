"""Host rewards (all but energies) against their definitions written down plainly.

The plain ones: StructureMatcher against each reference of the same composition, found
by comparing the composition with every reference's; full kernel matrices for the
diversity. Timed on a few crystals, since their cost is linear in them.
"""

import argparse
import time

import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher

from benchmarks.measure import Seconds, print_table
from chemeleon_jax.data.crystals import formula_key, take, validity
from chemeleon_jax.data.dataset import load_dataset
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.rewards.creativity import creativity
from chemeleon_jax.rewards.diversity import diversity, kernel_mean
from chemeleon_jax.rewards.features import composition_fractions
from chemeleon_jax.rewards.matches import index_references, match_crystals, to_cells
from chemeleon_jax.workers.matching import reduce_cell, to_structure
from chemeleon_jax.workers.pool import WorkerPool

LATENT = 8  # channels of the structure features


def alike(crystals: CrystalBatch, count: int, seed: int = 0) -> CrystalBatch:
    """What a trained model makes: known crystals, shaken.

    Every second one has another composition: each element replaced by another one.
    """
    rng = np.random.default_rng(seed)
    made = take(crystals, rng.choice(len(crystals.mask), count))
    shaken = made.frac_coords + rng.normal(0, 0.01, made.frac_coords.shape)
    made = made.replace(frac_coords=(shaken * made.mask[..., None]).astype(np.float32))
    other = np.stack([rng.permutation(89) for _ in range(count)])
    swapped = np.take_along_axis(other, made.atom_types % 89, 1) + 1
    changed = made.mask & (np.arange(count) % 2 == 1)[:, None]
    return made.replace(atom_types=np.where(changed, swapped, made.atom_types))


def enlarged(crystals: CrystalBatch, count: int) -> CrystalBatch:
    """`count` references: the known ones, then synthetic ones made from them."""
    known = len(crystals.mask)
    if count <= known:
        return take(crystals, np.arange(count))
    # Odd rows of `alike` are of other compositions.
    more = take(alike(crystals, 2 * (count - known)), np.arange(count - known) * 2 + 1)
    both = {k: np.concatenate([v, getattr(more, k)]) for k, v in vars(crystals).items()}
    return CrystalBatch(**both)


def fast(crystals, references, latents, kernels, pool) -> None:
    """All host rewards, as `compute_rewards` has them computed."""
    valid = validity(crystals) == 0
    cells = to_cells(crystals)
    matches = match_crystals(cells, valid, references, pool)
    creativity(cells, matches, references, pool)
    diversity(latents, valid, kernels[0])
    shares = composition_fractions(crystals.atom_types, crystals.mask)
    diversity(shares, valid, kernels[1])


def plain(crystals, known: CrystalBatch, latents, known_latents) -> None:
    """The same quantities of a few crystals, definition by definition."""
    matcher = StructureMatcher()
    for cell in to_cells(crystals):
        formula = formula_key(cell.atom_types)
        for other in to_cells(known):
            if formula_key(other.atom_types) == formula:
                matcher.fit(to_structure(cell), to_structure(other))
    shares, known_shares = (
        composition_fractions(x.atom_types, x.mask) for x in (crystals, known)
    )
    for x, y in ((latents, known_latents), (shares, known_shares)):
        for i in range(len(x)):  # each crystal left out in turn
            rest = np.delete(x, i, 0)
            ((rest @ y.T / y.shape[1] + 1) ** 3).mean()
            ((rest @ rest.T / y.shape[1] + 1) ** 3).mean()


def cpu_clock(pool: WorkerPool) -> float:
    """CPU seconds that this process and the one worker have used."""
    clock = time.CLOCK_PROCESS_CPUTIME_ID
    worker = pool.call(time.clock_gettime, clock, time_limit=60.0)
    return time.process_time() + worker.value


def timed(pool: WorkerPool, function, *args) -> Seconds:
    """Of one call."""
    wall, cpu = time.perf_counter(), cpu_clock(pool)
    function(*args)
    return Seconds(time.perf_counter() - wall, cpu_clock(pool) - cpu)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=320)
    parser.add_argument("--references", type=int, nargs="+", default=[13_740])
    parser.add_argument("--plain", type=int, default=4, help="crystals of the baseline")
    flags = parser.parse_args()
    mini, rows = load_dataset("mp_mini").crystals, []
    rng = np.random.default_rng(0)
    with WorkerPool(1) as pool:
        for count in flags.references:
            known = enlarged(mini, count)
            known_latents = rng.normal(size=(count, LATENT))
            latents = rng.normal(size=(flags.batch, LATENT))
            references = index_references(known)
            shares = composition_fractions(known.atom_types, known.mask)
            kernels = kernel_mean(known_latents), kernel_mean(shares)
            crystals = alike(mini, flags.batch, seed=1)
            pool.map(reduce_cell, references.cells[:4])  # imports pymatgen
            # The first call fills caches of the references that it needs.
            cold, warm = (
                timed(pool, fast, crystals, references, latents, kernels, pool)
                for _ in range(2)
            )
            few = take(crystals, np.arange(flags.plain))
            slow = timed(
                pool, plain, few, known, latents[: flags.plain], known_latents
            ).cpu * (flags.batch / flags.plain)
            rows.append(
                {
                    "references": count,
                    "first CPU s": cold.cpu,
                    "later CPU s": warm.cpu,
                    "later s": warm.wall,
                    f"plain CPU s (of {flags.plain}, scaled)": slow,
                    "speed-up": slow / warm.cpu,
                }
            )
    print(f"{flags.batch} crystals, one worker process\n")
    print_table(rows)


if __name__ == "__main__":
    main()

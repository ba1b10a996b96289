"""Uniqueness and novelty of a set of crystals: this project against plain pymatgen.

    python benchmarks/matching.py --num_crystals=1000
    python benchmarks/matching.py --num_crystals=150 --one_formula

Both judge the same crystals against mp_mini. Plain pymatgen calls
`StructureMatcher.fit` on pair after pair. Those within a reduced formula are really
compared, and all flags must agree; of the others, which never match, some are timed,
and what all of them take is worked out. `--one_formula`: all crystals have the same
formula, as those of a collapsed model. Prints CPU seconds, those of workers included.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import psutil
from pymatgen.analysis.structure_matcher import StructureMatcher

from chemeleon_jax.data.crystals import to_structures
from chemeleon_jax.data.dataset import load_dataset
from chemeleon_jax.rewards.matches import index_references, match_crystals
from chemeleon_jax.workers.matching import cell_of, reduce_cell
from chemeleon_jax.workers.pool import WorkerPool

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from crystal_sets import distorted, mixed_set  # noqa: E402


def plain(structures, known):
    """Flags by pymatgen alone; CPU seconds; how many pairs were compared."""
    matcher, pairs = StructureMatcher(), 0
    by_formula = {}
    for structure in known:
        key = structure.composition.reduced_formula
        by_formula.setdefault(key, []).append(structure)
    began = time.process_time()
    unique, novel, firsts = [], [], {}
    for structure in structures:
        key = structure.composition.reduced_formula
        flags = []
        for others, first in (
            (firsts.setdefault(key, []), False),
            (by_formula.get(key, []), True),
        ):
            found = False
            for other in others:
                pairs += 1
                pair = (structure, other) if first else (other, structure)
                if matcher.fit(*pair):
                    found = True
                    break
            flags.append(not found)
        unique.append(flags[0])
        novel.append(flags[1])
        if flags[0]:
            firsts[key].append(structure)
    return unique, novel, time.process_time() - began, pairs


def other_pairs(structures, known, sample=1000):
    """Pairs that differ in formula: how many, and CPU seconds of one comparison."""
    rng, matcher = np.random.default_rng(0), StructureMatcher()
    pairs = [
        (structures[i], known[j])
        for i, j in zip(
            rng.integers(len(structures), size=sample),
            rng.integers(len(known), size=sample),
            strict=True,
        )
    ]
    began = time.process_time()
    for one, other in pairs:
        matcher.fit(one, other)
    each = (time.process_time() - began) / sample
    total = len(structures) * (len(structures) - 1) // 2 + len(structures) * len(known)
    return total, each


def one_formula(known, count, seed):
    """Distortions of the crystals of the commonest formula."""
    by_formula = {}
    for structure in known:
        by_formula.setdefault(structure.composition.reduced_formula, []).append(
            structure
        )
    rng, some = np.random.default_rng(seed), max(by_formula.values(), key=len)
    return [
        distorted(some[rng.integers(len(some))], rng, rng.choice([0.02, 0.1, 0.3]))
        for _ in range(count)
    ]


def ours(structures, dataset, workers):
    """Flags by `match_crystals`; CPU seconds of this process and its workers; wall."""
    references = index_references(dataset.crystals)
    cells = [cell_of(s) for s in structures]
    with WorkerPool(workers, time_limit=60.0) as pool:
        pool.map(reduce_cell, cells[:8])  # processes are up, pymatgen is loaded
        began, wall = cpu_seconds(), time.perf_counter()
        matches = match_crystals(cells, np.ones(len(cells), bool), references, pool)
        used, wall = cpu_seconds() - began, time.perf_counter() - wall
    assert not matches.status.any()
    return matches.unique.tolist(), matches.novel.tolist(), used, wall


def cpu_seconds() -> float:
    """CPU time of this process and those that it started and that still run."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    times = [p.cpu_times() for p in processes]
    return sum(t.user + t.system for t in times)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num_crystals", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--one_formula", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    dataset = load_dataset("mp_mini")
    known = to_structures(dataset.crystals)
    make = one_formula if args.one_formula else mixed_set
    structures = make(known, args.num_crystals, args.seed)
    unique, novel, cpu, wall = ours(structures, dataset, args.workers)
    print(
        f"ours: {cpu:.1f} s CPU without start-up of the workers, {wall:.1f} s wall; "
        f"{sum(unique)} unique, {sum(novel)} novel of {len(structures)}",
        flush=True,
    )
    own_unique, own_novel, plain_cpu, pairs = plain(structures, known)
    same = (unique, novel) == (own_unique, own_novel)
    print(f"pymatgen: {plain_cpu:.1f} s CPU, {pairs} pairs of one formula; ", end="")
    print(f"flags agree: {same}; ratio {plain_cpu / cpu:.1f}", flush=True)
    total, each = other_pairs(structures, known)
    rest = (total - pairs) * each
    print(f"the other {total - pairs} pairs: {1e3 * each:.2f} ms each, {rest:.0f} s in")
    print(f"all; ratio with them {(plain_cpu + rest) / cpu:.0f}")


if __name__ == "__main__":
    main()

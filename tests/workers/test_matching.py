import numpy as np
import pytest
from crystal_sets import mixed_set
from pymatgen.analysis.structure_matcher import StructureMatcher

from chemeleon_jax.data.crystals import take, to_structures
from chemeleon_jax.data.dataset import load_dataset
from chemeleon_jax.rewards.matches import index_references, match_crystals
from chemeleon_jax.workers.matching import cell_of
from chemeleon_jax.workers.pool import WorkerPool


@pytest.mark.filterwarnings("ignore:No Pauling electronegativity")
@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_flags_are_those_of_plain_pymatgen(count):
    crystals = load_dataset("mp_mini").crystals
    crystals = take(crystals, slice(None, None, max(4000 // count, 1)))
    known = to_structures(crystals)
    structures = mixed_set(known, count, seed=count)
    cells = [cell_of(s) for s in structures]
    with WorkerPool(1, time_limit=60.0) as pool:
        references = index_references(crystals)
        matches = match_crystals(cells, np.ones(count, bool), references, pool)

    matcher = StructureMatcher()  # hashes by formula, then fits pair by pair
    groups = matcher.group_structures(structures)
    number = {id(s): i for i, s in enumerate(structures)}
    firsts = {min(number[id(s)] for s in group) for group in groups}
    by_formula = {}
    for structure in known:
        by_formula.setdefault(structure.reduced_formula, []).append(structure)
    novel = [
        not any(matcher.fit(s, k) for k in by_formula.get(s.reduced_formula, ()))
        for s in structures
    ]
    assert not matches.status.any()
    assert matches.novel.tolist() == novel
    assert set(np.flatnonzero(matches.unique).tolist()) == firsts
    assert 0.2 < np.mean(novel) < 0.8 and len(firsts) < count  # all answers occur

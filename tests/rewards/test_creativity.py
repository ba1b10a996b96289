from dataclasses import replace

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from chemeleon_jax.data.crystals import from_structures, to_structures, validity
from chemeleon_jax.rewards.creativity import CreativityStatus, creativity
from chemeleon_jax.rewards.matches import (
    References,
    index_recent,
    index_references,
    match_crystals,
    match_references,
    to_cells,
)
from chemeleon_jax.rewards.recent import RecentCrystals
from chemeleon_jax.workers.amd import average_minimum_distance
from chemeleon_jax.workers.matching import Cell
from chemeleon_jax.workers.outcome import Outcome, Status
from chemeleon_jax.workers.pool import WorkerPool

NACL = Structure.from_spacegroup(
    "Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
)
CSCL_TYPE = Structure(Lattice.cubic(3.5), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
ZINC_BLENDE = Structure.from_spacegroup(
    "F-43m", Lattice.cubic(6.0), ["Na", "Cl"], [[0, 0, 0], [0.25, 0.25, 0.25]]
)
IRON = Structure(Lattice.cubic(2.87), ["Fe", "Fe"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def disguised(structure, seed):
    """The same crystal: another cell, origin, order of atoms and orientation."""
    rng = np.random.default_rng(seed)
    other = structure.get_primitive_structure()
    other.make_supercell([[1, 1, 0], [0, 1, 0], [0, 0, 2]])
    other.translate_sites(range(len(other)), rng.random(3))
    return Structure.from_sites([other[i] for i in rng.permutation(len(other))])


def score(structures, references, pool, valid=None, **options):
    cells = to_cells(from_structures(structures))
    valid = np.ones(len(cells), bool) if valid is None else np.array(valid)
    known = index_references(from_structures(references))
    matches = match_crystals(cells, valid, known, pool)
    return matches, *creativity(cells, matches, known, pool, **options)


def test_unique_novel_and_neither(pool):
    structures = [NACL, IRON, disguised(IRON, 0), disguised(NACL, 1)]
    matches, values, status = score(structures, [NACL, CSCL_TYPE], pool)
    assert matches.unique.tolist() == [True, True, False, False]
    assert matches.novel.tolist() == [False, True, True, False]
    assert status.tolist() == [Status.OK] * 4
    # Unique, but known: the CsCl type is nearest. For the copy of iron there is none
    # other of its formula, and zero distances do not count.
    amd = [
        average_minimum_distance(s.lattice.matrix, s.frac_coords)
        for s in (NACL, CSCL_TYPE)
    ]
    apart = abs(amd[0] - amd[1]).max()
    assert 0.1 < apart < 1.0
    np.testing.assert_allclose(values, [apart, 1.0, 0.0, 0.0], atol=1e-5)


def test_what_the_last_iterations_made_earns_nothing(pool):
    recent, reduced = RecentCrystals(2, batch_size=3, max_atoms=20), {}
    iterations = ([IRON, CSCL_TYPE], [NACL], [ZINC_BLENDE])
    batch = from_structures([disguised(IRON, 0), disguised(NACL, 1), CSCL_TYPE])
    seen = []
    for structures in iterations:
        recent.add(from_structures(structures))
        cells, valid = to_cells(batch), np.ones(3, bool)
        matches = match_crystals(cells, valid, index_references(batch), pool)
        matches = replace(matches, novel=valid)  # the references are not the point
        nothing = References([], {})
        with index_recent(recent.crystals, reduced) as others:
            found = match_references(cells, valid, nothing, pool, others)
        assert not found.known and len(reduced) <= recent.crystals.mask.any(1).sum()
        values, status = creativity(
            cells, matches, index_references(batch), pool, seen=found.seen
        )
        np.testing.assert_array_equal(values, status == Status.OK)
        seen.append((status == CreativityStatus.SEEN_BEFORE).tolist())
    # The third iteration makes it forget the first.
    assert seen == [[True, False, True], [True, True, True], [False, True, False]]
    assert recent.crystals.mask.shape == (6, 20)
    assert recent.crystals.mask.any(1).sum() == 2


def test_what_an_earlier_batch_had_does_not_touch_unique_and_novel(pool):
    """The needle (below) cannot be reduced; only an earlier batch has its formula."""
    cells, nothing = to_cells(from_structures([needle()])), References([], {})
    recent = from_structures([IRON])
    with index_recent(recent, {}) as others:
        found = match_references(cells, np.ones(1, bool), nothing, pool, others)
    assert found.reduced[0].status == Status.RAISED and not found.seen
    matches = match_crystals(cells, np.ones(1, bool), nothing, pool, found)
    assert (
        matches.unique.all() and matches.novel.all() and matches.status == [Status.OK]
    )


def test_the_distance_is_bounded_unless_switched_off(pool):
    stretched = NACL.copy()
    stretched.scale_lattice(8 * NACL.volume)
    _, values, _ = score([stretched], [NACL], pool)
    assert values == [1.0]
    _, values, _ = score([stretched], [NACL], pool, max_amd=None)
    amd = average_minimum_distance(NACL.lattice.matrix, NACL.frac_coords)
    assert values == pytest.approx([amd[-1]], abs=1e-4)  # all distances doubled


def test_alone_with_its_copy_is_worth_nothing(pool):
    """The smallest of no distances."""
    _, values, status = score([NACL], [disguised(NACL, 0)], pool)
    assert values == [0.0] and status == [Status.OK]


def test_invalid_crystals_are_unseen(pool):
    matches, values, status = score(
        [IRON, IRON, NACL], [CSCL_TYPE], pool, valid=[False, True, False]
    )
    assert matches.unique.tolist() == matches.novel.tolist() == [False, True, False]
    assert values.tolist() == [0, 1, 0]
    assert status.tolist() == [Status.INVALID, Status.OK, Status.INVALID]


def polymorphs(count, seed):
    """Crystals of few formulas, copies and near-copies among them.

    As a batch holds them: StructureMatcher decides borderline pairs differently after
    a rotation or in another precision.
    """
    rng = np.random.default_rng(seed)
    parents = [NACL, CSCL_TYPE, ZINC_BLENDE, IRON]
    structures = []
    for _ in range(count):
        structure = disguised(parents[rng.integers(4)], rng.integers(1000))
        size = rng.choice([1e-6, 0.1, 0.6, 1.2])
        structure.perturb(size, seed=int(rng.integers(1000)))
        structure.scale_lattice(structure.volume * rng.uniform(0.7, 1.3))
        structures.append(structure)
    return to_structures(from_structures(structures))


def test_agrees_with_structure_matcher(pool):
    """More than one block of one formula, so that blocks are compared with blocks."""
    structures, references = polymorphs(60, 0), polymorphs(4, 1)
    matches, _, _ = score(structures, references, pool)
    matcher = StructureMatcher()
    groups = matcher.group_structures(structures)
    firsts = {id(group[0]) for group in groups}
    assert len(firsts) >= 10
    assert matches.unique.tolist() == [id(s) in firsts for s in structures]
    novel = [not any(matcher.fit(s, r) for r in references) for s in structures]
    assert 10 < sum(novel) < 50
    assert matches.novel.tolist() == novel


def test_the_number_of_workers_changes_nothing(pool):
    structures, references = polymorphs(40, 2), polymorphs(3, 3)
    with WorkerPool(1) as single:
        one = score(structures, references, single)
    two = score(structures, references, pool)
    np.testing.assert_array_equal(one[0].unique, two[0].unique)
    np.testing.assert_array_equal(one[0].novel, two[0].novel)
    np.testing.assert_array_equal(one[1], two[1])


def needle():
    """Twenty atoms in 0.6 x 0.6 x 16,000 Å: nothing in it is too close or too large."""
    places = np.linspace([0, 0, 0], [0, 0, 0.95], 20)
    return Structure(Lattice.orthorhombic(0.6, 0.6, 16000), ["Fe"] * 20, places)


def test_a_valid_needle_is_set_aside_and_takes_no_memory(pool):
    assert validity(from_structures([needle()])) == [0]
    matches, values, status = score([IRON, needle(), NACL], [NACL, IRON], pool)
    assert status.tolist() == [Status.OK, Status.RAISED, Status.OK]
    assert matches.unique.tolist() == [True, False, True]
    assert values[1] == 0


class Sabotaged:
    """A pool in which some crystals never come back."""

    def __init__(self, pool, formula):
        self.pool, self.formula = pool, formula

    def map(self, function, items):
        return [
            Outcome(Status.TIMED_OUT, message="exceeded its time limit")
            if isinstance(item, Cell) and set(item.atom_types) == self.formula
            else outcome
            for item, outcome in zip(items, self.pool.map(function, items), strict=True)
        ]


def test_a_crystal_that_hangs_spoils_no_other(pool):
    sabotaged = Sabotaged(pool, {26})
    matches, values, status = score([IRON, NACL, IRON, CSCL_TYPE], [NACL], sabotaged)
    assert status.tolist() == [Status.TIMED_OUT, Status.OK, Status.TIMED_OUT, Status.OK]
    assert matches.unique.tolist() == [False, True, False, True]
    assert matches.novel.tolist() == [False, False, False, True]
    assert values[0] == values[2] == 0 and values[3] == 1

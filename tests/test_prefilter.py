import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from chemeleon_jax.crystals import take, to_structures
from chemeleon_jax.data import load_dataset
from chemeleon_jax.rewards.matching import Cell, reduce_cell, to_structure
from chemeleon_jax.rewards.prefilter import may_fit, may_repeat


def variants(rng):
    """A crystal, and distorted copies of it across all that StructureMatcher allows."""
    species = np.repeat([11, 17, 8], [2, 3, 2])
    matrix = Lattice.from_parameters(5, 6, 7, *rng.uniform(75, 105, 3)).matrix
    frac = rng.random((7, 3))
    cells = []
    for _ in range(8):
        strain = np.eye(3) + rng.choice([0, 0.05, 0.15]) * rng.normal(size=(3, 3))
        moves = rng.choice([0.0, 0.03, 0.1]) * rng.normal(size=(7, 3))
        order = rng.permutation(7)
        cell = Cell(
            rng.uniform(0.7, 1.5) * matrix @ strain,
            species[order],
            (frac + moves + rng.random(3))[order],
        )
        cells.append(reduce_cell(cell))
    return cells


def test_never_rejects_a_match():
    matcher, rng = StructureMatcher(), np.random.default_rng(0)
    pairs = []
    for _ in range(6):
        cells = variants(rng)
        structures = [to_structure(cell) for cell in cells]
        for i, j in np.ndindex(8, 8):
            fit = matcher.fit(
                structures[i], structures[j], skip_structure_reduction=True
            )
            pairs.append((may_fit(cells[i], cells[j]), fit))
    assert not [p for p in pairs if p == (False, True)]
    fits = sum(fit for _, fit in pairs)
    assert 50 < fits < 300  # both answers occur
    assert sum(may for may, _ in pairs) < fits + 0.2 * (len(pairs) - fits)


def test_rejects_other_sizes_shapes_and_places():
    cubic = Cell(np.eye(3) * 4, np.array([11, 17]), np.array([[0, 0, 0], [0.5] * 3]))
    assert may_fit(cubic, cubic._replace(matrix=np.eye(3) * 9))  # scaled alike
    long = cubic._replace(matrix=np.diag([4.0, 4.0, 7.0]))
    assert not may_fit(cubic, long)
    double = reduce_cell(
        Cell(
            np.diag([4.0, 4.0, 8.0]),
            np.array([11, 17, 11, 17]),
            np.array([[0, 0, 0], [0.5, 0.5, 0.3], [0, 0, 0.5], [0.5, 0.5, 0.75]]),
        )
    )
    assert len(double.atom_types) == 4 and not may_fit(cubic, double)
    sodium, lattice = np.full(8, 11), 8 * np.eye(3)
    chain = Cell(lattice, sodium, np.linspace([0] * 3, [0.1] * 3, 8))
    spread = Cell(lattice, sodium, np.mgrid[:2, :2, :2].reshape(3, -1).T / 2)
    assert not may_fit(chain, spread)


def repeats(structure):
    return may_repeat(
        structure.lattice.abc, np.array(structure.atomic_numbers), structure.frac_coords
    )


@pytest.mark.parametrize("count", [60, pytest.param(3000, marks=pytest.mark.slow)])
def test_never_misses_a_smaller_cell(count):
    """Real crystals, blurred up to and beyond pymatgen's tolerance, and supercells."""
    rng, dataset = np.random.default_rng(0), load_dataset("mp_mini")
    picked = rng.choice(len(dataset), count, replace=False)
    answers = []
    for structure in to_structures(take(dataset.crystals, picked)):
        assert structure is not None
        if len(structure) <= 10 and rng.random() < 0.5:
            structure.make_supercell(rng.permutation([2, 1, 1]).tolist())
        structure.perturb(rng.choice([0.001, 0.05, 0.1, 0.2]))
        smaller = len(structure.get_primitive_structure()) < len(structure)
        answers.append((repeats(structure), smaller))
    assert (False, True) not in answers
    found = sum(smaller for _, smaller in answers)
    assert 0.1 * count < found < 0.5 * count
    assert sum(may for may, _ in answers) < found + 0.2 * count  # most are spared


def test_one_formula_unit_or_one_translation_is_no_smaller_cell():
    sites = [[0, 0, 0], [0.5, 0.5, 0.5]]
    assert not repeats(Structure(Lattice.cubic(4), ["Na", "Cl"], sites))
    assert repeats(Structure(Lattice.cubic(4), ["Na", "Na"], sites))
    # Diamond: two atoms, but no translation from one to the other and on to a third.
    diamond = [[0, 0, 0], [0.25, 0.25, 0.25]]
    assert not repeats(Structure(Lattice.rhombohedral(2.5, 60), ["C", "C"], diamond))

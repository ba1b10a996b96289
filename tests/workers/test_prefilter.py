import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice

from chemeleon_jax.workers.matching import Cell, reduce_cell, to_structure
from chemeleon_jax.workers.prefilter import may_fit


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

"""One crystal that cannot be compared costs the others nothing."""

import logging

import numpy as np
from pymatgen.core import Lattice, Structure

from chemeleon_jax.data.crystals import from_structures, to_numpy
from chemeleon_jax.rewards.matches import first_occurrences, index_references, to_cells
from chemeleon_jax.rewards.matches import match_crystals as match
from chemeleon_jax.workers.matching import Cell
from chemeleon_jax.workers.outcome import Outcome, Status

BAD = 6.0  # Å


def same_edge(one: Cell, other: Cell) -> bool:
    """What a match is, here."""
    edges = one.matrix[0, 0], other.matrix[0, 0]
    if BAD in edges:
        raise ArithmeticError("no answer")
    return edges[0] == edges[1]


def test_a_comparison_that_raises_takes_one_crystal_out(pool):
    edges = [3.0, BAD, 4.0, 3.0, 5.0, 4.0]
    cells = [Cell(np.eye(3) * a, np.array([26]), np.zeros((1, 3))) for a in edges]
    reduced = {i: Outcome(Status.OK, cell) for i, cell in enumerate(cells)}
    flags = first_occurrences([[*range(6)]], reduced, pool, same_edge)
    ok, raised = Status.OK, Status.RAISED
    assert [flags[i].status for i in range(6)] == [ok, raised, ok, ok, ok, ok]
    assert [flags[i].value for i in range(6)] == [True, False, True, False, True, False]


def test_a_known_crystal_that_cannot_be_compared_is_told(pool, caplog):
    places = np.linspace([0, 0, 0], [0, 0, 0.95], 20)
    needle = Structure(Lattice.orthorhombic(0.6, 0.6, 16000), ["Fe"] * 20, places)
    iron = Structure(Lattice.cubic(2.87), ["Fe", "Fe"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    known = index_references(to_numpy(from_structures([needle, iron])))
    cells = to_cells(from_structures([iron]))
    with caplog.at_level(logging.WARNING):
        assert not match(cells, np.array([True]), known, pool).novel[0]
    assert "a known crystal of Fe (number 0) cannot be compared" in caplog.text
    caplog.clear()
    match(cells, np.array([True]), known, pool)
    assert not caplog.text  # once

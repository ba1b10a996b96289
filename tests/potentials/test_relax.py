import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from chemeleon_jax.potentials.graph import Capacity
from chemeleon_jax.potentials.relax import relax

SMALL = Capacity(crystals=6, atoms=24, edges=512, bonds=128, angles=2048)
SETTINGS = {"max_steps": 80, "batch_size": 2, "capacity": SMALL}
NACL = Structure(
    Lattice.rhombohedral(3.97, 60), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
)
LONELY = Structure(Lattice.cubic(20), ["Na"], [[0, 0, 0]])  # no neighbour, no energy


@pytest.fixture(scope="module")
def relaxed():
    """Two crystals share a row: there is room for two at once."""
    pushed = NACL.copy()
    pushed.apply_strain([0.04, -0.03, 0.02])
    pushed.translate_sites([1], [0.02, -0.03, 0.01])
    crystals = [LONELY, pushed, NACL]
    return relax(crystals, **SETTINGS), pushed


def test_a_distorted_crystal_comes_back(relaxed):
    (_, pushed, still), start = relaxed
    assert pushed.converged and still.converged
    assert pushed.initial_energy > pushed.energy + 0.003
    assert still.steps < pushed.steps < 80
    assert pushed.energy == pytest.approx(still.energy, abs=2e-3)
    assert pushed.structure.volume == pytest.approx(still.structure.volume, rel=0.02)
    np.testing.assert_allclose(pushed.structure.lattice.angles, 60, atol=1.0)
    assert start.matches(NACL)  # the argument is as it was


def test_the_energy_is_that_of_the_structure_and_a_minimum(relaxed):
    structure, energy = relaxed[0][1].structure, relaxed[0][1].energy
    around = [structure.copy() for _ in range(4)]
    around[1].apply_strain(0.02)
    around[2].apply_strain(-0.02)
    around[3].translate_sites([0], [0.03, 0, 0])
    found = [r.initial_energy for r in relax(around, **SETTINGS)]
    assert found[0] == pytest.approx(energy, abs=1e-4)
    assert min(found[1:]) > found[0]


def test_a_crystal_without_an_energy_stays_where_it_is(relaxed):
    lonely = relaxed[0][0]
    assert not lonely.converged and np.isnan(lonely.energy)
    assert lonely.structure.volume == pytest.approx(8000)
    assert relax([]) == []

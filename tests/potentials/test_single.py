"""Graphs for one crystal: the same energies, on less."""

import numpy as np
from pymatgen.core import Lattice, Structure
from springs import morse

from chemeleon_jax.data.crystals import from_structures
from chemeleon_jax.potentials.single import SCALES, for_one, smallest_layout
from chemeleon_jax.potentials.types import Status

MORSE = morse()
FCC = Structure(Lattice([[0, 2, 2], [2, 0, 2], [2, 2, 0]]), ["Al"], [[0, 0, 0]])


def test_energies_are_those_of_a_large_graph():
    crystals = from_structures([FCC, FCC * (2, 2, 1)], 20)
    sized = for_one(MORSE, FCC * (2, 2, 1))
    own, status = sized.energies(crystals)
    expected, _ = MORSE.energies(crystals)
    np.testing.assert_allclose(own, expected, rtol=1e-6)
    assert (np.asarray(status) == Status.OK).all()


def test_a_size_is_one_object_and_has_room():
    assert for_one(MORSE, FCC) is for_one(MORSE, FCC * (1, 1, 2))
    model, _ = MORSE.network
    atoms = [
        smallest_layout(model, FCC * (n, n, n), room=1.5).sizes[0] for n in (1, 2, 3)
    ]
    assert atoms == sorted(atoms) and atoms[0] < atoms[-1]
    assert all(1.5 * n**3 < size for n, size in zip((1, 2, 3), atoms, strict=True))


def test_what_fits_into_no_graph_has_no_energy():
    crystal = FCC * (14, 14, 14)
    assert len(crystal) > 512 * SCALES[-1]
    _, status = for_one(MORSE, crystal).energies(from_structures([crystal], 2744))
    assert status[0] == Status.TOO_DENSE

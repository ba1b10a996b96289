"""Crystals put under their symmetry, and those on which spglib hangs."""

import numpy as np
from inline_pool import InlinePool
from known_crystals import NACL, NEW
from pymatgen.core import Structure

from chemeleon_jax.data.crystals import read_structure
from chemeleon_jax.screening.results import known_group, write_cifs
from chemeleon_jax.screening.symmetry import symmetrise_all
from chemeleon_jax.workers.outcome import Outcome, Status


class LosingPool(InlinePool):
    """Loses the last item of each call, whose kind `lost` names."""

    def __init__(self, lost):
        self.lost = list(lost)

    def map(self, function, items, **_):
        outcomes, status = super().map(function, items), self.lost.pop(0)
        if status != Status.OK:
            outcomes[-1] = Outcome(status, message="gone")
        return outcomes


def no_energy(structures):
    return np.zeros(len(structures))


def test_a_crystal_on_which_spglib_hangs_stays_and_says_so(tmp_path):
    """Its neighbour gets what it gets alone; no spglib runs in this process."""
    lost = [Status.TIMED_OUT, Status.DIED, Status.OK]
    fine, stuck = symmetrise_all([NACL, NEW], no_energy, LosingPool(lost))
    assert fine == symmetrise_all([NACL], no_energy, InlinePool())[0]
    assert fine["symmetry_problem"] == "" and known_group(fine) == "Fm-3m (225)"
    assert "_symmetry_space_group_name_H-M   Fm-3m" in fine["cif"]
    assert stuck["symmetry_problem"] == "within 0.01 Å: timed_out; within 0.1 Å: died"
    assert stuck["tolerance"] is None and stuck["space_group"] == {}
    assert read_structure(stuck["primitive"]) == NEW
    assert known_group(stuck) == "unknown" and stuck["cif"] is None
    write_cifs(tmp_path, "x", stuck["cif"], NEW, NEW)
    assert Structure.from_file(tmp_path / "x_conventional.cif").matches(NEW)


def test_a_crystal_whose_cif_cannot_be_made_is_written_without_symmetry():
    lost = [Status.OK, Status.OK, Status.DIED]
    _, stuck = symmetrise_all([NACL, NEW], no_energy, LosingPool(lost))
    assert stuck["symmetry_problem"] == "CIF: died" and stuck["cif"] is None
    assert stuck["tolerance"] == 0.1 and known_group(stuck) == "Pm-3m (221)"

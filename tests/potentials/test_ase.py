"""ASE calculators in the place of CHGNet."""

import os
import signal
import time
from functools import partial

import jax
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from pymatgen.core import Lattice, Structure

from chemeleon_jax.data.crystals import from_structures
from chemeleon_jax.devices.sharding import make_mesh, shard_batch
from chemeleon_jax.errors import UserError
from chemeleon_jax.potentials import ase
from chemeleon_jax.potentials.loading import load_potential
from chemeleon_jax.potentials.types import Status
from chemeleon_jax.workers import calculators
from chemeleon_jax.workers.pool import WorkerPool


def copper(length):
    return Structure(
        Lattice([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]).scale(length**3 / 4),
        ["Cu"],
        [[0, 0, 0]],
    )


def test_emt_energies_and_failures():
    """EMT knows copper and not sodium."""
    atoms = bulk("Cu", "fcc", 3.6)
    atoms.calc = EMT()
    crystals = from_structures(
        [copper(3.6), Structure(Lattice.cubic(4), ["Na"], [[0, 0, 0]]), copper(0.2)]
    )
    energies = jax.jit(load_potential("ase:ase.calculators.emt:EMT").energies)
    energy, status = energies(crystals)
    np.testing.assert_array_equal(status, [Status.OK, Status.FAILED, Status.TOO_DENSE])
    np.testing.assert_allclose(energy[0], atoms.get_potential_energy(), atol=1e-5)
    assert np.isnan(energy[1:]).all()
    assert len(Status) > Status.FAILED


def test_each_device_evaluates_its_own_crystals():
    devices = len(jax.devices())
    lengths = np.linspace(3.4, 3.9, 2 * devices)
    crystals = from_structures([copper(length) for length in lengths])
    potential = load_potential("ase:ase.calculators.emt:EMT")
    alone = potential.energies(crystals)[0]
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        energy, status = jax.jit(potential.energies)(shard_batch(crystals, mesh))
    np.testing.assert_array_equal(energy, alone)
    assert len(energy.sharding.device_set) == devices
    assert not status.any()


def test_settings_reach_the_calculator():
    name = "ase:ase.calculators.lj:LennardJones"
    crystals = from_structures([copper(3.6)])
    weak, strong = (load_potential(name, sigma=2.3, epsilon=e) for e in (1.0, 2.0))
    np.testing.assert_allclose(
        strong.energies(crystals)[0], 2 * weak.energies(crystals)[0], rtol=1e-5
    )
    assert weak.digest != strong.digest
    assert weak.digest == load_potential(name, epsilon=1.0, sigma=2.3).digest


def test_a_module_that_was_edited_is_another_version(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    versions = []
    for text in ("first = True", "first = False"):
        (tmp_path / "edited.py").write_text(text)
        versions.append(ase._version("edited"))
    assert versions[0] != versions[1]  # else it would be judged by the old one's hull


class Infinite(Calculator):
    implemented_properties = ["energy"]

    def calculate(self, *args, **kwargs):
        self.results = {"energy": np.inf}


def test_an_energy_that_is_not_finite_is_a_failure():
    energy, status = load_potential(f"ase:{__name__}:Infinite").energies(
        from_structures([copper(3.6)])
    )
    assert np.isnan(energy[0]) and status[0] == Status.FAILED


class Moody(EMT):
    """Hangs on gold, dies of silver, has no idea of nickel."""

    def calculate(self, atoms=None, *args, **kwargs):
        symbol = atoms.get_chemical_symbols()[0]
        if symbol == "Au":
            time.sleep(3600)
        if symbol == "Ag":
            os.kill(os.getpid(), signal.SIGKILL)
        super().calculate(atoms, *args, **kwargs)
        if symbol == "Ni":
            self.results["energy"] = np.nan


def test_what_a_calculator_does_to_its_process_costs_one_energy():
    """Gold would take an hour, silver kills its worker."""
    crystals = from_structures(
        [Structure(copper(3.6).lattice, [s], [[0, 0, 0]]) for s in ("Cu", "Au", "Ag")]
    )
    name = f"ase:{__name__}:Moody"
    energies = partial(calculators.energies, potential=name, settings={})
    with WorkerPool(1, time_limit=3.0) as pool:
        calculators.check(name, {}, pool=pool)  # copper needs no time for imports
        energy, status = ase._host_energies(
            partial(energies, pool=pool),
            crystals.atom_types,
            crystals.frac_coords,
            crystals.lattice,
            crystals.mask,
        )
    assert status.tolist() == [Status.OK, Status.FAILED, Status.FAILED]
    assert np.isfinite(energy[0]) and np.isnan(energy[1:]).all()


def test_relaxation_in_workers():
    """Copper ends where ASE's own equation of state has its minimum, 3.59 Å."""
    start = copper(3.9)
    start.apply_strain([0.05, -0.04, 0.02])
    others = [
        Structure(start.lattice, [s], [[0, 0, 0]]) for s in ("Ag", "Ni", "Na", "Au")
    ]
    with WorkerPool(1) as pool:
        relax = partial(
            calculators.relax,
            potential=f"ase:{__name__}:Moody",
            pool=pool,
            max_steps=200,
            max_force=0.01,
        )
        found = relax([start, *others[:3]], time_limit=300.0)
        found += relax(others[3:], time_limit=0.5)
    relaxed = found[0]
    assert relaxed.converged and 0 < relaxed.steps < 200 and not relaxed.problem
    lattice = relaxed.structure.lattice
    np.testing.assert_allclose(lattice.angles, 60, atol=0.5)
    assert (4 * lattice.volume) ** (1 / 3) == pytest.approx(3.59, abs=0.01)
    atoms = bulk("Cu", "fcc", 3.59)
    atoms.calc = EMT()
    assert relaxed.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-3)
    assert relaxed.initial_energy > relaxed.energy + 0.1
    problems = ["died", "raised", "raised", "timed_out"]
    assert [r.problem for r in found[1:]] == problems
    for before, after in zip(others, found[1:], strict=True):
        assert after.structure == before and not after.converged
        assert np.isnan(after.energy)


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("mace", {}, "unknown potential 'mace'"),
        ("chgnet", {"device": "cpu"}, r"unknown potential 'chgnet' with settings"),
        ("ase:mace", {}, "'ase:mace' is not of the form"),
        ("ase:no_such_module:f", {}, "module 'no_such_module' cannot be imported"),
        ("ase:ase.calculators.emt:Emt", {}, "has no callable 'Emt'"),
        ("ase:ase.build:bulk", {"x": 1}, "bulk.* failed: TypeError"),
    ],
)
def test_what_is_wrong_is_said(name, settings, message):
    with pytest.raises(UserError, match=message):
        load_potential(name, **settings)

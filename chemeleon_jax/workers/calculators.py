"""ASE calculators by name; energies, and relaxation with one.

A calculator holds the state of one crystal at a time, and may hang or crash: each
worker process has its own, and takes one crystal after another.
"""

import importlib
import math
from functools import partial
from typing import Any, NamedTuple

import ase
from pymatgen.core import Lattice, Structure

from chemeleon_jax.errors import UserError
from chemeleon_jax.workers.outcome import Status
from chemeleon_jax.workers.pool import WorkerPool

MAX_STEPS = 200
TIME_LIMIT = 600.0  # s, of a crystal, making the calculator included


class RelaxedStructure(NamedTuple):
    """What became of a crystal whose energy was minimised."""

    structure: Structure  # as far as it came
    energy: float  # eV/atom; NaN where the potential gave none
    initial_energy: float
    steps: int
    converged: bool
    problem: str = ""  # why it stayed where it was
    rmsd: float = math.nan  # Å, of the atoms within the cell, see `potentials.relax`


def find_callable(name: str):
    """The callable that makes a calculator.

    Args:
      name: "ase:module:callable".

    Raises:
      UserError: the module or callable is missing.
    """
    module_name, callable_name = split_name(name)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"potential {name!r}: module {module_name!r} cannot be imported "
            f"({error}); install the package that has it"
        ) from error
    make = getattr(module, callable_name, None)
    if not callable(make):
        raise UserError(
            f"potential {name!r}: module {module_name!r} has no callable "
            f"{callable_name!r}"
        )
    return make


def check(name: str, settings: dict[str, Any], *, pool: WorkerPool) -> None:
    """Makes a calculator in a worker, as the first to ask for it.

    Args:
      name: "ase:module:callable".
      settings: keyword arguments, such as {"device": "cpu"}.
      pool: worker processes.

    Raises:
      UserError: it cannot be made.
    """
    outcome = pool.call(has_calculator, (name, settings), time_limit=TIME_LIMIT)
    if outcome.status != Status.OK:
        call = f"{split_name(name)[1]}(**{settings})"
        raise UserError(f"potential {name!r}: {call} failed: {outcome.message}")


def split_name(name: str) -> tuple[str, str]:
    """Module and callable of "ase:module:callable"."""
    module_name, _, callable_name = name.removeprefix("ase:").partition(":")
    if not (module_name and callable_name):
        raise UserError(f"potential {name!r} is not of the form 'ase:module:callable'")
    return module_name, callable_name


def energies(
    crystals: list[tuple],
    *,
    potential: str,
    settings: dict[str, Any],
    pool: WorkerPool,
) -> list[float]:
    """Energies in eV/atom, in worker processes; NaN where the calculator has none.

    Args:
      crystals: atomic numbers [n], fractional coordinates [n, 3] and lattice vectors
        [3, 3] in Å, of each.
      potential: "ase:module:callable".
      settings: of the callable.
      pool: worker processes, whose time limit is that of an energy.
    """
    task = partial(energy_of, potential=potential, settings=settings)
    outcomes = pool.map(task, crystals, chunk_size=1)
    return [o.value if o.status == Status.OK else math.nan for o in outcomes]


def energy_of(crystal: tuple, *, potential: str, settings: dict[str, Any]) -> float:
    """Energy in eV/atom; runs in a worker, and raises what the calculator raises."""
    types, frac_coords, lattice = crystal
    atoms = ase.Atoms(types, scaled_positions=frac_coords, cell=lattice, pbc=True)
    atoms.calc = _calculator(potential, settings)
    return float(atoms.get_potential_energy()) / len(types)


def has_calculator(name_and_settings: tuple[str, dict[str, Any]]) -> bool:
    """Makes a calculator unless the process has it; runs in a worker."""
    return _calculator(*name_and_settings) is not None


def relax(
    structures: list[Structure],
    *,
    potential: str,
    pool: WorkerPool,
    max_force: float,
    max_steps: int = MAX_STEPS,
    time_limit: float = TIME_LIMIT,
) -> list[RelaxedStructure]:
    """Relaxes ordered crystals, positions and cells, with an ASE calculator in workers.

    A crystal that the calculator fails for, or that takes longer than `time_limit` s,
    stays where it is and says so; nothing that it does ends the program. `max_force` is
    in eV/Å on an atom, and in eV per atom and unit of strain on the cell.
    """
    task = partial(
        relax_one, potential=potential, max_steps=max_steps, max_force=max_force
    )
    outcomes = pool.map(task, structures, time_limit=time_limit, chunk_size=1)
    return [
        outcome.value
        if outcome.status == Status.OK
        else RelaxedStructure(
            s, math.nan, math.nan, 0, False, Status(outcome.status).name.lower()
        )
        for s, outcome in zip(structures, outcomes, strict=True)
    ]


def to_atoms(structure: Structure) -> ase.Atoms:
    """An ordered crystal as ASE has it."""
    return ase.Atoms(
        structure.atomic_numbers,
        scaled_positions=structure.frac_coords,
        cell=structure.lattice.matrix,
        pbc=True,
    )


def relax_one(
    structure: Structure, *, potential: str, max_steps: int, max_force: float
) -> RelaxedStructure:
    """Relaxes a crystal by FIRE, its cell by way of the Frechet filter.

    Runs in a worker.

    Raises:
      ValueError: an energy that is not finite; and whatever the calculator raises.
    """
    # A second of imports that only workers need.
    from ase.filters import FrechetCellFilter
    from ase.optimize import FIRE

    atoms = to_atoms(structure)
    atoms.calc = _calculator(potential, {})
    optimizer = FIRE(FrechetCellFilter(atoms), logfile=None)
    energies, converged = [], False
    for done in optimizer.irun(max_force, max_steps):
        energy = atoms.get_potential_energy() / len(atoms)
        if not math.isfinite(energy):
            raise ValueError(f"energy is {energy} after {len(energies)} steps")
        energies.append(energy)
        converged = bool(done)
    frac_coords = atoms.get_scaled_positions(wrap=False)
    moved = frac_coords - structure.frac_coords
    moved = (moved - moved.mean(0)) @ atoms.cell.array
    return RelaxedStructure(
        Structure(Lattice(atoms.cell.array), structure.species, frac_coords % 1.0),
        energies[-1],
        energies[0],
        len(energies) - 1,
        converged,
        rmsd=math.sqrt((moved**2).sum(1).mean()),
    )


_calculators: dict[str, Any] = {}  # this process's own


def _calculator(potential: str, settings: dict[str, Any]):
    key = repr((potential, sorted(settings.items())))
    if key not in _calculators:
        _calculators[key] = find_callable(potential)(**settings)
    return _calculators[key]

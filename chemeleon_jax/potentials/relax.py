"""Relaxation of positions and cells with CHGNet, many crystals at once, in JAX.

FIRE (Bitzek et al., Phys. Rev. Lett. 97, 170201, 2006), with the cell as further
degrees of freedom (Tadmor et al., Phys. Rev. B 59, 235, 1999): with C the first cell,
atoms move as u, in the frame of C, and the cell is C F^T. F, scaled by the number of
atoms, moves at the pace of an atom.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from pymatgen.core import Lattice, Structure

from chemeleon_jax.potentials import chgnet
from chemeleon_jax.potentials.graph import Capacity
from chemeleon_jax.potentials.types import Status
from chemeleon_jax.workers.calculators import Relaxed

MAX_FORCE = 0.05  # eV/Å on an atom, and eV per atom and unit of strain on the cell
MAX_STEPS = 200
BATCH = 32  # crystals at once; one that is done makes room for the next
MIN_WIDTH = 20  # atoms: crystals up to this size are one compilation

DT, DT_MAX, MAX_MOVE = 0.1, 1.0, 0.2  # time steps; Å that a crystal moves in a step
MIN_STEPS, GROW, SHRINK, MIX, MIX_DECAY = 5, 1.1, 0.5, 0.1, 0.99


@struct.dataclass
class _State:
    """B crystals on their way."""

    cell: jax.Array  # [B, 3, 3] C, Å
    atom_types: jax.Array  # [B, N]
    mask: jax.Array  # [B, N]
    u: jax.Array  # [B, N, 3] Å
    strain: jax.Array  # [B, 3, 3] (F - 1) n
    speed: jax.Array  # [B, N + 3, 3] of both
    dt: jax.Array  # [B]
    mix: jax.Array  # [B]
    downhill: jax.Array  # [B] steps in a row
    steps: jax.Array  # [B]
    energy: jax.Array  # [B] eV/atom
    initial_energy: jax.Array  # [B]
    converged: jax.Array  # [B]
    done: jax.Array  # [B] True of an empty row too


def relax(
    structures: list[Structure],
    *,
    max_steps: int = MAX_STEPS,
    max_force: float = MAX_FORCE,
    batch_size: int = BATCH,
    capacity: Capacity | None = None,
) -> list[Relaxed]:
    """Relaxes crystals to a minimum of CHGNet's energy.

    A crystal for which the potential has no energy, at the start or on the way, stays
    where it is and counts as not converged.

    Args:
      structures: ordered crystals.
      max_steps: at most.
      max_force: see `MAX_FORCE`.
      batch_size: crystals at once.
      capacity: of the graph that is evaluated at once, see `chgnet.energies`.
    """
    if not structures:
        return []
    width = max(-(-max(len(s) for s in structures) // 4) * 4, MIN_WIDTH)
    state = _empty_state(batch_size, width)
    limits = {"max_steps": max_steps, "max_force": max_force}
    limits["capacity"] = capacity or Capacity.for_width(width)
    in_row: dict[int, int] = {}
    results: dict[int, Relaxed] = {}
    waiting = list(reversed(range(len(structures))))
    while len(results) < len(structures):
        state = jax.tree.map(np.array, state)
        for row in np.flatnonzero(state.done):
            if row in in_row:
                i = in_row.pop(row)
                results[i] = _result(state, row, structures[i])
                state.mask[row] = False
            if waiting:
                in_row[row] = waiting.pop()
                _enter(state, row, structures[in_row[row]])
        if in_row:
            state = jax.device_get(_step(chgnet.load_params(), state, **limits))
    return [results[i] for i in range(len(structures))]


def _empty_state(batch: int, width: int) -> _State:
    shapes = {"u": (width, 3), "speed": (width + 3, 3)}
    shapes |= {"atom_types": (width,), "mask": (width,)}
    shapes |= dict.fromkeys(("cell", "strain"), (3, 3))
    types = {"atom_types": np.int32, "downhill": np.int32, "steps": np.int32}
    types |= {"mask": bool, "converged": bool, "done": bool}
    state = _State(
        **{
            name: np.zeros((batch, *shapes.get(name, ())), types.get(name, np.float32))
            for name in _State.__dataclass_fields__
        }
    )
    state.done[:] = True
    state.cell[:] = np.eye(3)
    return state


def _enter(state: _State, row: int, structure: Structure) -> None:
    """Puts a crystal at rest into a row."""
    for x in jax.tree.leaves(state):
        x[row] = 0
    n = len(structure)
    state.cell[row] = structure.lattice.matrix
    state.u[row, :n] = structure.cart_coords
    state.atom_types[row, :n] = structure.atomic_numbers
    state.mask[row, :n] = True
    state.dt[row], state.mix[row] = DT, MIX


def _result(state: _State, row: int, structure: Structure) -> Relaxed:
    n = len(structure)
    deformation = np.eye(3) + np.asarray(state.strain[row], np.float64) / n
    cell = np.asarray(state.cell[row], np.float64)
    frac = np.asarray(state.u[row, :n], np.float64) @ np.linalg.inv(cell)
    return Relaxed(
        Structure(Lattice(cell @ deformation.T), structure.species, frac),
        float(state.energy[row]),
        float(state.initial_energy[row]),
        int(state.steps[row]),
        bool(state.converged[row]),
    )


@partial(jax.jit, static_argnames=("max_steps", "max_force", "capacity"))
def _step(
    params, state: _State, *, max_steps: int, max_force: float, capacity: Capacity
) -> _State:
    """Forces where the crystals are; then a step of FIRE, unless a crystal is done."""
    count = jnp.maximum(state.mask.sum(1), 1)
    energy, status, forces, size = _forces(params, state, count, capacity)
    found = (status == Status.OK) & jnp.isfinite(size)
    first = state.steps == 0
    converged = found & (size < max_force)
    done = converged | ~found | (state.steps >= max_steps)
    moved = _fire(state, forces, count)
    stays = state.done | done
    # Where the potential fails on the way, the last energy is of another place.
    measured = jnp.where(found, energy, jnp.nan)
    return jax.tree.map(
        lambda old, new: jnp.where(
            jnp.reshape(stays, (-1,) + (1,) * (old.ndim - 1)), old, new
        ),
        state,
        moved,
    ).replace(
        energy=jnp.where(state.done, state.energy, measured),
        initial_energy=jnp.where(first & ~state.done, measured, state.initial_energy),
        converged=jnp.where(state.done, state.converged, converged),
        done=stays,
    )


def _forces(params, state: _State, count, capacity: Capacity):
    """Energy [B] eV/atom, status [B], forces [B, N + 3, 3], and their largest [B]."""
    eye = jnp.eye(3)[None]
    inverse = jnp.linalg.inv(state.cell)

    def total(u, strain):
        frac = u @ inverse
        deformation = eye + strain / count[:, None, None]
        lattice = state.cell @ jnp.swapaxes(deformation, 1, 2)
        energy, status = chgnet.batch_energy(  # pyright: ignore
            params,
            frac - jax.lax.stop_gradient(jnp.floor(frac)),
            lattice,
            state.atom_types,
            state.mask & ~state.done[:, None],
            capacity,
        )
        found = jnp.where(status == Status.OK, energy * count, 0.0)
        return found.sum(), (energy, status)

    differentiate = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
    (_, (energy, status)), gradient = differentiate(state.u, state.strain)
    deformation = eye + state.strain / count[:, None, None]
    # Of u to forces on the atoms where they really are.
    on_atoms = gradient[0] @ jnp.linalg.inv(deformation)
    size = jnp.maximum(
        jnp.sqrt((on_atoms**2).sum(-1)).max(1),
        jnp.sqrt((gradient[1] ** 2).sum(-1)).max(1),
    )
    return energy, status, -jnp.concatenate(gradient, 1), size


def _fire(state: _State, forces, count) -> _State:
    """One step of FIRE for each crystal."""
    power = (forces * state.speed).sum((1, 2))
    down = power > 0

    def norm(x):
        return jnp.sqrt((x**2).sum((1, 2)))

    turn = state.mix * norm(state.speed) / jnp.maximum(norm(forces), 1e-12)
    speed = _scale(1 - state.mix, state.speed) + _scale(turn, forces)
    speed = jnp.where(down[:, None, None], speed, 0.0)
    faster = down & (state.downhill > MIN_STEPS)
    dt = jnp.where(faster, jnp.minimum(state.dt * GROW, DT_MAX), state.dt)
    # A crystal at rest has not gone uphill.
    dt = jnp.where(down | (state.steps == 0), dt, state.dt * SHRINK)
    speed = speed + _scale(dt, forces)
    move = _scale(dt, speed)
    move = _scale(jnp.minimum(1.0, MAX_MOVE / jnp.maximum(norm(move), 1e-12)), move)
    mix = jnp.where(faster, state.mix * MIX_DECAY, state.mix)
    return state.replace(
        u=state.u + move[:, :-3],
        strain=state.strain + move[:, -3:],
        speed=speed,
        dt=dt,
        mix=jnp.where(down, mix, MIX),
        downhill=jnp.where(down, state.downhill + 1, 0),
        steps=state.steps + 1,
    )


def _scale(factor, x):
    return factor[:, None, None] * x

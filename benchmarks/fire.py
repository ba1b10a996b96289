"""FIRE with the cell, many crystals at once: what relaxations are measured against.

Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006). The strain, times the number of
atoms, moves as one atom more (Tadmor et al., Phys. Rev. B 59, 235, 1999). Energies,
gradients and stop are those of `chemeleon_jax.potentials.relax`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.potentials import relax
from chemeleon_jax.potentials.types import Status

DT, DT_MAX, MAX_MOVE = 0.1, 1.0, 0.2  # time steps; Å that a crystal moves in a step
MIN_STEPS, GROW, SHRINK, MIX, MIX_DECAY = 5, 1.1, 0.5, 0.1, 0.99


@struct.dataclass
class State:
    """Crystals on their way. Axes: B crystals, N atoms."""

    trial_coords: jax.Array  # [B, N, 3] where they are
    trial_lattice: jax.Array  # [B, 3, 3]
    speed: jax.Array  # [B, 3 N + 6]
    dt: jax.Array  # [B]
    mix: jax.Array  # [B]
    downhill: jax.Array  # [B] steps in a row
    steps: jax.Array  # [B] energies
    energy: jax.Array  # [B] eV/atom
    converged: jax.Array  # [B]
    done: jax.Array  # [B]


def relax_by_fire(crystals: CrystalBatch, energies, steps: int) -> State:
    """Minimises the energies of crystals; jits."""
    crystals = jax.tree.map(jnp.asarray, crystals)
    types, mask = crystals.atom_types, crystals.mask
    batch, width = mask.shape
    zero, count = jnp.zeros(batch), jnp.maximum(mask.sum(1), 1)
    start = State(
        crystals.frac_coords, jnp.asarray(crystals.lattice, jnp.float32),
        jnp.zeros((batch, 3 * width + 6)), zero + DT, zero + MIX,
        zero.astype(int), zero.astype(int), zero, zero > 0, ~mask.any(1),
    )  # fmt: skip

    def step(state: State) -> State:
        energy, status, gradient = relax._measure(energies, state, types, mask)
        force = jax.vmap(relax._largest_force)(gradient, count)
        ok = (status == Status.OK) & jnp.isfinite(force)
        converged = ok & (force < relax.MAX_FORCE)
        taken = state.steps + 1
        state_after = jax.vmap(_move)(state, gradient, count).replace(
            energy=energy / count,
            converged=converged,
            steps=taken,
            done=converged | ~ok | (taken >= steps),
        )
        # One that converges here stays here.
        here = {"trial_coords", "trial_lattice"}
        moved = {name: getattr(state_after, name) for name in here}
        kept = {
            name: _where(state_after.done, getattr(state, name), value)
            for name, value in moved.items()
        }
        return jax.tree.map(
            partial(_where, state.done), state, state_after.replace(**kept)
        )

    return lax.while_loop(lambda state: ~state.done.all(), step, start)


def _where(chosen, yes, no):
    return jnp.where(chosen.reshape(-1, *[1] * (yes.ndim - 1)), yes, no)


def _move(state: State, gradient, count) -> State:
    """One step of a crystal; its last six entries are the strain."""
    pace = jnp.ones(len(gradient)).at[-6:].set(1 / count)
    forces = -gradient * pace
    down = forces @ state.speed > 0
    turn = state.mix * _norm(state.speed) / jnp.maximum(_norm(forces), 1e-12)
    speed = jnp.where(down, (1 - state.mix) * state.speed + turn * forces, 0.0)
    faster = down & (state.downhill > MIN_STEPS)
    dt = jnp.where(faster, jnp.minimum(state.dt * GROW, DT_MAX), state.dt)
    # A crystal at rest has not gone uphill.
    dt = jnp.where(down | (state.steps == 0), dt, state.dt * SHRINK)
    speed = speed + dt * forces
    move = dt * speed
    move *= jnp.minimum(1.0, MAX_MOVE / jnp.maximum(_norm(move), 1e-12))
    on_atoms, strain = relax._split(move * pace)
    stretch = jnp.eye(3) + strain + 0.5 * strain @ strain
    mix = jnp.where(faster, state.mix * MIX_DECAY, state.mix)
    inverse = jnp.linalg.inv(state.trial_lattice)
    return state.replace(
        trial_coords=state.trial_coords + on_atoms @ inverse,
        trial_lattice=state.trial_lattice @ stretch,
        speed=speed,
        dt=dt,
        mix=jnp.where(down, mix, MIX),
        downhill=jnp.where(down, state.downhill + 1, 0),
    )


def _norm(x):
    return jnp.sqrt((x**2).sum())

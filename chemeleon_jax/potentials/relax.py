"""Relaxation of positions and cells with any potential in JAX, many crystals at once.

Each crystal goes its own way by L-BFGS (Nocedal, Math. Comput. 35, 773, 1980) with a
model of its stiffness as first Hessian and a trust radius in place of line searches:
one energy and gradient a step. The cell is among the degrees of freedom, as a symmetric
strain of where it stands: a step (d, e) takes positions x to (x + d)(1 + e + e^2 / 2)
and the lattice vectors L to L (1 + e + e^2 / 2).
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from chemeleon_jax.data.lattice import inverse, lattice_parameters
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.potentials.stiffness import STRAINS, invert, model_hessian
from chemeleon_jax.potentials.types import Potential, Status, per_device

MAX_FORCE = 0.05  # eV/Å on an atom, and eV per atom and unit of strain on the cell
MAX_STEPS = 100

# Still that far above the hull after so many steps, a crystal is given up. Of 281
# samples of `mini:ldm` 41 were, and a quarter of all energies saved; of the 172 that
# end within 0.1 eV/atom of the hull none was lost, of those within 0.2 four.
HOPELESS, PATIENCE = 0.5, 12  # eV/atom, steps

MEMORY = 8  # steps that the curvature is taken from
REFRESH = 2  # steps between two models of the stiffness
MODELED_ATOMS = 320  # at once: groups that are done cost nothing
RADIUS, MAX_RADIUS, MIN_RADIUS = 0.15, 0.4, 1e-3  # Å that an atom moves in a step
CELL_RADIUS = 3.0  # Å that count as much as a strain of 1
GROW, SHRINK = 2.0, 0.4  # of the radius, after a good step and a bad one
SOFTEST, STIFFEST = 20.0, 0.05  # bounds of the inverse stiffness, by the model's
CURVATURE = 0.2  # least share of the expected curvature, see `_damped`
NOISE = 1e-5  # eV/atom that the energy may rise


@struct.dataclass
class Relaxed:
    """What became of crystals whose energy was minimised. Axes: B crystals."""

    crystals: CrystalBatch  # as far as they came
    energy: jax.Array  # [B] eV/atom; NaN where the potential gave none at the start
    initial_energy: jax.Array  # [B] eV/atom
    max_force: jax.Array  # [B] what is left, as in `MAX_FORCE`
    steps: jax.Array  # [B] energies, each with its gradient, that it took
    converged: jax.Array  # [B] bool
    given_up: jax.Array  # [B] bool, see `relax`
    status: jax.Array  # [B] `Status` of the start
    # [B] Å: root mean square over the atoms of how far they moved within the cell, by
    # fractional coordinates and the relaxed cell, the mean displacement subtracted:
    # neither a deformation of the cell nor a translation counts.
    rmsd: jax.Array


@struct.dataclass
class _Path:
    """A crystal on its way. Axes: N atoms, M = `MEMORY` steps, D = 3 N + 6."""

    frac_coords: jax.Array  # [N, 3] where it is, not wrapped
    lattice: jax.Array  # [3, 3] Å
    energy: jax.Array  # [] eV
    gradient: jax.Array  # [D] eV/Å on the atoms, eV on the strain
    max_force: jax.Array  # []
    trial_coords: jax.Array  # [N, 3] where the energy is asked for next
    trial_lattice: jax.Array  # [3, 3]
    move: jax.Array  # [D] the step there
    expected: jax.Array  # [D] by how much the gradient should change on it
    radius: jax.Array  # [] Å
    moves: jax.Array  # [M, D] past steps, the latest last
    changes: jax.Array  # [M, D] of the gradient on them
    weights: jax.Array  # [M] 1 / (move . change), 0 for none
    inverse: jax.Array  # [D, D] of the model's Hessian
    initial_energy: jax.Array  # [] eV
    status: jax.Array  # []
    steps: jax.Array  # []
    converged: jax.Array  # []
    given_up: jax.Array  # []
    done: jax.Array  # []


def relax(
    crystals: CrystalBatch,
    potential: Potential,
    steps: int = MAX_STEPS,
    *,
    max_force: float = MAX_FORCE,
    hull_energy: jax.Array | None = None,
) -> Relaxed:
    """Relaxes crystals to a minimum of their energy; jits, on one device or many.

    A crystal's way does not depend on the others of its batch. One for which the
    potential has no energy at the start stays where it is; where it has none on the
    way, the crystal turns back.

    Args:
      crystals: `CrystalBatch` [B, N].
      potential: whose energies have gradients.
      steps: energies of a crystal, at most.
      max_force: a crystal whose forces are all below is done, see `MAX_FORCE`.
      hull_energy: [B] eV/atom, of the hull at each composition. Where it is given, and
        not NaN, a crystal that is still more than `HOPELESS` above it after `PATIENCE`
        steps is given up.

    Returns:
      `Relaxed`, atoms in the order they had.
    """
    crystals.assert_shapes()
    run = partial(_relax, energies=potential.energies, steps=steps, max_force=max_force)
    if hull_energy is None:
        hull_energy = jnp.full(len(crystals.mask), jnp.nan)
    chex.assert_shape(hull_energy, (len(crystals.mask),))
    return per_device(run)(crystals, hull_energy)


def _relax(crystals: CrystalBatch, hull_energy, *, energies, steps, max_force):
    crystals = jax.tree.map(jnp.asarray, crystals)
    limit = hull_energy + HOPELESS
    types, mask = crystals.atom_types, crystals.mask
    lattice = jnp.asarray(crystals.lattice, crystals.frac_coords.dtype)
    start = jax.vmap(_start)(crystals.frac_coords, lattice, mask)

    def step(carry):
        k, path = carry
        path = lax.cond(
            k % REFRESH == 0, _with_model, lambda p, *_: p, path, types, mask
        )
        found = _measure(energies, path, types, mask)
        advance = partial(_advance, max_steps=steps, max_force=max_force)
        moved = jax.vmap(advance)(path, mask, limit, *found)
        return k + 1, jax.vmap(_unless_done)(path, moved)

    def unfinished(carry):
        return ~carry[1].done.all()

    _, path = lax.while_loop(unfinished, step, (jnp.int32(0), start))
    return _result(crystals, path)


def _start(frac_coords, lattice, mask) -> _Path:
    n = 3 * len(mask) + 6
    zero, false = jnp.float32(0), jnp.array(False)
    nothing, past = jnp.zeros(n), jnp.zeros((MEMORY, n))
    return _Path(
        frac_coords, lattice, zero, nothing, jnp.float32(jnp.inf),
        frac_coords, lattice, nothing, nothing, jnp.float32(RADIUS),
        past, past, jnp.zeros(MEMORY), jnp.eye(n),
        zero, jnp.int32(Status.NOT_FINITE), jnp.int32(0), false, false, ~mask.any(),
    )  # fmt: skip


def _with_model(path: _Path, atom_types, mask) -> _Path:
    """The stiffness of crystals where they are, of a few at a time."""
    batch, width = mask.shape
    few = min(max(MODELED_ATOMS // width, 1), batch)
    order = jnp.argsort(path.done, stable=True)  # whole groups are done together
    groups = jnp.resize(order, (-(-batch // few), few))

    def model(rows):
        crystals = path.frac_coords[rows], path.lattice[rows], atom_types[rows]
        return jax.vmap(invert)(jax.vmap(model_hessian)(*crystals, mask[rows]))

    def unless_done(rows):
        old = path.inverse[rows]
        return lax.cond(path.done[rows].all(), lambda _: old, model, rows)

    inverse = lax.map(unless_done, groups).reshape(-1, *path.inverse.shape[1:])
    return path.replace(inverse=inverse[jnp.argsort(order)])


def _measure(energies, path: _Path, atom_types, mask):
    """Energy [B] eV, status [B] and gradient [B, D] at the trial positions."""
    # Those that are done go last, without atoms: they take no place in a graph.
    order = jnp.argsort(path.done, stable=True)
    active = mask & ~path.done[:, None]
    frac_coords, lattice, atom_types, active = (
        x[order] for x in (path.trial_coords, path.trial_lattice, atom_types, active)
    )

    def total(frac_coords, lattice):
        crystals = CrystalBatch(
            atom_types, frac_coords, *lattice_parameters(lattice), active
        )
        energy, status = energies(crystals)
        energy = energy * active.sum(1)
        return jnp.where(status == Status.OK, energy, 0.0).sum(), (energy, status)

    differentiate = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
    (_, (energy, status)), (on_coords, on_lattice) = differentiate(frac_coords, lattice)
    on_atoms = on_coords @ jnp.swapaxes(inverse(lattice), 1, 2)
    on_strain = jnp.swapaxes(lattice, 1, 2) @ on_lattice
    on_strain = jnp.einsum("kij,bij->bk", STRAINS, on_strain)
    gradient = jnp.concatenate([on_atoms.reshape(len(mask), -1), on_strain], 1)
    back = jnp.argsort(order)
    return energy[back], status[back], gradient[back]


def _advance(
    path: _Path, mask, limit, energy, status, gradient, *, max_steps, max_force
) -> _Path:
    """What a crystal makes of the energy at its trial positions, and the next ones."""
    num_atoms = mask.sum()
    first = path.steps == 0
    force = _largest_force(gradient, num_atoms)
    ok = (status == Status.OK) & jnp.isfinite(energy) & jnp.isfinite(force)
    gradient = jnp.where(ok, gradient, 0.0)
    rise, noise = energy - path.energy, NOISE * num_atoms
    accepted = ok & (first | (rise <= noise))

    # The gradient at a place that was refused tells of the curvature all the same.
    change = _damped(gradient - path.gradient, path.move, path.expected)
    known = ok & ~first & (path.move @ change > 1e-10)

    def remember(past, latest):
        return jnp.where(known, jnp.roll(past, -1, 0).at[-1].set(latest), past)

    product = jnp.where(known, path.move @ change, 1.0)
    path = path.replace(
        moves=remember(path.moves, path.move),
        changes=remember(path.changes, change),
        weights=remember(path.weights, 1 / product),
        radius=jnp.where(first, RADIUS, _next_radius(path, rise, accepted, noise)),
    )

    def arrive(new, old):
        return jnp.where(accepted, new, old)

    path = path.replace(
        frac_coords=arrive(path.trial_coords, path.frac_coords),
        lattice=arrive(path.trial_lattice, path.lattice),
        energy=arrive(energy, path.energy),
        gradient=arrive(gradient, path.gradient),
        max_force=arrive(force, path.max_force),
        initial_energy=jnp.where(first, energy, path.initial_energy),
        status=jnp.where(first, jnp.where(ok, Status.OK, status), path.status),
        steps=path.steps + 1,
    )
    converged = (path.status == Status.OK) & (path.max_force < max_force)
    failed = (path.status != Status.OK) | (path.radius < MIN_RADIUS)
    hopeless = (path.steps >= PATIENCE) & (path.energy > limit * num_atoms)
    given_up = ~converged & ~failed & hopeless
    done = converged | failed | given_up | (path.steps >= max_steps)
    return _set_out(path).replace(converged=converged, given_up=given_up, done=done)


def _unless_done(path: _Path, moved: _Path) -> _Path:
    return jax.tree.map(lambda old, new: jnp.where(path.done, old, new), path, moved)


def _damped(change, move, expected):
    """Change of the gradient along a move, positive curvature seen to.

    Powell's damping (Math. Program. 14, 224, 1978): what is short of `CURVATURE` of the
    expected curvature is made up from the expected change.
    """
    found, wanted = move @ change, move @ expected
    short = found < CURVATURE * wanted
    gap = jnp.where(short, wanted - found, 1.0)
    share = jnp.where(short, (1 - CURVATURE) * wanted / gap, 1.0)
    return share * change + (1 - share) * expected


def _next_radius(path: _Path, rise, accepted, noise):
    """Trust radius after a step: larger where the energy fell as the model said.

    Close to a minimum a step's fall is less than the noise of energies, which then say
    nothing of the model.
    """
    length = _length(path.move)
    fall = -(path.move @ path.gradient + 0.5 * path.move @ path.expected)
    good = (-rise > 0.5 * fall) & (length > 0.8 * path.radius)
    grown = jnp.where(good, jnp.minimum(path.radius * GROW, MAX_RADIUS), path.radius)
    grown = jnp.where(-rise < 0.1 * fall - noise, length, grown)
    return jnp.where(accepted, grown, SHRINK * length)


def _set_out(path: _Path) -> _Path:
    """The next step: quasi-Newton, shortened to the radius."""
    latest_move, latest_change = path.moves[-1], path.changes[-1]
    softness = latest_change @ (path.inverse @ latest_change)
    scale = (latest_move @ latest_change) / jnp.maximum(softness, 1e-12)
    scale = jnp.where(path.weights[-1] > 0, jnp.clip(scale, STIFFEST, SOFTEST), 1.0)

    past = path.moves, path.changes, path.weights

    def back(q, step):
        move, change, weight = step
        share = weight * (move @ q)
        return q - share * change, share

    q, shares = lax.scan(back, path.gradient, past, reverse=True)

    def forth(r, step):
        (move, change, weight), share = step
        return r + move * (share - weight * (change @ r)), None

    direction, _ = lax.scan(forth, scale * (path.inverse @ q), (past, shares))
    length = _length(direction)
    share = jnp.minimum(1.0, path.radius / jnp.maximum(length, 1e-12))
    move = -share * direction
    on_atoms, strain = _split(move)
    stretch = jnp.eye(3) + strain + 0.5 * strain @ strain
    return path.replace(
        move=move,
        expected=-share * path.gradient,
        trial_coords=path.frac_coords + on_atoms @ inverse(path.lattice),
        trial_lattice=path.lattice @ stretch,
    )


def _split(x):
    """Part of the atoms [N, 3] and symmetric matrix [3, 3] of a vector [3 N + 6]."""
    return x[:-6].reshape(-1, 3), jnp.einsum("k,kij->ij", x[-6:], STRAINS)


def _norms(x):
    return jnp.sqrt((x**2).sum(-1))


def _length(move):
    """How far the farthest atom goes, in Å, the cell's strain weighed in."""
    on_atoms, _ = _split(move)
    return jnp.maximum(_norms(on_atoms).max(), CELL_RADIUS * _norms(move[-6:]))


def _largest_force(gradient, num_atoms):
    on_atoms, on_cell = _split(gradient)
    on_cell = on_cell / jnp.maximum(num_atoms, 1)
    return jnp.maximum(_norms(on_atoms).max(), _norms(on_cell).max())


def _result(crystals: CrystalBatch, path: _Path) -> Relaxed:
    mask = crystals.mask
    count = jnp.maximum(mask.sum(1), 1)
    ok = path.status == Status.OK
    lengths, angles = lattice_parameters(path.lattice)
    moved = jnp.where(mask[..., None], path.frac_coords - crystals.frac_coords, 0.0)
    moved = moved - moved.sum(1, keepdims=True) / count[:, None, None]
    moved = jnp.where(mask[..., None], moved @ path.lattice, 0.0)
    return Relaxed(
        crystals=crystals.replace(
            frac_coords=path.frac_coords - jnp.floor(path.frac_coords),
            lengths=jnp.where(ok[:, None], lengths, crystals.lengths),
            angles=jnp.where(ok[:, None], angles, crystals.angles),
        ),
        energy=jnp.where(ok, path.energy / count, jnp.nan),
        initial_energy=jnp.where(ok, path.initial_energy / count, jnp.nan),
        max_force=path.max_force,
        steps=path.steps,
        converged=path.converged,
        given_up=path.given_up,
        status=path.status,
        rmsd=jnp.where(ok, jnp.sqrt((moved**2).sum((1, 2)) / count), jnp.nan),
    )

"""The glossary of axes, and the data that crosses `jit`.

Axes:
  G  groups (crystals of one group share their atom count)
  K  crystals per group
  B  crystals of a batch, B = G * K
  N  atoms, padded
  K  also: symmetry operations, padded with rotations of zero
  L  latent channels
  D  model width
  T  sampling steps
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from chemeleon_jax.data.lattice import lattice_matrix


@struct.dataclass
class CrystalBatch:
    """Crystals, padded to N atoms: real atoms first, then atomic number 0."""

    atom_types: jax.Array  # [B, N]     atomic numbers, 1..99
    frac_coords: jax.Array  # [B, N, 3]  fractional coordinates
    lengths: jax.Array  # [B, 3]     cell lengths, Å
    angles: jax.Array  # [B, 3]     cell angles, degrees
    mask: jax.Array  # [B, N]     True on real atoms

    def assert_shapes(self) -> None:
        """Raises an AssertionError unless B and N are those of the mask everywhere."""
        chex.assert_rank(self.mask, 2, custom_message="mask [B, N]")
        size, width = self.mask.shape
        chex.assert_shape(self.atom_types, (size, width))
        chex.assert_shape(self.frac_coords, (size, width, 3))
        chex.assert_shape([self.lengths, self.angles], (size, 3))

    @property
    def num_atoms(self) -> jax.Array:
        """Atoms per crystal, [B]."""
        return self.mask.sum(-1)

    @property
    def lattice(self) -> jax.Array:
        """Lattice vectors as rows, Å, [B, 3, 3]."""
        return lattice_matrix(self.lengths, self.angles)


@struct.dataclass
class SymmetryTemplate:
    """Symmetry that B crystals are to have, and the sites that it acts on.

    A displacement u of the sites keeps the symmetry if u_i = R_k u_j for every
    operation k, which takes atom i to j = `images[k, i]`.
    """

    frac_coords: jax.Array  # [B, N, 3] sites that have the symmetry
    rotations: jax.Array  # [B, K, 3, 3] int8, R_k, the operations' inverses, of columns
    images: jax.Array  # [B, K, N] int8
    elements: jax.Array  # [B, N] atomic numbers asked for, 0 for any

    def at_width(self, width: int) -> "SymmetryTemplate":
        """The same of crystals of at most `width` atoms."""
        return SymmetryTemplate(
            self.frac_coords[:, :width],
            self.rotations,
            self.images[..., :width],
            self.elements[:, :width],
        )


@struct.dataclass
class Step:
    """One denoising step, or S of them stacked on a leading axis."""

    timestep: jax.Array  # []  of the respaced schedule: T-1 first, 0 last
    z: jax.Array  # [B, N, L]  latent before the step
    z_next: jax.Array  # [B, N, L]  latent after it
    log_prob: jax.Array  # [B]  under the policy that took it, nats per coordinate

    def crystals(self, rows: jax.Array, width: int | None = None) -> "Step":
        """The part of some crystals, of S stacked steps."""
        z, z_next = (x[:, rows, :width] for x in (self.z, self.z_next))
        return Step(self.timestep, z, z_next, self.log_prob[:, rows])


@struct.dataclass
class NoisyLatents:
    """Clean latents and what noises them, or M such copies on a leading axis."""

    timestep: jax.Array  # [B]  of the schedule that models are trained on
    z: jax.Array  # [B, N, L]  clean
    noise: jax.Array  # [B, N, L]

    def crystals(self, rows: jax.Array, width: int | None = None) -> "NoisyLatents":
        """The part of some crystals, of M copies."""
        z, noise = (x[:, rows, :width] for x in (self.z, self.noise))
        return NoisyLatents(self.timestep[:, rows], z, noise)


@struct.dataclass
class Trajectory:
    """What `sample_group` did, in sampling order; or what of it is trained on.

    S steps: all T but, with DDIM, the last, whose density is a point. None where they
    were not recorded; noised copies of its end for objectives that need no more.
    """

    steps: Any  # Step, NoisyLatents or None, stacked: [S, ...] or [M, ...]
    mask: jax.Array  # [B, N]
    condition: Any = None  # {name: [B, ...]} where the model is conditional
    latents: Any = None  # [B, N, L]  clean: those that were decoded
    keys: Any = None  # [B]  of the crystals

    def at(self, timesteps: jax.Array) -> "Trajectory":
        """The steps at some of its timesteps [M]."""
        rows = jnp.searchsorted(-self.steps.timestep, -timesteps)  # they descend
        return self.replace(steps=jax.tree.map(lambda x: x[rows], self.steps))

    def crystals(self, rows: jax.Array, width: int | None = None) -> "Trajectory":
        """The steps of some crystals, of which none has more than `width` atoms."""
        condition = jax.tree.map(lambda x: x[rows], self.condition)
        steps = self.steps.crystals(rows, width)
        return Trajectory(steps, self.mask[rows, :width], condition)


@struct.dataclass
class TrainState:
    """All that an RL run carries from one iteration to the next."""

    iteration: jax.Array  # []  iterations done
    params: Any  # the policy
    opt_state: Any
    ema_params: Any  # moving average of the policy
    skipped: jax.Array  # []  iterations in a row with an update that was not finite

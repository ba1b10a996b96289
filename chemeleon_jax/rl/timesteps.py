"""Which steps of a trajectory are trained on: all, a random few, or a moving window.

Fewer steps make an update cheaper by as much. Both choices keep the gradient's scale,
see `objective.trajectory_gradient`.
"""

import jax
import jax.numpy as jnp

from chemeleon_jax.data.types import Trajectory
from chemeleon_jax.models.diffusion import Schedule


def choose_steps(
    key: jax.Array,
    iteration: int,
    recorded: int,
    *,
    num_train_steps: int,
    window: int,
    window_iterations: int,
) -> jax.Array | None:
    """Places in a trajectory of S = `recorded` steps that an iteration trains on.

    `num_train_steps` random ones, or a `window`; None for all, where both are 0.
    """
    if window:
        return window_steps(iteration, recorded, window, window_iterations)
    return random_steps(key, recorded, num_train_steps) if num_train_steps else None


def random_steps(key: jax.Array, recorded: int, count: int) -> jax.Array:
    """A random few of a trajectory's steps, one from each of equal stretches.

    DanceGRPO (arXiv:2505.07818) trains on a random subset; stretches spread it over
    early and late steps.

    Args:
      key: of this iteration.
      recorded: S.
      count: at most S.

    Returns:
      [count] places in the trajectory, ascending, each step as likely as any other.
    """
    edges = jnp.arange(count) + jax.random.uniform(key, (count,))
    return jnp.minimum((edges * recorded / count).astype(int), recorded - 1)


def window_steps(
    iteration: jax.Array | int, recorded: int, width: int, iterations_per_step: int
) -> jax.Array:
    """The steps of a window that moves along the trajectory, from its start.

    MixGRPO (arXiv:2507.21802): steps inside are stochastic and trained on, those
    outside deterministic. Every few iterations the window moves by a step, and from the
    end back to the start.

    Args:
      iteration: [] iterations done.
      recorded: S.
      width: of the window, at most S.
      iterations_per_step: that the window stays where it is.

    Returns:
      [width] places in the trajectory, ascending.
    """
    start = iteration // iterations_per_step % (recorded - width + 1)
    return start + jnp.arange(width)


def stochastic_at(schedule: Schedule, places: jax.Array) -> Schedule:
    """A DDIM schedule without noise but at some places of its trajectory.

    Steps elsewhere have no density: `take_steps` must leave them out.
    """
    index = schedule.num_steps - 1 - places  # trajectories start at step T - 1
    kept = jnp.zeros(schedule.num_steps, bool).at[index].set(True)
    return schedule.replace(ddim_std=jnp.where(kept, schedule.ddim_std, 0.0))


def take_steps(trajectory: Trajectory, places: jax.Array) -> Trajectory:
    """The steps at some places [M] of a trajectory."""
    return trajectory.replace(steps=jax.tree.map(lambda x: x[places], trajectory.steps))

"""Which timesteps are trained on: all, a random few, or a moving window.

Fewer of them make an update cheaper by as much. Both choices keep the gradient's scale,
see `learner.trajectory_gradient`.
"""

import jax
import jax.numpy as jnp

from chemeleon_jax.models.diffusion import Schedule


def select_timesteps(
    key: jax.Array,
    iteration: int,
    schedule: Schedule,
    *,
    num_train_steps: int,
    window: int,
    window_iterations: int,
) -> jax.Array | None:
    """Timesteps that an iteration trains on, descending; None for all.

    `num_train_steps` random ones, or a `window`; all, where both are 0.
    """
    if window:
        return window_timesteps(iteration, schedule, window, window_iterations)
    return random_timesteps(key, schedule, num_train_steps) if num_train_steps else None


def random_timesteps(key: jax.Array, schedule: Schedule, count: int) -> jax.Array:
    """A random few of a trajectory's S timesteps, one from each of equal stretches.

    DanceGRPO (arXiv:2505.07818) trains on a random subset; stretches spread it over
    early and late steps. -> [count], descending, each step as likely as any other.
    """
    recorded = schedule.num_recorded
    edges = jnp.arange(count) + jax.random.uniform(key, (count,))
    places = jnp.minimum((edges * recorded / count).astype(int), recorded - 1)
    return schedule.num_steps - 1 - places


def window_timesteps(
    iteration: jax.Array | int, schedule: Schedule, width: int, iterations_per_step: int
) -> jax.Array:
    """The timesteps of a window that moves along the trajectory, from its start.

    MixGRPO (arXiv:2507.21802): steps inside are stochastic and trained on, those
    outside deterministic. Every `iterations_per_step` the window moves by a step, and
    from the end back to the start. -> [width], descending; at most S.
    """
    positions = schedule.num_recorded - width + 1
    start = iteration // iterations_per_step % positions
    return schedule.num_steps - 1 - (start + jnp.arange(width))


def stochastic_at(schedule: Schedule, timesteps: jax.Array) -> Schedule:
    """A DDIM schedule without noise but at some timesteps.

    The others have no density: `Trajectory.at` must leave them out.
    """
    kept = jnp.zeros(schedule.num_steps, bool).at[timesteps].set(True)
    return schedule.replace(ddim_std=jnp.where(kept, schedule.ddim_std, 0.0))

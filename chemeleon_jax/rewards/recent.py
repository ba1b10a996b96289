"""The crystals of a run's last iterations, which creativity compares new ones with."""

from pathlib import Path

from chemeleon_jax.data.crystals import crystals_of
from chemeleon_jax.errors import UserError
from chemeleon_jax.rewards.creativity import Recent
from chemeleon_jax.runs.iteration_files import iteration_file, read_iteration


def load_recent(workdir: Path, count: int, start: int) -> Recent:
    """The crystals of the last `count` iterations before `start`.

    Raises:
      UserError: they are not all in the run's directory.
    """
    recent = Recent(count)
    for iteration in range(max(start - count, 0), start):
        try:
            arrays = read_iteration(iteration_file(workdir, iteration))
        except UserError as error:
            raise UserError(
                f"{error}, and config.reward.recent_iterations = {count} needs it; "
                "0 does without"
            ) from error
        recent.remember(crystals_of(arrays))
    return recent

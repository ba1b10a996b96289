"""Worker processes where a config wants them: on this machine, or on a Ray cluster."""

from chemeleon_jax.errors import UserError
from chemeleon_jax.workers.pool import Pool, WorkerPool


def start_pool(
    executor: str = "processes",
    num_workers: int | None = None,
    *,
    ray_address: str = "local",
    sharers: int = 1,
    **limits,
) -> Pool:
    """The pool that a config asks for: "processes" of this machine, or "ray".

    By default of as many workers as there are CPUs to use, of a cluster divided by the
    programs that share it (`sharers`). The limits are `time_limit` and `memory_limit`.

    Raises:
      UserError: Ray is not installed, or its cluster cannot be used.
    """
    if executor == "processes":
        return WorkerPool(num_workers, **limits)
    try:
        from chemeleon_jax.workers.ray_pool import RayPool  # an extra
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise UserError(
            f"config.reward.executor = {executor!r}: Ray is not installed; it comes "
            "with the extra of that name: pip install -e '.[ray]'"
        ) from error
    return RayPool(num_workers, address=ray_address, sharers=sharers, **limits)

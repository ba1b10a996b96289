"""Many processes that work as one: how they find each other, agree, and end.

JAX's own runtime does it (`jax.distributed`). All processes run the same program; what
must happen once (files, logging, events) happens on the first one. See docs/scaling.md.
"""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from chemeleon_jax.errors import UserError

HEARTBEAT = 20  # s, a process that is silent for so long counts as dead
START = 300  # s, for all processes to come
STOP = 10  # s, for all processes to go, once the first one is done


def add_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --distributed, what `run` is `wanted` to do."""
    parser.add_argument(
        "--distributed",
        action=argparse.BooleanOptionalAction,
        help="one of several processes; by default where a launcher says so",
    )


def run(wanted: bool | None, program: Callable[..., None], *arguments) -> None:
    """`program(*arguments)` as one of its processes, if there are several.

    An error on one of them ends all: this one at once, the others when they next wait
    for it, or after `HEARTBEAT`. Several are `wanted`, or None: if a launcher says so.

    Raises:
      UserError: they do not find each other.
    """
    if wanted or (wanted is None and launcher() is not None):
        start()
    if not jax.distributed.is_initialized():
        program(*arguments)
        return
    try:
        program(*arguments)
    except SystemExit:  # after a signal, all processes have agreed to end
        raise
    except UserError as error:
        _leave(f"error: {error}", 2)
    except Exception as error:
        traceback.print_exc()
        reason = str(error).partition("\n")[0][:200]
        _leave(
            f"error: cannot go on ({reason}). If another process "
            "of the run has ended, its output says why. Start all of them again: the "
            "run continues from its last state",
            1,
        )


def _leave(message: str, status: int) -> None:
    """Ends this process without waiting for the others, who wait for it."""
    name = f"process {jax.process_index()} of {jax.process_count()}"
    print(f"{name}: {message}", file=sys.stderr, flush=True)
    os._exit(status)


def launcher() -> str | None:
    """What started several processes, None where nothing says that there are several.

    The environment of one process of several: by hand (JAX_COORDINATOR_ADDRESS), of
    `srun`, of Open MPI, of a TPU pod slice, of a Kubernetes job with an index.
    """
    env = os.environ
    if "JAX_COORDINATOR_ADDRESS" in env:
        return "JAX_COORDINATOR_ADDRESS"
    if "SLURM_STEP_NODELIST" in env and int(env.get("SLURM_NTASKS", 1)) > 1:
        return "SLURM"
    if int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return "Open MPI"
    if "," in env.get("TPU_WORKER_HOSTNAMES", ""):
        return "TPU pod"
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        return "Kubernetes"
    return None


def start() -> None:
    """Starts `jax.distributed`: before anything asks JAX for its devices.

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say where the others
    are; without them JAX asks the launcher.

    Raises:
      UserError: nobody knows, or the processes do not come together.
    """
    # SIGTERM is ours: `interruption` saves the state.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            num_processes=_integer("JAX_NUM_PROCESSES"),
            process_id=_integer("JAX_PROCESS_ID"),
            initialization_timeout=START,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=STOP,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the processes do not come together ({str(error).splitlines()[0]}). Give "
            "each JAX_COORDINATOR_ADDRESS=HOST:PORT of the first, JAX_NUM_PROCESSES, "
            "and JAX_PROCESS_ID from 0; or start them by a launcher that JAX knows. Of "
            "one process alone, say distributed=False"
        ) from error
    if not is_first():
        logging.getLogger("chemeleon_jax").setLevel(logging.ERROR)


def _integer(name: str) -> int | None:
    value = os.environ.get(name)
    if value is not None and not value.isdecimal():
        raise UserError(f"{name}={value}: must be a number")
    return None if value is None else int(value)


def is_first() -> bool:
    """Whether this is the process that writes files and logs."""
    return jax.process_index() == 0


def gather(tree: Any) -> Any:
    """NumPy arrays [...] of every process -> [processes, ...], on every process."""
    if jax.process_count() == 1:
        return jax.tree.map(lambda x: np.asarray(x)[None], tree)
    return multihost_utils.process_allgather(tree)


def broadcast_from_first(number: int) -> int:
    """The first process' number; all wait for it."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def max_over_processes(number: int) -> int:
    """The greatest number that any process gives."""
    return int(gather(np.int32(number)).max())

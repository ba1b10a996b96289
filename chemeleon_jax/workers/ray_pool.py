"""Worker processes on a Ray cluster, for where CPU nodes outnumber accelerators.

Each worker is an actor that keeps one process of a `WorkerPool` beside it. Limits, and
what becomes of an item, are therefore the process pool's own; Ray places the actors,
carries the chunks, and starts an actor anew where a node was lost.

Like `pool.py`, this module imports neither NumPy nor JAX.
"""

import atexit
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from typing import Any

import ray  # pyright: ignore[reportMissingImports]
from ray.exceptions import RayError  # pyright: ignore[reportMissingImports]

from chemeleon_jax.errors import UserError
from chemeleon_jax.workers.outcome import Lost, Outcome, Status
from chemeleon_jax.workers.pool import (
    GRACE,
    Packed,
    Pool,
    WorkerPool,
    cpu_count,
    run_packed,
)

_OBJECT_STORE = 128 << 20  # bytes, of a cluster started here: chunks are small


class RayPool(Pool):
    """Processes of a Ray cluster, one CPU each."""

    def __init__(
        self,
        num_workers: int | None = None,
        *,
        address: str = "local",
        time_limit: float = 10.0,
        memory_limit: float | None = None,
        sharers: int = 1,
    ):
        """Connects to a cluster, or starts one, and waits for the workers to start.

        A connection that this program has already is used, and left open. By default
        there are as many workers as the cluster has CPUs, divided by the programs that
        score on it (`sharers`) where it was not started here. Limits are those of
        `WorkerPool`.

        The address is as `ray.init` takes it: "local" starts a cluster of this machine
        alone, "auto" finds one that runs here, "HOST:PORT" is that of its head.

        Raises:
          UserError: the cluster cannot be reached, or has no place for the workers.
        """
        self.time_limit = time_limit
        self._lock, self.turn = threading.Lock(), threading.Lock()
        self._closed = False
        self._connected = not ray.is_initialized()
        if self._connected:
            _connect(address, num_workers or cpu_count())
        atexit.register(self.close)
        if not num_workers:
            cpus = int(ray.cluster_resources().get("CPU", 0))
            num_workers = max(1, cpus // (1 if address == "local" else sharers))
        self.num_workers = num_workers
        settings = memory_limit, [os.getcwd(), *sys.path]
        self._actors = [_Worker.remote(*settings) for _ in range(num_workers)]
        self._wait_for_all()

    def close(self) -> None:
        """Ends the workers, busy or not. Harmless when called twice."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for actor in self._actors:
                    ray.kill(actor)
                if self._connected:
                    ray.shutdown()
        atexit.unregister(self.close)

    def run_chunks(self, function, chunks, limit) -> list[list[Outcome] | Lost]:
        """Per chunk: the outcomes of its items, or what befell it as a whole."""
        if self._closed:
            raise RuntimeError("the worker pool is closed: start another")
        results: list[Any] = [_pack(function, chunk) for chunk in chunks]
        waiting = deque(i for i, task in enumerate(results) if isinstance(task, bytes))
        idle, running = list(self._actors), {}
        # Backstop for a cluster that stops answering: all chunks one after another.
        patience = GRACE + 2 * limit * -(-len(waiting) // self.num_workers)
        deadline = time.monotonic() + patience
        while waiting or running:
            while waiting and idle:
                i, actor = waiting.popleft(), idle.pop()
                running[actor.run.remote(results[i], limit)] = i, actor
            left = max(0.0, deadline - time.monotonic())
            done, _ = ray.wait(list(running), timeout=left)
            if not done:
                break
            i, actor = running.pop(done[0])
            idle.append(actor)
            results[i] = _unpack(done[0])
        for _, actor in running.values():
            ray.kill(actor, no_restart=False)
        message = f"no answer from the Ray cluster within {patience:g} s"
        for i in [*waiting, *(i for i, _ in running.values())]:
            results[i] = Lost(Outcome(Status.DIED, message=message))
        return results

    def _wait_for_all(self) -> None:
        started = [actor.is_up.remote() for actor in self._actors]
        up, missing = ray.wait(started, num_returns=len(started), timeout=GRACE)
        try:
            ray.get(up)
        except RayError as error:
            self.close()
            raise UserError(
                f"config.reward.executor = 'ray': a worker cannot start: {error}\n"
                "Every node needs this package, of the same version, and its reward"
            ) from error
        if missing:
            self.close()
            raise UserError(
                f"config.reward.workers: {len(missing)} of {len(started)} workers have "
                f"found no place in the Ray cluster within {GRACE:g} s; each takes a "
                "CPU that nothing else has taken"
            )


def _connect(address: str, num_cpus: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    settings: dict[str, Any] = {"log_to_driver": False}
    if address == "local":
        settings |= {"num_cpus": num_cpus, "object_store_memory": _OBJECT_STORE}
        settings |= {"include_dashboard": False}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            # JAX warns of forks; those of Ray become other programs at once.
            warnings.filterwarnings("ignore", r"os\.fork\(\)", RuntimeWarning)
            ray.init(address, **settings)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"config.reward.ray_address = {address!r}: {reason}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray takes it for itself


def _pack(function: Callable[[Any], Any], chunk: list[Any]) -> bytes | Lost:
    """A chunk as the bytes that only its worker unpacks: actors import nothing."""
    try:
        return pickle.dumps((function, chunk))
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        return Lost(Outcome(Status.DIED, message=message), innocent=True)


def _unpack(result: ray.ObjectRef) -> list[Outcome] | Lost:
    try:
        value = ray.get(result)
    except RayError as error:
        reason = " ".join(str(error).split())
        return Lost(Outcome(Status.DIED, message=f"its Ray worker was lost: {reason}"))
    return pickle.loads(value) if isinstance(value, bytes) else value


# --- on a node of the cluster -----------------------------------------------------


@ray.remote(num_cpus=1, max_restarts=-1)
class _Worker:
    """A process that runs chunks, and what watches over it."""

    def __init__(self, memory_limit: float | None, search_path: list[str]):
        # Where the program's own modules are, if the node has those directories.
        sys.path += [path for path in search_path if path not in sys.path]
        self._pool = WorkerPool(1, memory_limit=memory_limit)

    def is_up(self) -> bool:
        return True

    def run(self, task: bytes, limit: float) -> bytes | Lost:
        """The chunk's outcomes, packed, or what befell it."""
        [result] = self._pool.run_chunks(run_packed, [[Packed(task)]], limit)
        if isinstance(result, Lost):
            return result
        [outcome] = result  # not OK: a result that cannot be pickled
        return outcome.value if outcome.status == Status.OK else Lost(outcome)

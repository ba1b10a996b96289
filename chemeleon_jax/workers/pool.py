"""Worker processes for what pymatgen and users' own functions compute.

This module imports neither NumPy nor JAX, so that a worker can fix its environment
before either is loaded. Functions and items must be picklable.
"""

import atexit
import logging
import os
import pickle
import resource
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures import wait
from importlib.machinery import ModuleSpec
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, NamedTuple

from pebble import ProcessExpired, ProcessPool

from chemeleon_jax.workers.outcome import Lost, Outcome, Status

logger = logging.getLogger(__name__)

_SINGLE_THREADED = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
GRACE = 120.0  # s, for workers to start, beyond what the tasks may take
_PATIENCE = 5.0  # s, for workers to end
_SLICE = 1.0  # s, of waiting
_LARGEST_CHUNK = 32  # items that share the time limit of one
_ATTEMPTS = 3  # in company, then twice alone
# Exit codes of a worker at its memory limit: filled by this task, or by earlier ones.
_NO_MEMORY, _LEAKED = 97, 98
_main_spec = threading.Lock()


class Pool(ABC):
    """Maps functions over items in worker processes; no item can end the program.

    A worker that dies, or exceeds its time or memory limit, is replaced. Results come
    in the order of the items, and do not depend on the number of workers. Use it as a
    context manager, or call `close`; what is still open is closed at exit, also after
    Ctrl-C.
    """

    num_workers: int
    time_limit: float  # s, of an item
    turn: threading.Lock  # of the thread whose items are in the workers

    @abstractmethod
    def run_chunks(
        self, function: Callable[[Any], Any], chunks: list[list[Any]], limit: float
    ) -> "list[list[Outcome] | Lost]":
        """Per chunk: the outcomes of its items, or what befell it as a whole."""

    @abstractmethod
    def close(self) -> None:
        """Ends the workers, busy or not. Harmless when called twice."""

    def map(
        self,
        function: Callable[[Any], Any],
        items: Sequence[Any],
        *,
        time_limit: float | None = None,
        chunk_size: int | None = None,
        retry: bool = True,
    ) -> list[Outcome]:
        """`function` of every item.

        Items travel in chunks, each under the time limit of one item. The items of a
        chunk that timed out or whose worker died are then run alone, so that only the
        culprit is lost. An item that was lost alone is tried once more (`retry`): what
        killed its worker may have come from outside. Threads take turns.
        """
        with self.turn:
            return self._map(function, items, time_limit, chunk_size, retry)

    def _map(self, function, items, time_limit, chunk_size, retry) -> list[Outcome]:
        limit = time_limit or self.time_limit
        count = len(items)
        size = chunk_size or min(
            max(1, count // (4 * self.num_workers)), _LARGEST_CHUNK
        )
        chunks = [range(i, min(i + size, count)) for i in range(0, count, size)]
        outcomes: dict[int, Outcome] = {}
        failures = Counter()  # of items that were alone
        # The last ones are for tasks that met workers filled by others.
        for _ in range(_ATTEMPTS + self.num_workers):
            again = []
            tasks = [[items[i] for i in chunk] for chunk in chunks]
            results = self.run_chunks(function, tasks, limit) if tasks else []
            for chunk, result in zip(chunks, results, strict=True):
                if isinstance(result, list):
                    outcomes |= zip(chunk, result, strict=True)
                    continue
                outcomes |= dict.fromkeys(chunk, result.outcome)
                if len(chunk) == 1 and not result.innocent:
                    failures[chunk[0]] += 1
                again += [range(i, i + 1) for i in chunk if failures[i] <= retry]
            chunks = again
        return [outcomes[i] for i in range(count)]

    def call(
        self,
        function: Callable[[Any], Any],
        item: Any,
        *,
        time_limit: float,
        retry: bool = True,
    ) -> Outcome:
        """`function(item)` in one worker; tried again once if lost."""
        return self.map(function, [item], time_limit=time_limit, retry=retry)[0]

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()


class WorkerPool(Pool):
    """Spawned processes of this machine."""

    def __init__(
        self,
        num_workers: int | None = None,
        *,
        time_limit: float = 10.0,
        memory_limit: float | None = None,
    ):
        """Starts the workers, by default as many as the CPUs that this process may use.

        The time limit is in seconds per item, the memory limit in GiB that a worker may
        allocate.
        """
        self.num_workers = num_workers or cpu_count()
        self.time_limit = time_limit
        self.memory_limit = memory_limit
        self._lock, self.turn = threading.Lock(), threading.Lock()
        self._closed = False
        self._processes = self._start()
        atexit.register(self.close)

    def close(self) -> None:
        """Ends the workers, busy or not. Harmless when called twice."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._stop(self._processes)
        atexit.unregister(self.close)

    def run_chunks(self, function, chunks, limit) -> list[list[Outcome] | Lost]:
        """Per chunk: the outcomes of its items, or what befell it as a whole."""
        processes = self._healthy()
        # Backstop for a pool that stops answering: all tasks one after another.
        waves = -(-len(chunks) // self.num_workers)
        deadline = time.monotonic() + GRACE + 2 * limit * waves
        try:
            futures = [
                processes.schedule(run_chunk, (function, chunk), timeout=limit)
                for chunk in chunks
            ]
        except RuntimeError as error:  # the pool broke since we asked
            lost = Lost(Outcome(Status.DIED, message=str(error)), innocent=True)
            return [lost] * len(chunks)
        results = []
        for future in futures:
            # In slices: Python sees a signal that comes just before a wait after it.
            while not future.done() and time.monotonic() < deadline:
                wait([future], _SLICE)
            try:
                results.append(future.result(0))
            except FutureTimeout:  # pebble's, of the task; or ours, of the pool
                message = f"exceeded its time limit of {limit:g} s"
                results.append(Lost(Outcome(Status.TIMED_OUT, message=message)))
                if not future.done():
                    self._stop(processes)
            except ProcessExpired as error:
                leaked = error.exitcode == _LEAKED
                results.append(Lost(self._why(error.exitcode), innocent=leaked))
            except Exception as error:  # the pool broke, or nothing could be pickled
                message = f"{type(error).__name__}: {error}"
                results.append(
                    Lost(Outcome(Status.DIED, message=message), innocent=True)
                )
        return results

    def _why(self, exit_code: int | None) -> Outcome:
        """What the end of a worker means for its task."""
        if exit_code in (_NO_MEMORY, _LEAKED):
            message = "ran out of memory"
            if self.memory_limit:
                message = f"came to its memory limit of {self.memory_limit:g} GiB"
            return Outcome(Status.OUT_OF_MEMORY, message=message)
        return Outcome(
            Status.DIED, message=f"its worker process died (exit code {exit_code})"
        )

    def _start(self) -> ProcessPool:
        _track_quietly()
        processes = ProcessPool(
            self.num_workers,
            initializer=start_worker,
            initargs=(os.getpid(), os.getcwd(), self.memory_limit),
            context=WorkerContext(),
        )
        processes.schedule(os.getpid)  # pebble starts its workers with the first task
        return processes

    def _healthy(self) -> ProcessPool:
        with self._lock:
            if self._closed:
                raise RuntimeError("the worker pool is closed: start another")
            if not self._processes.active:
                logger.warning("the worker processes were lost: starting new ones")
                self._stop(self._processes)
                self._processes = self._start()
            return self._processes

    @staticmethod
    def _stop(processes: ProcessPool) -> None:
        processes.stop()
        # A Ctrl-C that hit the queue of tasks can leave pebble's thread asleep on it,
        # and joining it would then never end. The workers are gone before that.
        joining = threading.Thread(target=processes.join, daemon=True)
        joining.start()
        joining.join(_PATIENCE)


def _track_quietly() -> None:
    """Starts the process by which Python removes the semaphores that a signal left.

    It would warn of them, after our own last words, as of a fault.
    """
    silence = "ignore:resource_tracker:UserWarning"
    sys.warnoptions.append(silence)  # of the processes that Python starts
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove(silence)


def cpu_count() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --- in the worker ----------------------------------------------------------------

_memory_limit = sys.maxsize  # bytes


def start_worker(parent: int, directory: str, memory_limit: float | None) -> None:
    """First thing that a worker does, before NumPy is imported."""
    global _memory_limit
    if memory_limit:
        # What is allocated, not what is mapped: libraries map far more than they use.
        _memory_limit = int(memory_limit * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (_memory_limit, _memory_limit))
    os.environ.update(dict.fromkeys(_SINGLE_THREADED, "1"))
    os.environ["JAX_PLATFORMS"] = "cpu"
    if directory not in sys.path:
        sys.path.insert(0, directory)
    threading.Thread(target=_outlive_no_one, args=(parent,), daemon=True).start()


def _outlive_no_one(parent: int) -> None:
    """Ends this worker, whatever it is busy with, when its parent was killed."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def run_chunk(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Outcome]:
    """`function` of each item; what it raises becomes that item's outcome."""
    outcomes = []
    leaked = _allocated() > _memory_limit / 2
    for item in items:
        try:
            outcomes.append(Outcome(Status.OK, function(item)))
        except MemoryError:  # what filled the memory is still there: start afresh
            os._exit(_LEAKED if leaked else _NO_MEMORY)
        except BaseException as error:  # a user's sys.exit too
            message = f"{type(error).__name__}: {error}"
            outcomes.append(
                Outcome(Status.RAISED, None, message, traceback.format_exc())
            )
    return outcomes


class Packed(NamedTuple):
    """A pickled function and its items, which unpacks itself where it arrives.

    On arrival, the time limit has not begun: what the function imports does not count.
    """

    task: bytes

    def __reduce__(self):
        return pickle.loads, (self.task,)


def run_packed(task: tuple[Callable[[Any], Any], list[Any]]) -> bytes:
    """`run_chunk`, its results pickled for what only passes them on."""
    return pickle.dumps(run_chunk(*task))


def _allocated() -> int:
    """Bytes that this process has allocated; 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[5]) * resource.getpagesize()
    except OSError:  # not on macOS
        return 0


class _WorkerProcess(SpawnProcess):
    """A spawned process that does not import the program that started it.

    By default it would import `__main__` again: seconds lost, JAX loaded before its
    environment is set, and a script without a main guard run twice.
    """

    @staticmethod
    def _Popen(process):  # noqa: N802
        main = sys.modules["__main__"]
        with _main_spec:
            spec = getattr(main, "__spec__", None)
            main.__spec__ = ModuleSpec("__main__", None)
            try:
                return SpawnProcess._Popen(process)  # pyright: ignore
            finally:
                main.__spec__ = spec


class WorkerContext(SpawnContext):
    """Spawn, with the process above."""

    Process = _WorkerProcess

"""SIGTERM and Ctrl-C: what is finished is saved, then the program ends."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import jax

from chemeleon_jax.devices import distributed
from chemeleon_jax.errors import UserError

GRACE = 4.0  # s for the iteration under way to end by itself
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(SystemExit):
    """Ends the program with the status that shells give to a signal: 128 + its number.

    143 after SIGTERM, 130 after Ctrl-C. The state is saved; the same command continues.
    """


class SaveOnSignal:
    """A context in which a signal ends the program within seconds, its state saved.

    If the iteration under way ends within `GRACE`, its result is saved. If not, what
    the last one left is, by a thread: Python runs signal handlers between two steps of
    the main thread, and one call of a compiled function can be minutes long.

    Several processes agree at the end of each iteration whether one has got a signal,
    and then end together. They save together too, so none does on its own after GRACE.
    """

    def __init__(self, save: Callable[[int, Any], None]):
        """Nothing yet. `save(step, state)` is called from either thread."""
        self._save = save
        self._finished: tuple[int, Any] | None = None
        self._signal: int | None = None
        self._ended = threading.Event()

    def finished(self, step: int, state: Any) -> None:
        """Tells that an iteration has ended, and all that belongs to it is on disk.

        All processes wait for each other here. The arrays of the state must stay alive
        (not donated) until the next call.

        Raises:
          Interrupted: a signal has come.
        """
        self._finished = step, state
        received = distributed.max_over_processes(self._signal or 0)
        if received:
            self._save(step, state)
            self._say(received, step)
            raise Interrupted(128 + received)

    def __enter__(self):
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        # Written by the C handler at once, whatever the main thread is busy with.
        self._old_writer = signal.set_wakeup_fd(self._writer)
        self._old_handlers = {s: signal.signal(s, _do_nothing) for s in SIGNALS}
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_writer)
        os.close(self._writer)  # ends the watcher, if it is still reading
        self._watcher.join()
        os.close(self._reader)

    def _watch(self) -> None:
        while received := os.read(self._reader, 1):
            if received[0] in SIGNALS:
                self._signal = received[0]
                break
        alone = jax.process_count() == 1
        if self._signal is None or not alone or self._ended.wait(GRACE):
            return
        status = 128 + self._signal
        try:
            if self._finished is not None:
                self._save(*self._finished)
                self._say(self._signal, self._finished[0])
        except UserError as e:
            print(f"error: {e}", file=sys.stderr, flush=True)
            status = 2
        # The worker processes notice within a second that their parent is gone.
        os._exit(status)

    def _say(self, number: int, step: int) -> None:
        if distributed.is_first():
            name = signal.Signals(number).name
            said = (
                f"{name}: the state after {step} is saved; the same command continues"
            )
            print(said, file=sys.stderr, flush=True)


def _do_nothing(*_) -> None:
    """A handler, because without one a signal would end the program at once."""

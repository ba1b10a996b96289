"""TensorBoard, its mirror, and the progress line. Silent off process 0."""

import io
import os
import struct
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TextIO

import jax
import numpy as np
from PIL import Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import make_histogram

from chemeleon_jax.runs.files import sync
from chemeleon_jax.runs.mirror import Mirror


class Tracker(AbstractContextManager):
    """Writes the scalars of one run, and says on stderr how far it is.

    Steps count from 0. A run that continues at `start` cuts off whatever an earlier
    process wrote from that step on, so that every reader sees one curve. A `log` is out
    of this process when it returns, and on the disk itself after `sync`: no thread, no
    queue, nothing lost when the process dies.
    """

    def __init__(
        self,
        workdir,
        total: int,
        *,
        start: int = 0,
        stream: TextIO | None = None,
        mirror: Mirror | None = None,
    ):
        """Opens an event file in `workdir` for the steps from `start` up to `total`.

        All that is logged goes to the `mirror` too, which is closed with the file.
        """
        self._total, self._mirror = total, mirror
        self._stream = stream or sys.stderr
        self._first: tuple[float, int] | None = None  # time of the first progress
        self._writer = None
        if jax.process_index() != 0:
            return
        Path(workdir).mkdir(parents=True, exist_ok=True)
        for file in _event_files(workdir):
            _cut(file, start)
        # The suffix keeps two processes that start in one second apart.
        self._writer = EventsWriter(
            str(Path(workdir, "events")), filename_suffix=f".{time.time_ns()}"
        )
        # A TensorBoard that is open has read what was cut off, and drops it on this.
        opening = SessionLog(status=SessionLog.START)
        self._write_event(step=start, session_log=opening)
        self._file = _event_files(workdir)[-1]

    def log(self, step: int, scalars: dict) -> None:
        """Writes {tag: scalar} for one step."""
        self._write(
            step,
            *(Summary.Value(tag=k, simple_value=float(x)) for k, x in scalars.items()),
        )
        if self._mirror:
            self._mirror.log(step, scalars)

    def log_histogram(self, step: int, tag: str, values: np.ndarray) -> None:
        """Writes how values [n] are distributed; of none, nothing."""
        if len(values):
            histogram = make_histogram(np.asarray(values, np.float64), bins=30)
            self._write(step, Summary.Value(tag=tag, histo=histogram))
            if self._mirror:
                self._mirror.log_histogram(step, tag, values)

    def log_image(self, step: int, tag: str, picture: Image.Image) -> None:
        """Writes a picture."""
        png = io.BytesIO()
        picture.save(png, "PNG")
        image = Summary.Image(
            height=picture.height,
            width=picture.width,
            colorspace=len(picture.getbands()),
            encoded_image_string=png.getvalue(),
        )
        self._write(step, Summary.Value(tag=tag, image=image))
        if self._mirror:
            self._mirror.log_image(step, tag, picture)

    def _write(self, step: int, *values: Summary.Value) -> None:
        self._write_event(step=int(step), summary=Summary(value=values))

    def _write_event(self, **fields) -> None:
        if self._writer is not None:
            self._writer.write_event(Event(wall_time=time.time(), **fields))
            self._writer.flush()

    def sync(self) -> None:
        """Waits until all that was logged is on the disk itself."""
        if self._writer is not None:
            sync(self._file)

    def progress(self, step: int, **shown) -> None:
        """Prints `iteration 7/100  reward 0.41  4.1 s/iteration  6 min left`.

        Numbers get four digits, strings stay as they are. The pace is that since the
        first call, which comes after compilation.
        """
        if self._writer is None:
            return
        now, done = time.monotonic(), int(step) + 1
        if self._first is None:
            self._first = now, done
        began, before = self._first
        pace = ""
        if done > before:
            seconds = (now - began) / (done - before)
            left = _duration(seconds * (self._total - done))
            pace = f"  {seconds:.3g} s/iteration  {left} left"
        numbers = "".join(
            f"  {name} {x if isinstance(x, str) else format(float(x), '.4g')}"
            for name, x in shown.items()
        )
        print(
            f"iteration {done}/{self._total}{numbers}{pace}",
            file=self._stream,
            flush=True,
        )

    def __exit__(self, kind, *_):
        if self._writer is not None:
            self._writer.close()
        if self._mirror:
            self._mirror.close(failed=kind is not None)


def read_scalars(run_dir) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reads what `Tracker` wrote, by one process or by several in turn.

    Returns:
      {tag: (steps [n] int, values [n] float32)}, in order of steps, each step once.
    """
    curves: dict[str, dict[int, float]] = {}
    for file in _event_files(run_dir):
        for event, _ in _events(file):
            for value in event.summary.value:
                if value.HasField("simple_value"):  # no picture or histogram
                    curves.setdefault(value.tag, {})[event.step] = value.simple_value
    return {
        tag: (np.array(sorted(c), int), np.array([c[s] for s in sorted(c)], np.float32))
        for tag, c in curves.items()
    }


def _event_files(run_dir) -> list[Path]:
    """In the order in which they were opened: names end in the time in nanoseconds.

    Those of other programs, which end otherwise, are left out.
    """
    files = Path(run_dir).glob("events.out.tfevents.*")
    ours = [file for file in files if file.suffix[1:].isdecimal()]
    return sorted(ours, key=lambda file: int(file.suffix[1:]))


def _cut(file: Path, start: int) -> None:
    """Removes events of `start` and later steps, and a torn last record."""
    kept, scalars = 0, False
    for event, end in _events(file):
        if event.HasField("summary"):
            if event.step >= start:
                break
            scalars = True
        kept = end
    if scalars:
        os.truncate(file, kept)
    else:
        file.unlink()


def _events(file: Path):
    """The events of a TFRecord file, and where each ends.

    A record is a length, its checksum, data, its checksum.
    """
    data, at = file.read_bytes(), 0
    while at + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        if at + 16 + length > len(data):
            return  # the process died while it wrote this one
        event = Event.FromString(data[at + 12 : at + 12 + length])
        at += 16 + length
        yield event, at


def _duration(seconds: float) -> str:
    """A rough duration for people: `40 s`, `6 min`, `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"

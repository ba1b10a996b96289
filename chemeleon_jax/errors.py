"""Errors for people on one line, and a terminal that never ends a program."""

import argparse
import contextlib
import difflib
import errno
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

# Faults of a place, not of the program: a full, read-only or foreign disk.
PLACE_FAULTS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.ESTALE),
    *(errno.EEXIST, errno.ENOENT),
)
INTERRUPTED = 130  # exit status, as shells give it after Ctrl-C


class UserError(ValueError):
    """Something that the user can put right: a config value, a file, the network.

    The message says what is wrong, where, and what to do. Programs print it as one line
    and end with status 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is most like `name`, for the message of an unknown one."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def one_line(text) -> str:
    """Text of others for a terminal: one line, without control characters."""
    return printable(" ".join(str(text).split()))


def printable(text: str) -> str:
    """Text with a question mark in the place of every control character."""
    return "".join(c if c.isprintable() else "?" for c in text)


class ProgramParser(argparse.ArgumentParser):
    """The command line of `python -m PROGRAM`; its help begins with `doc` as it is."""

    def __init__(self, program: str, doc: str | None):
        super().__init__(
            prog=f"python -m {program}",
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        """As usual, but `--flag=--` is an error, where Python 3.11 gives []."""
        found = super().parse_args(args, namespace)
        for name, value in vars(found).items():
            if value == [] and self.get_default(name) != []:
                self.error(f"argument --{name}: expected one argument")
        return found


def exit_status(program: Callable[..., Any], *arguments) -> int:
    """Runs `program(*arguments)`: 0, or 2 after one line about what the user can mend.

    That is a `UserError`, or a place that cannot be read or written.
    """
    with lasting_streams():
        try:
            program(*arguments)
        except UserError as error:
            complain(error)
            return 2
        except OSError as error:
            if error.errno not in PLACE_FAULTS:
                raise
            place = f"{error.filename}: " if error.filename else ""
            complain(f"{place}{error.strerror}: give another place, or put it right")
            return 2
    return 0


def run_program(main: Callable[[], int | None]) -> None:
    """Ends the process with the status of `main()`; Ctrl-C is a line too."""
    try:
        status = main()
    except KeyboardInterrupt:
        complain("interrupted")
        status = INTERRUPTED
    sys.exit(status)


def complain(message) -> None:
    """Prints what is wrong, on one line of stderr."""
    print(f"error: {one_line(message)}", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------- terminal


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Printing inside the block never ends it.

    What a terminal cannot show is escaped; what nobody reads any more, as after
    `| head`, or what a full disk does not take, is dropped.
    """
    for descriptor in range(3):  # closed by the shell, the next file would get it
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    out, err = _Lasting(sys.stdout), _Lasting(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        with warnings.catch_warnings():
            # pymatgen's, of noble gases; no user can do anything about them.
            warnings.filterwarnings("ignore", message="No Pauling electronegativity")
            try:
                yield
            finally:
                out.flush()
                err.flush()


class _Lasting:
    """A text stream that outlives its reader."""

    def __init__(self, stream: TextIO | None):
        if stream is None:  # closed by the shell: `2>&-`
            stream = open(os.devnull, "w")  # noqa: SIM115 -- for the whole program
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        self._stream = stream

    def write(self, text: str) -> int:
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            self._stream.flush()

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError:  # what is buffered goes the same way, at the latest at exit
            with contextlib.suppress(OSError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def require_each(
    config: Any, fields: Iterable[str], holds: Callable, rule: str
) -> None:
    """`require` of several fields."""
    for field in fields:
        require(config, field, holds, rule)


def require(config: Any, field: str, holds: Callable, rule: str) -> None:
    """Raises a `UserError` that names the field if `holds(value)` is false."""
    value = config
    for part in field.split("."):
        value = value[part]
    if not holds(value):
        raise UserError(f"config.{field} = {value!r}: must be {rule}")

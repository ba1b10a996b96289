"""The one exception that the programs print instead of a traceback."""

import difflib
import sys
from collections.abc import Callable, Iterable
from typing import Any


class UserError(ValueError):
    """Something that the user can put right: a config value, a file, the network.

    The message says what is wrong, where, and what to do. Programs print it as one line
    and end with status 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is most like `name`, for the message of an unknown one."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def exit_status(program: Callable[..., Any], *arguments) -> int:
    """Runs `program(*arguments)`: 0, or 2 after the one line of a `UserError`."""
    try:
        program(*arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def require(config: Any, field: str, holds: Callable, rule: str) -> None:
    """Raises a `UserError` that names the field if `holds(value)` is false."""
    value = config
    for part in field.split("."):
        value = value[part]
    if not holds(value):
        raise UserError(f"config.{field} = {value!r}: must be {rule}")

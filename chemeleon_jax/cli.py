"""The command line of the programs: a config file, overrides, errors on one line."""

import difflib
import re
import sys
from collections.abc import Callable
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from chemeleon_jax.devices import distributed
from chemeleon_jax.errors import UserError, exit_status
from chemeleon_jax.runs.files import cache_folder

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)


def run(main: Callable[[ConfigDict, str], None]) -> None:
    """Calls main(config, workdir) with what the command line says.

    What the user can put right (`UserError`) becomes one line and exit status 2.
    """
    if {"-h", "--help", "--helpfull"} & set(sys.argv):
        print(sys.modules["__main__"].__doc__)
        return
    if status := exit_status(_run, main):
        sys.exit(status)


def _run(main: Callable[[ConfigDict, str], None]) -> None:
    config, workdir = parse(sys.argv)
    keep_compiled_programs()
    distributed.run(config.get("distributed"), main, config, workdir)


def keep_compiled_programs() -> None:
    """Lets JAX keep what it compiles, for the next run of the same program.

    In `~/.cache/chemeleon_jax/compiled`, or where JAX_COMPILATION_CACHE_DIR says. What
    calls back into Python, such as the rewards, is not kept by JAX.
    """
    if jax.config.jax_compilation_cache_dir is None:
        folder = cache_folder() / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(folder))


def parse(argv: list[str]) -> tuple[ConfigDict, str]:
    """Reads `--config=FILE[:PRESET] [--config.FIELD=VALUE ...] [--workdir=DIR]`.

    Args:
      argv: the program's name, then its arguments.

    Returns:
      The config, locked, and the run directory: by default `runs/` and the config's
      name and preset, so that the same command continues the same run.

    Raises:
      UserError: a missing file, an unknown preset, field or flag, or a wrong type. For
        an unknown field, the message names the nearest one.
    """
    name = _config_name(argv)
    config, _, _ = _read([argv[0], f"--config={name}"])
    for argument in argv[1:]:
        override = _OVERRIDE.fullmatch(argument)
        if override:
            _check_field(config, override[1])
    config, workdir, rest = _read(argv)
    if rest:
        raise UserError(f"'{rest[0]}': every argument is --name=value")
    file, _, preset = name.partition(":")
    default = Path("runs", "_".join(filter(None, [Path(file).stem, preset])))
    return config, workdir or str(default)


def _config_name(argv: list[str]) -> str:
    """The FILE[:PRESET] of an existing file."""
    known = ", ".join(sorted(str(f) for f in Path("configs").glob("[a-z]*.py")))
    hint = f"give --config=FILE{f', one of {known}' if known else ''}"
    for i, argument in enumerate(argv[1:], 1):
        match = re.fullmatch(r"--?config(?:=(.*))?", argument)
        if match:
            name = match[1] if match[1] is not None else "".join(argv[i + 1 : i + 2])
            if not Path(name.partition(":")[0]).is_file():
                raise UserError(f"'{name}': no such config file; {hint}")
            return name
    raise UserError(f"no config; {hint}")


def _read(argv: list[str]) -> tuple[ConfigDict, str | None, list[str]]:
    """The config, the run directory, and what is left over."""
    values = flags.FlagValues()
    values.set_gnu_getopt()
    holder = config_flags.DEFINE_config_file(
        "config", flag_values=values, sys_argv=argv
    )
    flags.DEFINE_string("workdir", None, "run directory", flag_values=values)
    try:
        rest = values(argv)
    except flags.UnrecognizedFlagError as e:
        raise UserError(
            f"--{e.flagname}: no such flag; there are --config, --config.FIELD and "
            "--workdir"
        ) from e
    except flags.IllegalFlagValueError as e:
        raise _wrong_value(e) from e
    return holder.value, values.workdir, rest[1:]


def _wrong_value(error: flags.IllegalFlagValueError) -> Exception:
    """What to say of a value that absl refuses, or of a `get_config` that raised."""
    causes: list[BaseException] = [error]
    while (inner := causes[-1].__context__) is not None:
        causes.append(inner)
    # config_flags raises an error of the same type anew, with a traceback as its text.
    for cause in reversed(causes):
        if isinstance(cause, UserError):
            return cause
    message = str(error).removeprefix("flag ").removeprefix("--")
    if "\n" in message:  # the traceback of a config file with a fault
        return error
    if "Non-boolean" in message:
        message = f"{message.split(': ')[0]}: neither True nor False"
    return UserError(message)


def _check_field(config: ConfigDict, field: str) -> None:
    fields = list(_fields(config))
    if field in fields:
        return
    if any(other.startswith(f"{field}.") for other in fields):
        raise UserError(f"config.{field}: has fields of its own; set one of those")
    near = difflib.get_close_matches(field, fields, n=1, cutoff=0.0)
    raise UserError(f"config.{field}: no such field; the nearest is config.{near[0]}")


def _fields(config: ConfigDict, prefix: str = ""):
    """The dotted names of all values."""
    for name in config:
        value = config.get_ref(name).get()
        if isinstance(value, ConfigDict):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"

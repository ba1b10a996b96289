"""The command line of the programs: a config file, overrides, errors on one line."""

import ast
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from chemeleon_jax.devices import distributed
from chemeleon_jax.errors import UserError, exit_status, nearest, one_line
from chemeleon_jax.runs.files import cache_folder

# The configs that come with the package. In a checkout this is a link to configs/.
CONFIGS = Path(__file__).parent / "configs"
# A field that only the configs of a program have.
_OWN_FIELD = {"train": "rl", "pretrain": "stage"}
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)


def run(main: Callable[[ConfigDict, str], None], *, program: str = "") -> None:
    """Calls main(config, workdir) with what the command line says.

    What the user can put right (`UserError`) becomes one line and exit status 2. The
    programs "train" and "pretrain" refuse each other's configs.
    """
    if {"-h", "--help", "--helpfull"} & set(sys.argv):
        print(f"{sys.modules['__main__'].__doc__}\n{describe_configs(program)}")
        return
    if status := exit_status(_run, main, program):
        sys.exit(status)


def _run(main: Callable[[ConfigDict, str], None], program: str) -> None:
    config, workdir = parse(sys.argv, program)
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


def parse(argv: list[str], program: str = "") -> tuple[ConfigDict, str]:
    """Reads `--config=NAME[:PRESET] [--config.FIELD=VALUE ...] [--workdir=DIR]`.

    Args:
      argv: the program's name, then its arguments. NAME is the path of a config file,
        or the name of one that comes with the package, such as rl_dng.
      program: "train" or "pretrain"; "" takes a config of either.

    Returns:
      The config, locked, and the run directory: by default `runs/` and the config's
      name and preset, so that the same command continues the same run.

    Raises:
      UserError: a missing file or one with a fault, a config of another program, an
        unknown preset, field or flag, or a wrong type. For an unknown field, the
        message names the nearest one.
    """
    name, rest = _take_config(argv, program)
    file, _, preset = name.partition(":")
    config = load_config(_find(file, program), preset)
    _check_program(config, program, name)
    for argument in rest:
        if override := _OVERRIDE.fullmatch(argument):
            _check_field(config, override[1])
    config, workdir = _override(config, [argv[0], *rest])
    default = Path("runs", "_".join(filter(None, [Path(file).stem, preset])))
    if workdir is not None and not workdir:
        raise UserError("--workdir=: names no directory")
    return config, workdir or str(default)


# ------------------------------------------------------------------------ config files


def load_config(path: Path, preset: str = "") -> ConfigDict:
    """What `get_config(preset)` of a config file returns; without a preset, `()`.

    Raises:
      UserError: the file has no such function, or raises. The message has the line.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: not a Python file; a config ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        if get_config is None:
            raise UserError(f"{path}: has no function get_config")
        if preset and not inspect.signature(get_config).parameters:
            raise UserError(f"{path}: its get_config takes no preset, so no '{preset}'")
        config = get_config(preset) if preset else get_config()
    except UserError:
        raise
    except Exception as error:
        message = error.msg if isinstance(error, SyntaxError) else error
        what = f"{type(error).__name__}: {one_line(message)}"
        raise UserError(f"{path}{_line(error, path)}: {what}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: its get_config returned no ConfigDict: {config!r}")
    return config


def _line(error: Exception, path: Path) -> str:
    """Where a config file went wrong, as `, line 12`."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [(frame.filename, frame.lineno) for frame in frames]
    if isinstance(error, SyntaxError):
        places.append((error.filename or "", error.lineno))
    lines = [line for file, line in places if file == str(path.resolve()) and line]
    return f", line {lines[-1]}" if lines else ""


def _find(file: str, program: str) -> Path:
    """The config file of a path, or of the name of one of the package's."""
    if Path(file).is_file():
        return Path(file)
    if file in _names(""):
        return CONFIGS / f"{file}.py"
    raise UserError(f"'{file}': no such config file; {_hint(program)}")


def _names(program: str) -> list[str]:
    """The package's configs of a program, or of all: those of `train` are rl_*."""
    names = sorted(file.stem for file in CONFIGS.glob("[a-z]*.py"))
    if program:
        names = [n for n in names if n.startswith("rl_") == (program == "train")]
    return names


def _hint(program: str) -> str:
    names = ", ".join(_names(program))
    return f"give --config=NAME, one of {names}, or the path of a file like them"


def _check_program(config: ConfigDict, program: str, name: str) -> None:
    programs = {p for p, field in _OWN_FIELD.items() if field in config}
    if not program or program in programs:
        return
    if programs:
        (other,) = programs
        raise UserError(
            f"{name}: a config of another program; python -m chemeleon_jax.{other} "
            f"--config={name}"
        )
    raise UserError(
        f"{name}: no config of {program}, it lacks config.{_OWN_FIELD[program]}"
    )


def describe_configs(program: str) -> str:
    """The package's configs and their presets, for --help."""
    lines = ["Configs, for --config=NAME[:PRESET]; or the path of a file like them:\n"]
    for name in _names(program):
        tree = ast.parse((CONFIGS / f"{name}.py").read_text())
        (function,) = (
            node
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name == "get_config"
        )
        about = [ast.get_docstring(node) or "" for node in (tree, function)]
        lines += [f"    {name}", *(f"        {a.splitlines()[0]}" for a in about)]
    return "\n".join(lines)


# -------------------------------------------------------------------------- arguments


def _take_config(argv: list[str], program: str) -> tuple[str, list[str]]:
    """The value of --config, and the arguments without it and the program's name."""
    for i, argument in enumerate(argv[1:], 1):
        if argument in ("--config", "-config") and argv[i + 1 :]:
            return argv[i + 1], argv[1:i] + argv[i + 2 :]
        if match := re.fullmatch("--?config=(.+)", argument):
            return match[1], argv[1:i] + argv[i + 1 :]
    raise UserError(f"no config; {_hint(program)}")


def _override(config: ConfigDict, argv: list[str]) -> tuple[ConfigDict, str | None]:
    """The config with the values that the arguments give, and the run directory."""
    values = flags.FlagValues()
    values.set_gnu_getopt()
    holder = config_flags.DEFINE_config_dict(
        "config", config, flag_values=values, sys_argv=argv
    )
    flags.DEFINE_string("workdir", None, "run directory", flag_values=values)
    try:
        rest = values(argv)[1:]
    except flags.UnrecognizedFlagError as e:
        raise UserError(
            f"--{e.flagname}: no such flag; there are --config, --config.FIELD and "
            "--workdir"
        ) from e
    except flags.IllegalFlagValueError as e:
        message = str(e).removeprefix("flag ").removeprefix("--")
        if "Non-boolean" in message:
            message = f"{message.split(': ')[0]}: neither True nor False"
        raise UserError(message) from e
    if rest:
        raise UserError(f"'{rest[0]}': every argument is --name=value")
    return holder.value, values.workdir


def _check_field(config: ConfigDict, field: str) -> None:
    known = list(fields(config))
    if field in known:
        return
    if any(other.startswith(f"{field}.") for other in known):
        raise UserError(f"config.{field}: has fields of its own; set one of those")
    near = nearest(field, known)
    raise UserError(f"config.{field}: no such field; the nearest is config.{near}")


def fields(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """The dotted names of all values."""
    for name in config:
        value = config.get_ref(name).get()
        if isinstance(value, ConfigDict):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"

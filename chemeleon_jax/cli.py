"""The command line of the programs: a config file, overrides, errors on one line."""

import difflib
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from chemeleon_jax.devices import distributed
from chemeleon_jax.devices.sharding import check_divisible
from chemeleon_jax.errors import UserError, exit_status
from chemeleon_jax.rewards.normalize import NORMALIZATIONS
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


# ---------------------------------------------------------------------- RL values

_CHOICES = {
    "precision": ("default", "float32", "bfloat16"),
    "rl.kl_target": ("old", "reference"),
    "rl.step_weight": ("none", "std"),
    "sampling.sampler": ("ddim", "ddpm"),
    "reward.normalize_fn": tuple(NORMALIZATIONS),
    "reward.executor": ("processes", "ray"),
}
_AT_LEAST_ONE = (
    "num_iterations",
    "checkpoint_every",
    "max_skipped",
    "validation_samples",
    "rl.num_group_samples",
    "rl.num_inner_batch",
    "rl.rollout_parts",
    "rl.window_iterations",
    "data.batch_size",
    "data.max_atoms",
    "fsdp",
)
_NOT_NEGATIVE = (
    "seed",
    "validate_every",
    "validation_pictures",
    "rl.grad_accum",
    "rl.num_train_steps",
    "rl.window",
    "rl.kl_weight",
    "rl.entropy_weight",
    "sampling.cfg_scale",
    "reward.workers",
    "reward.recent_iterations",
    "reward.memory_limit",
    "optimizer.weight_decay",
)
_POSITIVE = (
    "rl.memory_budget",
    "rl.clip_ratio",
    "alarms.kl_div",
    "alarms.ratio_max",
    "reward.eps",
    "reward.time_limit",
    "optimizer.lr",
    "optimizer.max_grad_norm",
)


def check_rl(config: Any, num_devices: int) -> None:
    """Checks the values of an RL config, before anything is loaded or compiled.

    Raises:
      UserError: one is out of range, or they do not fit together. It names the fields.
    """
    for field, choices in _CHOICES.items():
        _require(config, field, lambda x, c=choices: x in c, f"one of {choices}")
    for field in _AT_LEAST_ONE:
        _require(config, field, lambda x: x >= 1, "at least 1")
    for field in _NOT_NEGATIVE:
        _require(config, field, lambda x: x >= 0, "0 or more")
    for field in _POSITIVE:
        _require(config, field, lambda x: x > 0, "above 0")
    _require(config, "rl.num_group_samples", lambda x: x >= 2, "at least 2, a group")
    _require(config, "rl.ema_decay", lambda x: 0 <= x < 1, "from 0 to below 1")
    _require(config, "sampling.eta", lambda x: 0 < x <= 1, "above 0, at most 1")
    _require(
        config, "sampling.sampling_steps", lambda x: 2 <= x <= 1000, "from 2 to 1000"
    )
    _check_step_choice(config)
    _check_components(config)
    check_divisible(
        config.data.batch_size,
        config.rl.num_group_samples,
        config.rl.num_inner_batch,
        max(config.rl.grad_accum, 1),
        num_devices,
    )
    _check_rollout_parts(config, num_devices)


def _check_rollout_parts(config: Any, num_devices: int) -> None:
    steps, crystals = config.rl.num_inner_batch, config.data.batch_size
    crystals *= config.rl.num_group_samples
    _require(
        config,
        "rl.rollout_parts",
        lambda x: max(x, steps) % min(x, steps) == 0 == crystals % (x * num_devices),
        f"a multiple or a divisor of config.rl.num_inner_batch = {steps}, and times "
        f"the number of devices, {num_devices}, divide the {crystals} crystals",
    )


def _check_step_choice(config: Any) -> None:
    recorded = config.sampling.sampling_steps - (config.sampling.sampler == "ddim")
    for field in ("rl.num_train_steps", "rl.window"):
        rule = f"at most {recorded}, the steps that have a density"
        _require(config, field, lambda x: x <= recorded, rule)
    if not config.rl.window:
        return
    rule = "0 where config.rl.window chooses the steps"
    _require(config, "rl.num_train_steps", lambda x: x == 0, rule)
    rule = "'ddim' for config.rl.window: DDPM has no deterministic steps"
    _require(config, "sampling.sampler", lambda x: x == "ddim", rule)


def active_components(config: Any) -> dict[str, dict]:
    """The reward components that count, as plain dicts by name."""
    components = config.reward.components.to_dict()
    if not components["custom"]["function"]:
        del components["custom"]
    return {name: c for name, c in components.items() if c["weight"] != 0}


def _check_components(config: Any) -> None:
    active = active_components(config)
    if not active:
        names = ", ".join(config.reward.components)
        raise UserError(
            "config.reward.components: none has a weight, so there is nothing to "
            f"learn; give one of {names} a weight, or custom a function"
        )
    if "creativity" not in active:
        rule = "0 where config.reward.components.creativity has no weight"
        _require(config, "reward.recent_iterations", lambda x: x == 0, rule)
    for name in active:
        field = f"reward.components.{name}"
        _require(
            config,
            f"{field}.normalize_fn",
            lambda x: x in NORMALIZATIONS,
            f"one of {tuple(NORMALIZATIONS)}",
        )
        _require(
            config,
            f"{field}.weight",
            lambda x: 0 < x < math.inf,
            "a finite number above 0 (for less of a thing, reward minus it)",
        )
    if "custom" in active:
        _require(
            config,
            "reward.components.custom.function",
            re.compile(r"[\w.]+:\w+").fullmatch,
            "module:function, the module as Python imports it",
        )


def _require(config: Any, field: str, holds: Callable, rule: str) -> None:
    value = config
    for part in field.split("."):
        value = value[part]
    if not holds(value):
        raise UserError(f"config.{field} = {value!r}: must be {rule}")

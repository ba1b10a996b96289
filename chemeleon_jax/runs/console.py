"""What a program says of itself on the terminal. Only the first process does."""

import math
import shlex
from pathlib import Path
from typing import Any

import jax

from chemeleon_jax.devices import distributed

_SHARES = {"valid": "valid", "unique": "unique", "metastable": "metastable"}
_SHARES |= {"msun": "MSUN"}


def say(*lines: str) -> None:
    """Prints lines at once, on stdout."""
    if distributed.is_first():
        print(*lines, sep="\n", flush=True)


def say_start(facts: dict[str, str], workdir, *, start: int, total: int, unit: str):
    """Prints what runs, and that it compiles, before anything that takes long.

    Facts get a line each. The run goes from `start` to `total`, in `unit`s: "iteration"
    or "step".
    """
    devices = jax.devices()
    begins = f"continues after {unit} {start} of" if start else f"{unit}s:"
    facts = facts | {
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "run": f"{workdir}, {begins} {total}",
        "curves": f"tensorboard --logdir {shlex.quote(str(Path(workdir).parent))}",
    }
    width = max(map(len, facts))
    say(*(f"{name:{width}}  {value}" for name, value in facts.items()))
    if start < total:
        say(
            f"compiling; the first {unit} takes a minute with the mini model on two "
            "CPU cores, longer with a larger one"
        )


def say_next(done: str, commands: list[list[str]]) -> None:
    """Prints what is done, and which modules make something of it, with arguments."""
    say(done, *(f"  python -m {shlex.join(command)}" for command in commands))


def progress_numbers(metrics: dict) -> dict[str, str]:
    """What of an iteration's metrics the progress line shows; shares in percent."""
    shown = {"reward": f"{float(metrics['reward']):.4g}"}
    for name, label in _SHARES.items():
        share = float(metrics.get(name, math.nan))
        if math.isfinite(share):
            shown[label] = f"{100 * share:.3g} %"
    return shown | {"KL": f"{float(metrics['kl_div']):.3g}"}


def count_parameters(params: Any) -> str:
    """The size of a model, for people."""
    count = sum(x.size for x in jax.tree.leaves(params))
    return f"{count:,} parameters"

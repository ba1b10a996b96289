"""An iteration on an accelerator, in one command of at most nine minutes.

    python -m benchmarks.accelerator --json=accelerator.json
    python -m benchmarks.accelerator --fixtures=DIR --original=DIR
    python -m benchmarks.accelerator --small  # two minutes on CPUs: that it works

The setting is the paper's, with random weights: DiT-B, a VAE of 8 layers of 512, 5 x 64
crystals of MP-20's sizes, 50 steps of DDIM. Sections come in the order of what matters
most; one for which time is too short is skipped, and the table says so. What fails is
said too, and does not end the rest. `docs/scaling.md` says what the columns mean.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.measure import matmul_rate, peak_memory, print_table
from benchmarks.policy import PAPER_VAE, SMALL_VAE, all_padded
from chemeleon_jax.devices.compilation import PRECISIONS
from chemeleon_jax.models.dit import DiT, dit_size

COLUMNS = ("section", "case", "s", "crystals/s", "TFLOP/s", "of matmul", "compile s")
COLUMNS += ("GB", "note")
GRACE = 15.0  # s, beyond the time that is given, for a section to end


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """How large everything is."""

    dit: DiT
    vae: dict[str, int]
    groups: int = 5
    group_size: int = 64
    steps: int = 50
    sizes: tuple[int, ...] = (64, 1024, 4096)  # crystals, of groups of `group_size`
    # Microbatches of a rollout, and of each of the two minibatches of an update, beside
    # the default, as few as memory allows: one per group pads least.
    microbatches: tuple[int, ...] = (5,)
    precisions: tuple[str, ...] = ("bfloat16", "float32")  # beside the default
    objectives: tuple[str, ...] = ("awm", "nft")  # beside grpo
    samples: int = 10_000
    crystals: int = 320  # whose energies are asked for
    relaxed: int = 64
    matrix: int = 8192  # whose square gives the rate of matrix products
    repeats: int = 3

    @property
    def batch(self) -> int:
        """Crystals of an iteration."""
        return self.groups * self.group_size


def paper() -> Setting:
    """The setting of the paper."""
    return Setting(DiT(**dit_size("B"), learn_sigma=False), PAPER_VAE)


def small() -> Setting:
    """One for two CPU cores, and for tests."""
    return Setting(
        DiT(depth=2, width=64, heads=2, learn_sigma=False),
        SMALL_VAE | {"width": 32, "mlp_width": 64},
        groups=2,
        group_size=8,
        steps=5,
        sizes=(),
        microbatches=(),
        precisions=(),
        objectives=("awm",),
        samples=64,
        crystals=8,
        relaxed=4,
        matrix=256,
        repeats=1,
    )


class Session:
    """What was measured, and how much time is left."""

    def __init__(self, seconds: float, path: Path | None = None):
        """Of so many seconds from now; rows are written to `path` as they come."""
        self.began, self.end = time.monotonic(), time.monotonic() + seconds
        self.path, self.rows = path, []
        self.rates: dict[str, float] = {}  # of matrix products, by precision

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def add(self, section: str, case: str, **values: Any) -> None:
        """A row, whose other columns stay empty."""
        row = {name: values.pop(name, "-") for name in COLUMNS}
        assert not values, values
        self.rows.append(row | {"section": section, "case": case})
        at = time.monotonic() - self.began
        said = {k: v for k, v in self.rows[-1].items() if v != "-"}
        print(f"{at:.0f} s: {said}", file=sys.stderr, flush=True)
        if self.path:
            self.path.write_text(json.dumps({"rows": self.rows}, indent=1) + "\n")

    def attempt(
        self, section: str, case: str, needs: float, function: Callable[[], None]
    ) -> None:
        """Calls `function` if `needs` seconds are left; an error becomes a row."""
        if self.left < needs:
            note = f"skipped: {max(self.left, 0):.0f} s left, about {needs:.0f} needed"
            self.add(section, case, note=note)
            return
        try:
            function()
        except Exception as error:
            reason = str(error).strip().partition("\n")[0][:150]
            self.add(section, case, note=f"failed: {type(error).__name__}: {reason}")


def environment(session: Session, setting: Setting) -> None:
    """Versions, the device, and what it makes of plain matrix products."""
    device = jax.devices()[0]
    versions = f"Python {sys.version.split()[0]}, jax {jax.__version__}, "
    versions += f"{os.cpu_count()} CPUs"
    stats = device.memory_stats() or {}
    limit = stats.get("bytes_limit", 0) / 1e9
    session.add("environment", device.device_kind, GB=limit or "-", note=versions)
    for name, dtype, precision in (
        ("default", jnp.float32, None),
        ("bfloat16", jnp.bfloat16, None),
        ("float32", jnp.float32, "float32"),
    ):
        rate = matmul_rate(setting.matrix, dtype, precision)
        session.rates[name] = rate
        case = f"matrix products, {name}"
        session.add("environment", case, **{"TFLOP/s": rate / 1e12})


def memory_peak() -> float:
    """GB that the device has held at most, this process where it has no count."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats["peak_bytes_in_use"] / 1e9 if stats else peak_memory()


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Prints the table, and returns its rows."""
    from benchmarks import accelerator_policy, accelerator_rewards, original

    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--small", action="store_true", help="two minutes on CPUs")
    add("--seconds", type=float, default=520.0, help="that all of it may take")
    add("--json", type=Path, help="file to write the rows to, as they come")
    add("--only", default="", help="sections, with commas between")
    add("--fixtures", type=Path, help="recorded fixtures: convert_checkpoints.verify")
    add("--original", type=Path, help="Chemeleon2's code, to run beside this one")
    flags = parser.parse_args(arguments)
    if jax.default_backend() == "cpu" and not flags.small:
        parser.error("JAX sees no accelerator, only CPUs: --small is for these")
    setting = small() if flags.small else paper()
    session = Session(flags.seconds, flags.json)
    sections: dict[str, Callable[[], None]] = {
        "environment": lambda: environment(session, setting),
        "policy": lambda: accelerator_policy.policy(session, setting),
        "original": lambda: original.run(session, setting, flags.original),
        "parity": lambda: accelerator_rewards.parity(
            session, flags.fixtures, "highest"
        ),
        "energies": lambda: accelerator_rewards.potentials(session, setting),
        "iteration": lambda: accelerator_rewards.iteration(session, flags.small),
        "sizes": lambda: accelerator_policy.sizes(session, setting),
        "objectives": lambda: accelerator_policy.objectives(session, setting),
        "sample": lambda: accelerator_policy.bulk(session, setting),
        "parity_bfloat16": lambda: accelerator_rewards.parity(
            session, flags.fixtures, PRECISIONS["bfloat16"]
        ),
    }
    needs = {"parity": 60.0, "iteration": 60.0, "parity_bfloat16": 60.0}
    if flags.original is None:
        del sections["original"]
    if flags.fixtures is None:
        del sections["parity"], sections["parity_bfloat16"]
    wanted = [name for name in flags.only.split(",") if name] or list(sections)
    if unknown := [name for name in wanted if name not in sections]:
        raise SystemExit(f"--only: no section {unknown[0]}; of {', '.join(sections)}")
    late = threading.Timer(flags.seconds + GRACE, end, [session])
    late.daemon = True
    late.start()
    # Every width that is compiled takes a CPU half a minute.
    with all_padded() if flags.small else contextlib.nullcontext():
        for name in wanted:
            seconds = 1.0 if flags.small else needs.get(name, 10.0)
            session.attempt(name, "all", seconds, sections[name])
    late.cancel()
    session.add("memory", "most that was held", GB=memory_peak())
    print_table(session.rows)
    return session.rows


def end(session: Session) -> None:
    """Prints what there is, and ends the process: a section took too long."""
    session.add("memory", "most that was held, at the end of time", GB=memory_peak())
    print_table(session.rows)
    sys.stdout.flush()
    os._exit(3)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # without waiting for what still compiles

"""Kills a small run at random moments, and compares it with one left alone.

    python tests/support/kill_and_resume.py                        # 20 kills of train
    python tests/support/kill_and_resume.py --program=pretrain
    python tests/support/kill_and_resume.py --kills=3 --seed=1

Both runs must end with the same parameters, optimiser state, moving average and logged
scalars, bit for bit, and with every point in the event files once. A kill is a SIGKILL;
one in five comes while the program starts, the others at a random moment of a random
iteration, which is often while a state is being written.
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import tiny

from chemeleon_jax.data.dataset import load_dataset, save_npz
from chemeleon_jax.models.store import save_model
from chemeleon_jax.runs import tracking
from chemeleon_jax.runs.states import list_steps, read_subtree

ROOT = Path(__file__).parents[2]
TRAIN = {
    "config": "configs/rl_atomic_density.py:unrelaxed",
    "config.checkpoint_every": 1,
    "config.validate_every": 3,
    "config.validation_samples": 8,
    "config.validation_pictures": 0,
    "config.rl.num_group_samples": 4,
    "config.rl.ema_decay": 0.9,
    "config.data.batch_size": 2,
    "config.sampling.sampling_steps": 3,
    "config.reward.workers": 1,
    "config.reward.time_limit": 600.0,  # a busy machine must not change a score
    "config.reward.components.custom.time_limit": 600.0,
    # What the last iterations made counts, and must be read back.
    "config.reward.components.creativity.weight": 1.0,
    "config.reward.recent_iterations": 3,
}
PRETRAIN = {
    "config": "configs/vae.py",
    "config.validate_every": 1,
    "config.log_every": 1,
    "config.patience": 10**6,  # else it may end before its last kill
    "config.data.atoms_per_batch": 64,
    "config.optimizer.warmup_steps": 2,
} | {
    f"config.vae.{part}.{name}": value
    for part in ("encoder", "decoder")
    for name, value in tiny.TRANSFORMER.items()
}
ITERATIONS = {"train": 60, "pretrain": 300}  # enough for the last of 20 kills
STATE = {
    "train": ("iteration", "params", "opt_state", "ema_params", "skipped"),
    "pretrain": ("step", "params", "opt_state", "ema_params", "best", "since_best"),
}


class Program(NamedTuple):
    """A program to be killed, and where it leaves what it learns."""

    name: str
    iterations: int
    options: dict[str, object]
    folder: Path  # of data, models, compiled functions and runs

    def start(self, run: str, **popen) -> subprocess.Popen:
        """Starts or continues a run; its progress lines can be read from `stderr`."""
        options = self.options | {"workdir": self.folder / run}
        arguments = [f"--{name}={value}" for name, value in options.items()]
        quick = (
            "--xla_backend_optimization_level=0"
            " --xla_llvm_disable_expensive_passes=true"
        )
        environment = (
            {"XLA_FLAGS": quick}
            | os.environ
            | {
                "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "PYTHONPATH": str(ROOT),
            }
        )
        return subprocess.Popen(
            [sys.executable, "-m", f"chemeleon_jax.{self.name}", *arguments],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            **popen,
        )

    def states(self, run: str) -> Path:
        """The folder that holds a run's events and states."""
        return self.folder / run / ("training" if self.name == "pretrain" else "")


def prepare(folder: Path, name: str, iterations: int, **changes) -> Program:
    """Writes tiny models and a data set of few crystals, for quick iterations."""
    dataset = load_dataset("mp_mini")
    small = np.flatnonzero(dataset.crystals.mask.sum(-1) <= 4)
    picked = [small[dataset.split[small] == s][:n] for s, n in ((0, 60), (1, 8))]
    save_npz(folder / "few.npz", dataset.subset(np.concatenate(picked)))
    options = dict(TRAIN if name == "train" else PRETRAIN)
    options["config.data.dataset"] = folder / "few.npz"
    if name == "train":
        for kind, model in (
            ("vae", tiny.vae_of_valid_cells()),
            ("ldm", tiny.ldm_checkpoint()),
        ):
            save_model(folder / kind, *model)
            options[f"config.{kind}_ckpt_path"] = folder / kind
        options["config.reward.reference_dataset"] = folder / "few.npz"
    length = "num_iterations" if name == "train" else "num_steps"
    options[f"config.{length}"] = iterations
    return Program(name, iterations, options | changes, folder)


def finish(program: Program, run: str) -> float:
    """Runs to the end; seconds per iteration."""
    times, lines = [], []
    with program.start(run) as process:
        for line in process.stderr:
            lines.append(line)
            if line.startswith("iteration "):
                times.append(time.monotonic())
    if process.returncode != 0:
        raise SystemExit("".join(lines))
    return (times[-1] - times[0]) / max(len(times) - 1, 1) if times else 0.0


def wait_for(process: subprocess.Popen, iteration: int) -> None:
    """Until so many iterations are done, or the process has ended."""
    for line in process.stderr:
        done = re.match(r"iteration (\d+)/", line)
        if done and int(done[1]) >= iteration:
            return


def kill(process: subprocess.Popen, delay: float) -> bool:
    """Kills a process after a while; whether it was still there."""
    try:
        process.wait(delay)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def kill_and_finish(
    program: Program, run: str, kills: int, pace: float, seed: int
) -> tuple[int, int]:
    """Kills a run so many times, then lets it end.

    Args:
      program: what to start.
      run: name of the run.
      kills: one in five during start-up, the others spread over the first half.
      pace: s per iteration.
      seed: of the random moments.

    Returns:
      Kills that found the run alive, and those of them while it wrote a state.
    """
    rng = random.Random(seed)
    # The second half is left, so that a run that hurries has not ended before a kill.
    moments = sorted(rng.sample(range(1, program.iterations // 2), kills))
    startup, killed, writing = 0.0, 0, 0
    for number, iteration in enumerate(moments, 1):
        began = time.monotonic()
        early = number % 5 == 0  # an earlier start has shown how long one takes
        with program.start(run) as process:
            if not early:
                wait_for(process, 1)
                startup = time.monotonic() - began
                wait_for(process, iteration)
            delay = rng.uniform(0, startup if early else pace)
            alive = kill(process, delay)
        states = program.states(run) / "checkpoints"
        torn = any(states.glob(".writing-*"))
        killed += alive
        writing += torn
        print(
            f"kill {number}: {delay:.2f} s after "
            + ("the start" if early else f"iteration {iteration}")
            + f", at state {max(list_steps(states), default=None)}"
            + (", writing the next" if torn else "")
            + ("" if alive else ": it had ended"),
            flush=True,
        )
    finish(program, run)
    return killed, writing


def compare(program: Program, run: str, other: str) -> list[str]:
    """What differs between two finished runs."""
    different = []
    for name in STATE[program.name]:
        trees = [
            read_subtree(program.states(r) / "checkpoints", name) for r in (run, other)
        ]
        bits = [
            [(x.dtype, x.tobytes()) for x in jax.tree.leaves(tree)] for tree in trees
        ]
        if bits[0] != bits[1]:
            different.append(name)
    scalars = [points(program.states(r)) for r in (run, other)]
    for r, found in zip((run, other), scalars, strict=True):
        if len(found) != len(dict(found)):
            different.append(f"{r}: a point is there twice")
    values = [dict(found) for found in scalars]
    different += sorted(
        f"{tag} at {step}"
        for tag, step in values[0].keys() | values[1].keys()
        if values[0].get((tag, step)) != values[1].get((tag, step))
    )
    return different


def points(run: Path) -> list:
    """((tag, step), bits of the value) of every scalar, but those that are times."""
    return [
        ((value.tag, event.step), np.float32(value.simple_value).tobytes())
        for file in tracking._event_files(run)
        for event, _ in tracking._events(file)
        for value in event.summary.value
        if not value.tag.startswith("time/")
    ]


def processes(session: int) -> list[int]:
    """Those of a session, but zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, number = stat.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(number) == session and state != "Z":
            found.append(int(stat.parent.name))
    return found


def interrupt(program: Program, run: str, number: signal.Signals, status: int) -> float:
    """Ends a run by a signal after a few iterations; seconds until nothing is left."""
    with program.start(run, start_new_session=True) as process:
        for line in process.stderr:
            if line.startswith("iteration "):
                break
        began = time.monotonic()
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        process.communicate()
    if process.returncode != status:
        raise SystemExit(f"{number.name}: status {process.returncode}, not {status}")
    require_none_left(process.pid)
    return time.monotonic() - began


def require_none_left(session: int, patience: float = 3.0) -> None:
    """Workers look for their parent once a second."""
    deadline = time.monotonic() + patience
    while left := processes(session):
        if time.monotonic() > deadline:
            commands = subprocess.run(["ps", "-fp", ",".join(map(str, left))])
            raise SystemExit(f"processes outlive the run: {commands.stdout}")
        time.sleep(0.1)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", choices=STATE, default="train")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        iterations = arguments.iterations or ITERATIONS[arguments.program]
        program = prepare(Path(folder), arguments.program, iterations)
        pace = finish(program, "whole")
        print(f"alone: {pace:.2f} s an iteration", flush=True)
        killed, writing = kill_and_finish(
            program, "killed", arguments.kills, pace, arguments.seed
        )
        print(f"{killed} kills, {writing} while a state was being written")
        different = compare(program, "whole", "killed")
    if different:
        raise SystemExit("not the same: " + ", ".join(different[:20]))
    print("identical: parameters, optimiser state, moving average, scalars")


if __name__ == "__main__":
    main()

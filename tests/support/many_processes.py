"""A small run by several processes on one machine, each with CPU devices of its own.

    python tests/support/many_processes.py  # layouts, against one device
    python tests/support/many_processes.py --program=pretrain
    python tests/support/many_processes.py --kill  # one of two is killed

Collectives go over gloo, as they would between hosts without accelerators.
"""

import argparse
import faulthandler
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from kill_and_resume import STATE, Program, prepare, wait_for

from chemeleon_jax import cli
from chemeleon_jax.data.dataset import MAX_ATOMS
from chemeleon_jax.models import buckets
from chemeleon_jax.pretrain import pretrain
from chemeleon_jax.runs.states import read_subtree
from chemeleon_jax.runs.tracking import read_scalars
from chemeleon_jax.train import train

ROOT = Path(__file__).parents[2]
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# Layouts are compared, not how many threads share a matrix product: that is another
# rounding, which some energies make a hundred times as large.
QUICK += " --xla_cpu_multi_thread_eigen=false"

PROGRAMS = {"train": train, "pretrain": pretrain}
# What runs are compared with: one device, which in `train` computes as many crystals at
# once as each of four does. Float32 sums depend on that by more than on who adds up.
ALONE = {
    "train": {"config.rl.memory_budget": 1.3e-4, "config.rl.grad_accum": 4},
    "pretrain": {},
}
# Processes, devices of each, and what else the run is told.
LAYOUTS = {
    "train": {
        "1x4": (1, 4, {}),
        "2x2": (2, 2, {}),
        "4x1": (4, 1, {}),
        "2x2 fsdp": (2, 2, {"config.fsdp": 2}),
        "1x1 at once": (1, 1, {}),
    },
    "pretrain": {"1x2": (1, 2, {}), "2x1": (2, 1, {}), "2x2": (2, 2, {})},
}
# What may differ by more than 1e-5. A bias of attention's keys changes nothing, so its
# gradient is rounding, of which Adam makes steps of its usual length all the same.
# Latents of a share of the crystals are rounded otherwise than those of all, by 7e-9:
# three updates later the greatest ratio of any crystal and step shows 1e-5 of it.
BOUNDS = {
    "train": {"train/ratio_max": 1e-4},
    "pretrain": {"params": 1e-4, "ema_params": 1e-4},
}
# Every kind of share: by formula, by rows on the device, by the first process. All
# energies count, also those far above the hull that random weights make.
REWARDS = {
    "config": "configs/rl_dng.py:unrelaxed",
    "config.rl.num_inner_batch": 2,
    "config.checkpoint_every": 2,
    "config.validate_every": 0,
    "config.reward.components.custom.function": "custom_rewards:ranks",
    "config.reward.components.creativity.min_elements": 1,
    "config.reward.components.energy.min_elements": 1,
    "config.reward.components.energy.min_hull_entries": 0,
    "config.reward.components.energy.clip_max": 100.0,
    "config.reward.components.energy.decay": 0.0,
    "config.rl.kl_weight": 1.0,
}


def run_config(
    folder: Path, iterations: int, name: str = "train", **changes
) -> Program:
    """A tiny model, and rewards that exchange something."""
    own = REWARDS if name == "train" else {}
    return prepare(folder, name, iterations, **own | changes)


def launch(
    program: Program, run: str, processes: int, devices: int, **changes
) -> list[subprocess.Popen]:
    """Starts a run; process i is the i-th."""
    options = program.options | {"workdir": program.folder / run} | changes
    arguments = [f"--{name}={value}" for name, value in options.items()]
    return start([__file__, f"--worker={program.name}", *arguments], processes, devices)


def start(command: list[str], processes: int, devices: int) -> list[subprocess.Popen]:
    """Starts a Python script in several processes that find each other."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    for i in range(processes):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")]),
        }
        if processes > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(i),
            }
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
    return started


def work() -> None:
    """One process of a run: the program, with one width to compile."""
    faulthandler.register(signal.SIGUSR1)
    name = sys.argv.pop(1).removeprefix("--worker=")
    buckets.WIDTH_STEP = MAX_ATOMS
    cli.run(PROGRAMS[name])


def finish(started: list[subprocess.Popen]) -> list[str]:
    """What each process said, once all have ended.

    Raises:
      SystemExit: one ended with another status than 0.
    """
    said = [process.communicate()[1] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit("\n".join(said))
    return said


def differences(program: Program, run: str, other: str) -> dict[str, list[float]]:
    """How far two finished runs are apart, by what differs.

    Of crystals, rewards and curves the greatest difference of each iteration, of the
    last states the greatest of all; relative to values that are above 1.
    """
    found = {}
    states = [program.states(r) / "checkpoints" for r in (run, other)]
    for name in STATE[program.name]:
        trees = [jax.tree.leaves(read_subtree(folder, name)) for folder in states]
        found[name] = [max(apart(a, b) for a, b in zip(*trees, strict=True))]
    for file in sorted((program.folder / run).glob("crystals/*.npz")):
        same = program.folder / other / "crystals" / file.name
        with np.load(file) as one, np.load(same) as two:
            for key in one.files:
                found.setdefault(key, []).append(apart(one[key], two[key]))
    curves = [read_scalars(program.states(r)) for r in (run, other)]
    for tag in curves[0].keys() | curves[1].keys():
        if not tag.startswith("time/"):
            pairs = zip(*(c[tag][1] for c in curves), strict=True)
            found[tag] = [apart(a, b) for a, b in pairs]
    return found


def apart(a, b) -> float:
    """The greatest difference, relative to values above 1; inf where one is NaN."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    if (np.isnan(a) != np.isnan(b)).any():
        return np.inf
    difference = np.nan_to_num(abs(a - b) / np.maximum(1, abs(a)))
    return float(difference.max(initial=0.0))


def compare_layouts(program: Program):
    """Runs on one device, then in each layout: its name, and `differences`."""
    finish(launch(program, "1x1", 1, 1, **ALONE[program.name]))
    for name, (processes, devices, changes) in LAYOUTS[program.name].items():
        finish(launch(program, name, processes, devices, **changes))
        yield name, differences(program, "1x1", name)


def kill_one(program: Program, run: str, victim: int) -> tuple[float, list[str]]:
    """Kills one of two processes in the middle of a run.

    Returns:
      Seconds until the other had ended, and what it said.
    """
    started = launch(program, run, 2, 1)
    wait_for(started[0], 3)
    started[victim].send_signal(signal.SIGKILL)
    began = time.monotonic()
    said = started[1 - victim].communicate(timeout=120)[1]
    seconds = time.monotonic() - began
    started[victim].communicate()
    return seconds, said


def main() -> None:
    """The command line."""
    if sys.argv[1:] and sys.argv[1].startswith("--worker="):
        work()
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", choices=PROGRAMS, default="train")
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--iterations", type=int, default=4, help="or steps")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.kill:
            quick = {"config.reward.components.energy.weight": 0.0}
            program = run_config(Path(folder), 1000, **quick)
            for victim in (0, 1):
                seconds, said = kill_one(program, "killed", victim)
                print(f"process {victim} killed, the other gone after {seconds:.1f} s")
                print(said[-2000:])
            return
        program = run_config(Path(folder), arguments.iterations, arguments.program)
        for layout, found in compare_layouts(program):
            for when, number in (("first iteration", 0), ("all", slice(None))):
                most = {k: np.max(v[number]) for k, v in found.items()}
                worst = sorted(most.items(), key=lambda item: -item[1])[:5]
                worst = ", ".join(f"{k} {v:.1e}" for k, v in worst)
                print(f"{layout}, {when}: {worst}", flush=True)


if __name__ == "__main__":
    main()

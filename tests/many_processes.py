"""A small run by several processes on one machine, each with CPU devices of its own.

    python tests/many_processes.py                # all layouts, against one device
    python tests/many_processes.py --kill         # one of two processes is killed

Collectives go over gloo, as they would between hosts without accelerators.
"""

import argparse
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
from kill_and_resume import Program, prepare, wait_for

from chemeleon_jax import buckets, config
from chemeleon_jax.data import MAX_ATOMS
from chemeleon_jax.states import read_subtree
from chemeleon_jax.tracking import read_scalars
from chemeleon_jax.train import train

ROOT = Path(__file__).parent.parent
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"

LAYOUTS = {"1x4": (1, 4), "2x2": (2, 2), "4x1": (4, 1)}  # processes, devices of each
# What may differ by more than 1e-5: degrees, a norm of about 500, and what amplifies.
BOUNDS = {
    "angles": 1e-4,
    "train/grad_norm": 1e-2,
    "train/ratio_max": 1e-4,
    "train/ratio_min": 1e-4,
}
# Every kind of share: by formula, by rows on the device, by the first process.
REWARDS = {
    "config": "configs/rl_dng.py",
    "config.rl.num_inner_batch": 2,
    "config.checkpoint_every": 2,
    "config.validate_every": 0,
    "config.reward.components.custom.function": "custom_rewards:ranks",
}


def run_config(folder: Path, iterations: int, **changes) -> Program:
    """A tiny model, and rewards that exchange something."""
    return prepare(folder, "train", iterations, **REWARDS | changes)


def launch(
    program: Program, run: str, processes: int, devices: int
) -> list[subprocess.Popen]:
    """Starts a run; process i is the i-th."""
    options = program.options | {"workdir": program.folder / run}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    return start([__file__, "--worker", *arguments], processes, devices)


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
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
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
    """One process of a run: `chemeleon_jax.train`, with one width to compile."""
    import faulthandler

    faulthandler.register(signal.SIGUSR1)
    sys.argv.remove("--worker")
    buckets.WIDTH_STEP = MAX_ATOMS
    config.run(train)


def finish(started: list[subprocess.Popen]) -> list[str]:
    """What each process said, once all have ended.

    Raises:
      SystemExit: one ended with another status than 0.
    """
    said = [process.communicate()[1] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit("\n".join(said))
    return said


def differences(program: Program, run: str, other: str) -> dict[str, float]:
    """The greatest differences between two finished runs, by what differs."""
    found = {}
    for name in ("params", "ema_params"):
        trees = [
            read_subtree(program.folder / r / "checkpoints", name) for r in (run, other)
        ]
        leaves = zip(*map(jax.tree.leaves, trees), strict=True)
        found[name] = max(float(abs(a - b).max()) for a, b in leaves)
    files = sorted((program.folder / run / "crystals").iterdir())
    for file in files:
        one, two = (
            np.load(file),
            np.load(program.folder / other / "crystals" / file.name),
        )
        for key in one.files:
            a, b = (np.asarray(x[key], float) for x in (one, two))
            difference = np.nan_to_num(abs(a - b)).max(initial=0.0)
            found[key] = max(found.get(key, 0.0), float(difference))
            if (np.isnan(a) != np.isnan(b)).any():
                found[key] = np.inf
    curves = [read_scalars(program.folder / r) for r in (run, other)]
    for tag in curves[0].keys() | curves[1].keys():
        if not tag.startswith("time/"):
            a, b = (c[tag][1] for c in curves)
            found[tag] = float(abs(a - b).max())
    return found


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
    if "--worker" in sys.argv:
        work()
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--energies", action="store_true", help="with CHGNet")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        changes = {}
        if not arguments.energies:
            changes["config.reward.components.energy.weight"] = 0.0
        if arguments.kill:
            program = run_config(Path(folder), 1000, **changes)
            for victim in (0, 1):
                seconds, said = kill_one(program, "killed", victim)
                print(f"process {victim} killed, the other gone after {seconds:.1f} s")
                print(said[-2000:])
            return
        program = run_config(Path(folder), arguments.iterations, **changes)
        finish(launch(program, "1x1", 1, 1))
        for name, layout in LAYOUTS.items():
            finish(launch(program, name, *layout))
            found = differences(program, "1x1", name)
            worst = sorted(found.items(), key=lambda item: -item[1])[:6]
            print(name, ", ".join(f"{k} {v:.1e}" for k, v in worst), flush=True)


if __name__ == "__main__":
    main()

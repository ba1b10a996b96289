"""Runs a tiny model for thousands of iterations, and watches memory and processes.

    python -m benchmarks.soak                      # 2,000 iterations
    python -m benchmarks.soak --iterations=400

The resident memory of the main process and of its workers must grow by less than 2 %
after the first 200 iterations; then the run goes on and is ended by Ctrl-C (SIGINT to
all of its processes, as a terminal does), and by SIGTERM. No process may outlive it.
"""

import argparse
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))

from kill_and_resume import (  # noqa: E402
    Program,
    interrupt,
    prepare,
    processes,
    require_none_left,
)

WARM_UP = 200  # iterations before memory counts
GROWTH = 0.02


def resident(pid: int) -> float:
    """Resident memory of a process, MB; 0 if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return 0.0
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0.0


def watch(program: Program, run: str, every: int) -> dict[str, np.ndarray]:
    """Runs to the end; memory of the main process and of all others, MB."""
    measured = {"iteration": [], "main": [], "workers": []}
    with program.start(run, start_new_session=True) as process:
        for line in process.stderr:
            done = re.match(r"iteration (\d+)/", line)
            if not done:
                print(line, end="")
            elif int(done[1]) % every == 0:
                others = set(processes(process.pid)) - {process.pid}
                measured["iteration"].append(int(done[1]))
                measured["main"].append(resident(process.pid))
                measured["workers"].append(sum(map(resident, others)))
    if process.returncode != 0:
        raise SystemExit(f"ended with status {process.returncode}")
    require_none_left(process.pid)
    return {name: np.array(values) for name, values in measured.items()}


def growth(iteration: np.ndarray, memory: np.ndarray, since: int = WARM_UP) -> float:
    """Relative growth from an iteration to the last, medians of a tenth in between."""
    window = (iteration[-1] - since) / 10
    before = memory[(iteration >= since) & (iteration <= since + window)]
    after = memory[iteration >= iteration[-1] - window]
    return float(np.median(after) / np.median(before) - 1)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=2000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fewer = {"config.checkpoint_every": 20, "config.validate_every": 20}
        program = prepare(Path(folder), "train", arguments.iterations, **fewer)
        began = time.monotonic()
        measured = watch(program, "soak", every=10)
        print(f"{arguments.iterations} iterations, {time.monotonic() - began:.0f} s")
        worst = 0.0
        for name in ("main", "workers"):
            half = arguments.iterations // 2
            found, late = (
                growth(measured["iteration"], measured[name], since)
                for since in (WARM_UP, half)
            )
            worst = max(worst, found)
            print(
                f"{name}: {measured[name][-1]:.0f} MB, growth {found:+.2%}, "
                f"since iteration {half} {late:+.2%}"
            )
        more = program._replace(
            options=program.options | {"config.num_iterations": 10**6}
        )
        for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            seconds = interrupt(more, "soak", number, status)
            print(f"{number.name}: status {status}, nothing left after {seconds:.1f} s")
    if worst >= GROWTH:
        raise SystemExit(f"memory grew by more than {GROWTH:.0%}")


if __name__ == "__main__":
    main()

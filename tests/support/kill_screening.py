"""Kills a screening at random moments, and compares it with one left alone.

    python tests/support/kill_screening.py runs/rl_dng/samples --kills=5
    python tests/support/kill_screening.py runs/rl_dng/samples --num_candidates=4

Unknown flags go to the screening. Both must end with the same files, byte by byte, but
for the ASE database, which holds the time. A kill is a SIGKILL, at a random share of
the time that the one left alone took.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def start(samples: str, out: Path, flags: list[str]) -> subprocess.Popen:
    """Starts or continues a screening."""
    command = [sys.executable, "-m", "chemeleon_jax.screen", samples, f"--out={out}"]
    return subprocess.Popen([*command, *flags], stderr=subprocess.DEVNULL)


def finish(*arguments) -> float:
    """Lets a screening end; seconds."""
    began = time.monotonic()
    if start(*arguments).wait():
        raise SystemExit("the screening failed")
    return time.monotonic() - began


def contents(out: Path) -> dict[str, bytes]:
    """What a screening has written, by name."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
        and path.suffix != ".db"
        and path.relative_to(out).parts[0] not in ("partial", ".lock")
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("samples")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments, flags = parser.parse_known_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        duration = finish(arguments.samples, whole, flags)
        print(f"alone: {duration:.0f} s", flush=True)
        for number in range(1, arguments.kills + 1):
            process = start(arguments.samples, killed, flags)
            delay = rng.uniform(0, duration)
            try:
                process.wait(delay)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            alive = process.wait() == -signal.SIGKILL
            kept = sorted(p.name for p in killed.glob("partial/*/*"))
            print(
                f"kill {number}: after {delay:.0f} s, {len(kept)} parts kept"
                + ("" if alive else ": it had ended"),
                flush=True,
            )
        finish(arguments.samples, killed, flags)
        one, other = contents(whole), contents(killed)
    different = [n for n in one.keys() | other.keys() if one.get(n) != other.get(n)]
    if different:
        raise SystemExit("not the same: " + ", ".join(sorted(different)))
    print(f"identical: {len(one)} files")


if __name__ == "__main__":
    main()

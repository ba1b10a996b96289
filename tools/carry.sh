#!/usr/bin/env bash
# Wheels for a machine without network: what this project needs and that one lacks.
#
#   bash tools/carry.sh FOLDER [THERE]
#
# Run it where the project is installed and a registry can be reached. FOLDER is filled
# with wheels for Python 3.12 on Linux, x86-64, of the versions in constraints/. THERE
# lists the packages that the machine has (`pip list --format=freeze` there makes one),
# or that nobody will use there; by default it has jax, flax, optax, orbax, chex and e3nn
# with all that they need. Ends with status 1 if wheels and tracked files together are
# larger than LIMIT, 64 MiB by default. tools/accelerate.sh installs them.
set -euo pipefail
folder=$(realpath -m "${1:?usage: bash tools/carry.sh FOLDER [THERE]}")
there=${2:+$(realpath "$2")}
limit=${LIMIT:-$((64 * 1024 * 1024))}
cd "$(dirname "$0")/.."
versions=constraints/py313-jax0.12.txt

# NAME==VERSION of what is missing: the requirements' requirements, but those of THERE.
missing=$(python - "$versions" "$there" <<'PYTHON'
import re
import sys
import tomllib
from importlib import metadata

from packaging.requirements import Requirement

PRESENT = ["jax", "flax", "optax", "orbax-checkpoint", "chex", "e3nn"]
MORE = ["torch", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec",
        "filelock", "setuptools", "opt-einsum-fx"]  # of e3nn, which is not here


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(names, found):
    for line in names:
        wanted = Requirement(line)
        name = normal(wanted.name)
        here = {"python_version": "3.12", "extra": ""}
        if name in found or wanted.marker and not wanted.marker.evaluate(here):
            continue
        found.add(name)
        try:
            closure(metadata.distribution(name).requires or [], found)
        except metadata.PackageNotFoundError:
            pass
    return found


pins = dict(re.findall(r"(?m)^([\w.-]+)==(\S+)", open(sys.argv[1]).read()))
pins = {normal(name): version for name, version in pins.items()}
if sys.argv[2]:
    lines = open(sys.argv[2]).read().split()
    there = {normal(re.split(r"[=@<>\[]", line)[0]) for line in lines}
else:
    there = closure(PRESENT + MORE, set())
project = tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]
for name in sorted(closure(project, set(there)) - there):
    print(f"{name}=={pins[name]}")
PYTHON
)

mkdir -p "$folder"
platforms=()
for glibc in 28 27 24 17 12 5; do
  platforms+=(--platform "manylinux_2_${glibc}_x86_64")
done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux2010_x86_64)
for wanted in $missing; do
  python -m pip download --quiet --disable-pip-version-check --no-deps \
    --only-binary=:all: --python-version 3.12 --implementation cp \
    "${platforms[@]}" --dest "$folder" "$wanted" 2>/dev/null ||
    # Python alone, without a wheel of its own: one is made here.
    python -m pip wheel --quiet --disable-pip-version-check --no-deps \
      --wheel-dir "$folder" "$wanted"
done

wheels=$(du -cb "$folder"/*.whl | tail -n 1 | cut -f 1)
tracked=$(git ls-files -z | du -cb --files0-from=- | tail -n 1 | cut -f 1)
total=$((wheels + tracked))
printf '%d wheels of %.1f MiB and tracked files of %.1f MiB: %.1f of %.1f MiB\n' \
  "$(find "$folder" -name '*.whl' | wc -l)" \
  "$(bc -l <<<"$wheels / 1048576")" "$(bc -l <<<"$tracked / 1048576")" \
  "$(bc -l <<<"$total / 1048576")" "$(bc -l <<<"$limit / 1048576")"
[ "$total" -le "$limit" ] || {
  echo "too much: THERE may name what nobody will use there, such as plotly" >&2
  exit 1
}

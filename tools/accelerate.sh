#!/usr/bin/env bash
# The benchmark of an accelerator on a machine without network.
#
#   bash tools/accelerate.sh FOLDER [OPTIONS of benchmarks.accelerator]
#
# FOLDER holds the wheels of tools/carry.sh. They are installed into a folder of their
# own, which is deleted at the end: what the machine's Python has stays as it is. PYTHON
# names another one than python3; it must be 3.12.
set -euo pipefail
wheels=$(cd "${1:?usage: bash tools/accelerate.sh FOLDER [OPTIONS]}" && pwd)
shift
python=${PYTHON:-python3}
cd "$(dirname "$0")/.."
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
"$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps \
  --no-compile --target "$site" "$wheels"/*.whl
PYTHONPATH="$PWD:$site" PYTHONUNBUFFERED=1 "$python" -m benchmarks.accelerator "$@"

"""A run directory: one process at a time, and how the run was started."""

import contextlib
import errno
import fcntl
import importlib.metadata
import json
import logging
import math
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from chemeleon_jax.devices import distributed
from chemeleon_jax.errors import UserError
from chemeleon_jax.runs.files import read_json, write_json

logger = logging.getLogger(__name__)

PACKAGES = (
    "jax jaxlib flax optax orbax-checkpoint numpy scipy pymatgen ase safetensors"
).split()

DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)

# What of a model's config makes it that model: a run keeps it to its end.
ARCHITECTURE = "kind vae dit condition diffusion predictor encoder_sha256".split()


@contextlib.contextmanager
def work_directory(
    workdir, *, option: str = "--workdir", lock: str = "run.lock"
) -> Iterator[Path]:
    """The directory of a run, made if need be, for this run alone.

    The lock is the kernel's, on the file `lock` in it, and held by the first process of
    the run: it ends with it, however that ends. `option` is what names the directory on
    the command line.

    Raises:
      UserError: another run goes on there, or, also from within the block, the
        directory cannot be written: a full disk, no permission, or it is gone.
    """
    workdir = Path(workdir)
    if not distributed.is_first():
        yield workdir
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with open(workdir / lock, "a+") as file:
            _lock(file, workdir, option)
            yield workdir
    except OSError as e:
        place = str(e.filename or "nowhere")
        at_fault = place.startswith(str(workdir)) or str(workdir).startswith(place)
        if e.errno not in DISK_FAULTS and not at_fault:
            raise
        raise UserError(
            f"{workdir}: the run cannot be written there ({e}). What it wrote so far "
            "is as it was: once there is room to write, the same command continues; or "
            f"give another {option}"
        ) from e


def _lock(lock, workdir: Path, option: str) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise UserError(
            f"{workdir}: another process runs here ({lock.read().strip()}); wait for "
            f"it, end it, or give another {option}"
        ) from None
    except OSError as e:
        if e.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        logger.warning(
            "%s: this file system has no locks (%s); do not start two runs here",
            workdir,
            e.strerror,
        )
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}")
    lock.flush()


def write_run_info(
    workdir: Path, config: dict, model: dict, reference_sha256: str | None = None
) -> None:
    """Writes how a run was started: `config.json`, `run.json`.

    What a run that continues changes in its config is logged. Only the first process
    does anything. The config is resolved, with JSON values; `model` is the config of
    the model, `reference_sha256` the `params_digest` of what an RL run starts from,
    frozen parts too.

    Raises:
      UserError: the directory holds a run of another model.
    """
    if not distributed.is_first():
        return
    architecture = {name: model[name] for name in ARCHITECTURE if name in model}
    info, x64 = workdir / "run.json", bool(jax.config.jax_enable_x64)
    if info.is_file():
        before = read_json(info)
        changed = differences(before.get("architecture", architecture), architecture)
        if changed:
            raise UserError(
                f"{workdir}: holds a run of another model ({'; '.join(changed)}); "
                "give another --workdir"
            )
        if before.get("reference_sha256") != reference_sha256:
            raise UserError(
                f"{workdir}: holds a run that started from another model "
                f"({before.get('reference_sha256')} there, {reference_sha256} now); "
                "give another --workdir"
            )
        if before.get("x64", x64) != x64:
            raise UserError(
                f"{workdir}: holds a run with JAX_ENABLE_X64={int(not x64)}, which "
                f"draws other random numbers than {int(x64)}: set it as it was"
            )
        if changed := differences(read_json(workdir / "config.json"), config):
            logger.warning(
                "%s: continues with another config: %s", workdir, "; ".join(changed)
            )
    write_json(workdir / "config.json", config)
    write_json(
        info,
        {
            "reference_sha256": reference_sha256,
            "architecture": architecture,
            "x64": x64,
            "git_revision": _git_revision(),
            "python": platform.python_version(),
            "packages": {p: importlib.metadata.version(p) for p in PACKAGES},
            "devices": [str(d) for d in jax.devices()],
            "processes": jax.process_count(),
            "command": sys.argv,
        },
    )


def differences(before: dict, now: dict) -> list[str]:
    """`field: old -> new` of what differs; `before` went through JSON."""
    old = dict(_fields(before))
    new = dict(_fields(json.loads(json.dumps(now, default=str))))
    names = sorted(old.keys() | new.keys())
    pairs = [(name, old.get(name, "absent"), new.get(name, "absent")) for name in names]
    return [f"{name}: {a} -> {b}" for name, a, b in pairs if not _equal(a, b)]


def _fields(value: Any, prefix: str = ""):
    """The dotted names of all values."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _fields(inner, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, value


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):  # nan and inf are JSON here
        return a == b or (math.isnan(a) and math.isnan(b))
    return a == b


def _git_revision() -> str | None:
    """The commit of the checkout that this package lies in, `-dirty` if changed."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None

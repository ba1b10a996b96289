"""The states of a run on disk. The only module that knows Orbax.

`checkpoints/STEP/` holds `state/` (by Orbax) and `manifest.json`: the score, and the
SHA-256 of every file. A directory gets its name when it is complete and on the disk, so
that a process may be killed at any moment. What is read is compared with the manifest
first: a damaged state is never given to Orbax.
"""

import hashlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from chemeleon_jax.devices import distributed
from chemeleon_jax.errors import UserError
from chemeleon_jax.runs.files import digest, sync

logger = logging.getLogger(__name__)

KEEP_LATEST = 2  # one to continue from, one to fall back on


class RunCheckpoints(AbstractContextManager):
    """The states of one run, by step: the latest ones and the best one are kept.

    For the run that owns the directory (see `runs.work_directory`); others read with
    `read_subtree`. All processes of the run call the same methods: each writes what it
    alone has of an array, to a file system that all see; all else is the first one's.
    """

    def __init__(self, workdir):
        """Opens `workdir`/checkpoints, made if need be."""
        self._directory = Path(workdir, "checkpoints").absolute()
        if distributed.is_first():
            self._directory.mkdir(parents=True, exist_ok=True)
            for leftover in self._directory.glob(".*"):  # of a process that was killed
                shutil.rmtree(leftover)
        self._orbax = ocp.Checkpointer(ocp.StandardCheckpointHandler())
        self._saving = threading.Lock()  # a signal saves from a thread of its own

    @property
    def latest_step(self) -> int | None:
        """The newest step, None before the first."""
        return max(list_steps(self._directory), default=None)

    @property
    def best_step(self) -> int | None:
        """The step of the highest score, None while no state has one."""
        return find_best(self._directory)

    def save(self, step: int, state, *, score: float | None = None) -> None:
        """Writes a state; returns when it is on disk.

        Args:
          step: iterations done. A step that is there already is left as it is.
          state: any pytree of arrays.
          score: higher is better; None or not finite means no candidate for the best.

        Raises:
          UserError: it cannot be written. Earlier states are as they were.
        """
        with self._saving:
            scratch = self._directory / f".writing-{step}"
            try:
                if self._ask_first(lambda: step == self.latest_step):
                    return
                if distributed.is_first():
                    scratch.mkdir()  # not its parents: a vanished run stays away
                self._orbax.save(
                    scratch / "state", args=ocp.args.StandardSave(state), force=True
                )
                if distributed.is_first():
                    _write_manifest(scratch, score)
                    os.replace(scratch, self._directory / str(step))
                    sync(self._directory)
            except Exception as e:  # Orbax and TensorStore raise many kinds
                shutil.rmtree(scratch, ignore_errors=True)
                raise UserError(
                    f"{self._directory / str(step)}: this state cannot be written "
                    f"({_first_line(e)}). Earlier states are as they were: once there "
                    "is room to write, the same command continues from the latest"
                ) from e
            if distributed.is_first():
                self._delete_old()
            _forget_shards(state)

    def _ask_first(self, find: Callable[[], int]) -> int:
        """What the first process finds on disk, on all of them."""
        return distributed.broadcast_from_first(find() if distributed.is_first() else 0)

    def _delete_old(self) -> None:
        steps = sorted(list_steps(self._directory))
        for step in set(steps) - {*steps[-KEEP_LATEST:], self.best_step}:
            doomed = self._directory / f".deleting-{step}"
            os.replace(self._directory / str(step), doomed)
            shutil.rmtree(doomed)

    def restore_latest(self, target):
        """The newest state that is intact, bit for bit, or None if there is none yet.

        Damaged ones are said and set aside, as `damaged-STEP`.

        Args:
          target: a state of the same structure. Its arrays give shape, type and
            placement, whatever devices the state was saved from.

        Raises:
          UserError: all are damaged, or the state has another structure.
        """
        step = self._ask_first(self._find_intact)
        return None if step < 0 else self._restore(step, target)

    def _find_intact(self) -> int:
        """The newest state that is intact, -1 if there is none yet."""
        steps = sorted(list_steps(self._directory), reverse=True)
        for step in steps:
            damage = find_damage(self._directory / str(step))
            if damage is None:
                return step
            aside = self._directory / f"damaged-{step}"
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(self._directory / str(step), aside)
            logger.warning(
                "%s is damaged (%s), now called %s; continuing from the one before",
                self._directory / str(step),
                damage,
                aside.name,
            )
        if steps:
            raise UserError(
                f"{self._directory}: every state is damaged; delete this directory to "
                "start the run anew"
            )
        return -1

    def _restore(self, step: int, target):
        directory = self._directory / str(step)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        try:
            return self._orbax.restore(
                directory / "state", args=ocp.args.StandardRestore(abstract)
            )
        except Exception as e:
            raise UserError(
                f"{directory}: this state is of another model ({_first_line(e)}): "
                "config or code changed it; start a new --workdir"
            ) from e

    def __exit__(self, *_):
        self._orbax.close()


# ------------------------------------------------------------------------- reading


def read_subtree(directory: Path, name: str, *, best: bool = False):
    """One subtree of a run's latest or best state, on the host; None if there is none.

    Needs neither the structure of the state nor its devices, and the run may be going
    on: a state that it deletes meanwhile, or a damaged one, is passed over. The best
    state is that of the highest score; `directory` is the run's `checkpoints/`.
    """
    if best:
        step = find_best(directory)
        if step is None:
            return None
        if damage := find_damage(directory / str(step)):
            raise UserError(
                f"{directory / str(step)}: the best state is damaged ({damage})"
            )
        return _read_subtree(directory / str(step), name)
    steps = sorted(list_steps(directory), reverse=True)
    for step in steps:
        damage = find_damage(directory / str(step))
        if damage is None:
            return _read_subtree(directory / str(step), name)
        logger.warning("%s: %s; using the one before", directory / str(step), damage)
    if steps:
        raise UserError(f"{directory}: every state is damaged")
    return None


def _read_subtree(directory: Path, name: str):
    path = directory.absolute() / "state"
    handler = ocp.PyTreeCheckpointHandler()
    try:
        with ocp.Checkpointer(handler) as reader:
            saved = {name: reader.metadata(path).item_metadata.tree[name]}
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), saved)
            return reader.restore(
                path,
                args=ocp.args.PyTreeRestore(
                    item=saved, restore_args=as_numpy, partial_restore=True
                ),
            )[name]
    except Exception as e:
        raise UserError(f"{directory}: no readable policy ({_first_line(e)})") from e


def list_steps(directory: Path) -> list[int]:
    """The steps of a run's states."""
    return [int(d.name) for d in directory.iterdir() if d.name.isdecimal()]


def find_best(directory: Path) -> int | None:
    """The step of the highest score, the earliest of equals; None if none has one."""
    scores = {}
    for step in list_steps(directory):
        manifest = _read_manifest(directory / str(step))
        if manifest is not None and manifest["score"] is not None:
            scores[step] = manifest["score"]
    return max(sorted(scores), key=scores.__getitem__, default=None)


def find_iteration(directory: Path, *, best: bool = False) -> int:
    """The step of a run's latest or best state; 0 without one."""
    if best:
        return find_best(directory) or 0
    return max(list_steps(directory), default=0)


# ------------------------------------------------------------------------- manifests


def _write_manifest(directory: Path, score: float | None) -> None:
    """Completes a state: all of its files are on the disk when this returns."""
    sha256 = {}
    for path in sorted(directory.rglob("*")):
        sync(path)
        if path.is_file():
            sha256[str(path.relative_to(directory))] = digest(path)
    known = score is not None and np.isfinite(score)
    content = {"score": float(score) if known else None, "sha256": sha256}
    manifest = directory / "manifest.json"
    manifest.write_text(
        json.dumps({"content": content, "sha256": _content_digest(content)}, indent=1)
    )
    sync(manifest)
    sync(directory)


def _read_manifest(directory: Path) -> dict[str, Any] | None:
    """The score, and the checksums by file; None if the manifest itself is damaged."""
    try:
        manifest = json.loads((directory / "manifest.json").read_bytes())
        intact = manifest["sha256"] == _content_digest(manifest["content"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return manifest["content"] if intact else None


def _content_digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def find_damage(directory: Path) -> str | None:
    """What is wrong with a state's files; None if they are as they were written."""
    manifest = _read_manifest(directory)
    if manifest is None:
        return "manifest.json is missing or damaged"
    for name, expected in manifest["sha256"].items():
        try:
            if digest(directory / name) != expected:
                return f"the checksum of {name} is wrong"
        except OSError as e:
            return f"{name}: {e.strerror}"
    return None


def _forget_shards(state) -> None:
    """Lets the arrays of a state go when nobody needs them any more.

    Orbax asks each for its shards, which JAX keeps with it: on one device the shard is
    the array, which then refers to itself, and lives until Python looks for cycles.
    Many old states would stay in device memory.
    """
    for x in jax.tree.leaves(state):
        getattr(x, "__dict__", {}).pop("addressable_shards", None)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]

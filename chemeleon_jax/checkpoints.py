"""Models and runs on disk. The only module that knows Orbax and safetensors.

A model directory is what users exchange: `params.safetensors` (names joined by `/`) and
`config.json` (the keyword arguments of the modules, see docs/checkpoints.md). A run
directory is what a training program leaves: `config.json` and `run.json` (how it was
started), `model/` (the model it started from, a model directory) and `checkpoints/`
(its state, by Orbax).
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from orbax.checkpoint.checkpoint_managers import preservation_policy
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from chemeleon_jax import hub
from chemeleon_jax.errors import UserError

MINI = Path(str(files("chemeleon_jax"))) / "assets" / "mini"
# SHA-256 of each config.json, which holds that of the parameters. Trained anew, a model
# needs its new one here.
MINI_MODELS = {
    "vae": "f8b7944fef30970a9b6f488e84dcff58b1e8be956da37b82dd6f06c58ea1e8e7",
    "ldm": "29fb3052fd2a913b471e9088c966d3ca646ae19c07daeda54971683890c4ead7",
    "ldm_conditional": (
        "f1dd15d6c22cf6a1e45b21c618d962d0fd2753b85b64030c57a2ed70c70d27a3"
    ),
    "predictor": "63d4e277c132411234bf4eb4eec838625faff5fdccc565c5d031b0bed292f174",
}
PACKAGES = (
    "jax jaxlib flax optax orbax-checkpoint numpy scipy pymatgen ase safetensors"
).split()
KEEP_LATEST = 2  # one to continue from, one to fall back on


class Checkpoint(NamedTuple):
    """A model: what `Module.apply` takes, and what builds the modules."""

    params: dict[str, Any]  # {"vae" | "dit" | "condition" | "predictor": nested arrays}
    config: dict[str, Any]  # {"kind": "vae" | "ldm" | "predictor", "vae": {...}, ...}


# ------------------------------------------------------------------ model directories


def save_model(directory, params, config: dict, *, dtype=np.float32) -> None:
    """Writes a model directory.

    Each file appears at once or not at all, and `config.json` carries the checksum of
    the parameters, so that no crash leaves a directory that loads as another model.

    Args:
      directory: made if need be.
      params: nested dicts of floating-point arrays.
      config: JSON values, "kind" among them.
      dtype: storage type; float16 halves the file.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    flat = {
        name: np.ascontiguousarray(np.asarray(x), dtype)
        for name, x in flatten_dict(params, sep="/").items()
    }
    weights = directory / "params.safetensors"
    with _replacing(weights) as temporary:
        save_file(flat, temporary)
    _write_json(
        directory / "config.json", {**config, "params_sha256": _file_digest(weights)}
    )


def load(name, *, weights: str = "raw", step: str = "latest") -> Checkpoint:
    """Loads a model: embedded, from the hub, from a model or a run directory.

    Args:
      name: `mini:` and one of `MINI_MODELS`; `hub:` and one of `hub.FILES`,
        fetched and converted once; or a path. Of a run directory: its policy, with the
        frozen parts it started from.
      weights: "raw" or "ema", of a run directory.
      step: "latest", or "best" by validation score, of a run directory.

    Returns:
      Parameters as float32 NumPy arrays, and the model's config.

    Raises:
      UserError: no such name or path, a damaged file, or the hub is out of reach.
    """
    kind, _, rest = str(name).partition(":")
    if kind == "mini":
        return _load_model(_mini_dir(rest))
    if kind == "hub":
        return _load_model(hub.fetch(rest))
    path = Path(name)
    if path.suffix == ".ckpt":
        raise UserError(
            f"{path}: a PyTorch checkpoint; convert it first: "
            f"python -m convert_checkpoints {path} --out converted/"
        )
    if (path / "checkpoints").is_dir():
        return _load_run(path, weights, step)
    return _load_model(path)


def _load_model(directory: Path) -> Checkpoint:
    config_file, weights = directory / "config.json", directory / "params.safetensors"
    for file in (config_file, weights):
        if not file.is_file():
            raise UserError(
                f"{file}: no such file, so '{directory}' is no model directory; give "
                "the path of a converted model or of a run, mini:NAME, or hub:NAME"
            )
    try:
        config = json.loads(config_file.read_text())
        config["kind"]
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(
            f"{config_file}: not the config of a model ({e!r}); it may be damaged: "
            "convert or copy the model again"
        ) from e
    if config.pop("params_sha256", None) not in (None, _file_digest(weights)):
        raise UserError(
            f"{weights}: its checksum is not the one in config.json, so it is damaged "
            "or belongs to another model: convert or copy the model again"
        )
    try:
        flat = load_file(weights)
    except (SafetensorError, OSError) as e:
        raise UserError(
            f"{weights}: damaged ({e}); convert or copy the model again"
        ) from e
    params = {key: np.asarray(x, np.float32) for key, x in flat.items()}
    return Checkpoint(unflatten_dict(params, sep="/"), config)


def params_digest(params) -> str:
    """SHA-256 of names, shapes and float32 values: the same model, the same digest."""
    digest = hashlib.sha256()
    for name, x in sorted(flatten_dict(params, sep="/").items()):
        x = np.ascontiguousarray(np.asarray(x), np.float32)
        digest.update(f"{name}{x.shape}".encode())
        digest.update(x.tobytes())
    return digest.hexdigest()


def _mini_dir(name: str) -> Path:
    if name not in MINI_MODELS:
        raise UserError(
            f"mini:{name}: no such embedded model; there are "
            + ", ".join(f"mini:{m}" for m in MINI_MODELS)
        )
    config = MINI / name / "config.json"
    if not config.is_file() or _file_digest(config) != MINI_MODELS[name]:
        raise UserError(f"{config} was altered: install chemeleon_jax again")
    return MINI / name


# -------------------------------------------------------------------- run directories


class RunCheckpoints:
    """The states of one run, by step: the latest ones and the best one are kept."""

    def __init__(self, workdir):
        """Opens `workdir`/checkpoints, made if need be."""
        keep = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(n=KEEP_LATEST),
                preservation_policy.BestN(get_metric_fn=_score, n=1),
            ]
        )
        self._manager = ocp.CheckpointManager(
            Path(workdir, "checkpoints").absolute(),
            options=ocp.CheckpointManagerOptions(
                best_fn=_score,  # alone, it would delete the newest of a falling run
                preservation_policy=keep,
                enable_async_checkpointing=False,  # a full disk is an error here, now
            ),
        )

    @property
    def latest_step(self) -> int | None:
        """The newest step, None before the first."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """The step of the highest score, None while no state has one."""
        step = self._manager.best_step()
        if step is None or _score(self._manager.metrics(step)) == -np.inf:
            return None
        return step

    def save(self, step: int, state, *, score: float | None = None) -> None:
        """Writes a state; returns when it is on disk.

        Args:
          step: iterations done. A step that is there already is left as it is.
          state: any pytree of arrays.
          score: higher is better; None or not finite means no candidate for the best.
        """
        if step == self.latest_step:
            return
        if score is None or not np.isfinite(score):
            score = -np.inf
        self._manager.save(
            step, args=ocp.args.StandardSave(state), metrics={"score": float(score)}
        )

    def restore_latest(self, target):
        """The newest state, bit for bit, or None if there is none.

        Args:
          target: a state of the same structure. Its arrays give shape, type and
            placement, whatever devices the state was saved from.
        """
        return self._restore(self.latest_step, target)

    def restore_best(self, target):
        """The state of the highest score, or None if none has one."""
        return self._restore(self.best_step, target)

    def _restore(self, step: int | None, target):
        if step is None:
            return None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except Exception as e:  # Orbax and TensorStore raise many kinds
            raise UserError(
                f"{self._manager.directory / str(step)}: this state cannot be restored "
                f"({_first_line(e)}). If config or code changed the model, start a new "
                "--workdir; if the state is damaged, delete it to continue from the "
                "one before"
            ) from e

    def close(self) -> None:
        """Releases Orbax's threads."""
        self._manager.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _score(metrics) -> float:
    return metrics["score"]


def write_run_info(workdir, config: dict, model: Checkpoint | None = None) -> None:
    """Writes how a run was started: `config.json`, `run.json`, `model/`.

    Args:
      workdir: the run directory, made if need be.
      config: the resolved config, JSON values.
      model: what the run starts from: the reference policy with its frozen parts. A run
        that continues must start from the same one.

    Raises:
      UserError: the directory holds a run that started from another model.
    """
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    digest = params_digest(model.params) if model else None
    info = workdir / "run.json"
    if info.is_file():
        before = _read_json(info).get("reference_sha256")
        if before != digest:
            raise UserError(
                f"{workdir}: holds a run that started from another model "
                f"({before} there, {digest} now); give another --workdir"
            )
    elif model:
        save_model(workdir / "model", model.params, model.config)
    _write_json(workdir / "config.json", config)
    _write_json(
        info,
        {
            "reference_sha256": digest,
            "git_revision": _git_revision(),
            "python": platform.python_version(),
            "packages": {p: importlib.metadata.version(p) for p in PACKAGES},
            "devices": [str(d) for d in jax.devices()],
            "command": sys.argv,
        },
    )


def _load_run(workdir: Path, weights: str, step: str) -> Checkpoint:
    """A policy of a run, on the host, with its frozen parts and model config.

    Reads one subtree of the state, and needs neither its structure nor its devices.
    """
    item = {"raw": "params", "ema": "ema_params"}[weights]
    model = _load_model(workdir / "model")
    # No CheckpointManager here: the run may be going on, and those must not be two.
    steps = ocp.utils.checkpoint_steps(workdir / "checkpoints")
    if not steps:
        return model
    number = max(steps) if step == "latest" else _best_step(workdir, steps)
    directory = workdir.absolute() / "checkpoints" / str(number) / "default"
    handler = ocp.PyTreeCheckpointHandler()
    try:
        with ocp.Checkpointer(handler) as reader:
            saved = {item: reader.metadata(directory).item_metadata.tree[item]}
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), saved)
            policy = reader.restore(
                directory,
                args=ocp.args.PyTreeRestore(
                    item=saved, restore_args=as_numpy, partial_restore=True
                ),
            )[item]
    except Exception as e:
        raise UserError(
            f"{directory.parent}: no readable policy ({_first_line(e)}); delete this "
            "state to use the one before"
        ) from e
    return Checkpoint(model.params | policy, model.config)


def _best_step(workdir: Path, steps: list[int]) -> int:
    scores = {}
    for step in steps:
        file = workdir / "checkpoints" / str(step) / "metrics" / "metrics"
        scores[step] = _score(_read_json(file)) if file.is_file() else -np.inf
    best = max(steps, key=lambda step: scores[step])
    if scores[best] == -np.inf:
        raise UserError(
            f"{workdir}: no state of this run was validated, so there is no best one; "
            "take the latest"
        )
    return best


# --------------------------------------------------------------------------- on disk


class _replacing:
    """A temporary path beside `path`, renamed onto it if the block succeeds."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> Path:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._scratch = tempfile.mkdtemp(dir=self._path.parent, prefix=".writing-")
        return Path(self._scratch, self._path.name)

    def __exit__(self, error, *_):
        if error is None:
            os.replace(Path(self._scratch, self._path.name), self._path)
        shutil.rmtree(self._scratch)


def _write_json(file: Path, value) -> None:
    with _replacing(file) as temporary:
        temporary.write_text(json.dumps(value, indent=2, default=str) + "\n")


def _read_json(file: Path) -> dict:
    try:
        return json.loads(file.read_text())
    except ValueError as e:
        raise UserError(f"{file}: not JSON ({e}); delete it or restore it") from e


def _file_digest(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


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

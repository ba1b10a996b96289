"""Models and runs on disk. The only module that knows safetensors.

A model directory is what users exchange: `params.safetensors` (names joined by `/`) and
`config.json` (the keyword arguments of the modules, see docs/checkpoints.md). A run
directory is what a training program leaves: `config.json` and `run.json` (how it was
started, see `runs`), `model/` (the model it started from, a model directory) and
`checkpoints/` (its states, see `states`).
"""

import copy
import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from chemeleon_jax.errors import UserError
from chemeleon_jax.models import hub
from chemeleon_jax.models.condition import encode_nothing
from chemeleon_jax.runs import states
from chemeleon_jax.runs.files import digest, replacing, write_json

ENCODER_PARTS = "encode_atoms", "moments"  # of a VAE's parameters

MINI = Path(str(files("chemeleon_jax"))) / "assets" / "mini"
# SHA-256 of each config.json, which holds that of the parameters. Trained anew, a model
# needs its new one here.
MINI_MODELS = {
    "vae": "c843315f4ce7dcb8640679f66c4ca3044141c7ba2426052370d762d619cb0a6b",
    "ldm_conditional": (
        "4a0919ed5c751d6e7ed263d841843bb40a6ebd9a601f6fb469d5c3b83d9982eb"
    ),
    "predictor": "1993d5e3c8a2ae9fb7a881bfda33b9630335a1751c96e40cd146ebfa7e28db51",
}


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
    with replacing(weights) as temporary:
        temporary.write_bytes(save(flat))  # save_file: for the owner alone
    write_json(directory / "config.json", {**config, "params_sha256": digest(weights)})


def load(name, *, weights: str = "ema", step: str = "latest") -> Checkpoint:
    """Loads a model: embedded, from the hub, from a model or a run directory.

    Args:
      name: `mini:` and one of `MINI_MODELS`, or `mini:ldm`, which is the conditional
        one asked for nothing; `hub:` and one of `hub.FILES`, fetched and converted
        once; or a path. Of a run directory: its policy, with the frozen parts it
        started from; `RUN@best` is RUN with `step="best"`.
      weights: of a run directory: "ema", the moving average of its policies (where the
        run keeps none, the policy itself), or "raw".
      step: "latest", or "best" by validation score, of a run directory.

    Returns:
      Parameters as float32 NumPy arrays, and the model's config.

    Raises:
      UserError: no such name or path, a damaged file, or the hub is out of reach.
    """
    kind, _, rest = str(name).partition(":")
    if kind == "mini":
        return _load_mini(rest)
    if kind == "hub":
        return _load_model(hub.fetch(rest))
    path = Path(name)
    if path.suffix == ".ckpt":
        raise UserError(
            f"{path}: a PyTorch checkpoint; convert it first: "
            f"python -m convert_checkpoints {path} --out converted/"
        )
    run = Path(str(name).removesuffix("@best"))
    if (run / "checkpoints").is_dir():
        return _load_run(run, weights, "best" if run != path else step)
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
    if config.pop("params_sha256", None) not in (None, digest(weights)):
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


def without_conditions(model: Checkpoint) -> Checkpoint:
    """A conditional denoiser that nobody asks for anything, without its encoders.

    The encoding of nothing is one vector, added to that of the timestep: it becomes
    part of that layer's bias, and the outputs stay what they are.
    """
    nothing = encode_nothing(model.config["condition"], model.params["condition"])
    dit = copy.deepcopy(model.params["dit"])
    dit["timestep"]["out"]["bias"] += nothing
    return Checkpoint({"dit": dit}, {**model.config, "condition": None})


def params_digest(params) -> str:
    """SHA-256 of names, shapes and float32 values: the same model, the same digest."""
    sha256 = hashlib.sha256()
    for name, x in sorted(flatten_dict(params, sep="/").items()):
        x = np.ascontiguousarray(np.asarray(x), np.float32)
        sha256.update(f"{name}{x.shape}".encode())
        sha256.update(x.tobytes())
    return sha256.hexdigest()


def encoder_digest(vae_params) -> str:
    """`params_digest` of what makes latents and features: they do with any decoder."""
    return params_digest({part: vae_params[part] for part in ENCODER_PARTS})


def _load_mini(name: str) -> Checkpoint:
    if name == "ldm":  # one file for both
        return without_conditions(_load_mini("ldm_conditional"))
    if name not in MINI_MODELS:
        raise UserError(
            f"mini:{name}: no such embedded model; there are "
            + ", ".join(f"mini:{m}" for m in ("ldm", *MINI_MODELS))
        )
    config = MINI / name / "config.json"
    if not config.is_file() or digest(config) != MINI_MODELS[name]:
        raise UserError(f"{config} was altered: install chemeleon_jax again")
    return _load_model(MINI / name)


def _load_run(workdir: Path, weights: str, step: str) -> Checkpoint:
    """A policy of a run, on the host, with its frozen parts and model config."""
    model = _load_model(workdir / "model")
    name = {"raw": "params", "ema": "ema_params"}[weights]
    policy = states.read_subtree(workdir / "checkpoints", name, best=step == "best")
    if policy is None and step == "best":
        raise UserError(
            f"{workdir}: no state of this run was validated yet, so there is no best "
            "one; take the latest"
        )
    return Checkpoint(model.params | (policy or {}), model.config)

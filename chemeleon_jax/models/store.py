"""Models and runs on disk. The only module that knows safetensors.

A model directory is what users exchange: `params.safetensors` (names joined by `/`) and
`config.json` (the keyword arguments of the modules, see docs/checkpoints.md). A run
directory is what a training program leaves: `config.json` and `run.json` (how it was
started, see `runs`), `model/` (the model it started from, a model directory) and
`checkpoints/` (its states, see `states`).
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from chemeleon_jax.devices import distributed
from chemeleon_jax.errors import UserError, one_line
from chemeleon_jax.models.model_config import check_config
from chemeleon_jax.runs import states
from chemeleon_jax.runs.files import digest, impostor, replacing, write_json

ENCODER_PARTS = "encode_atoms", "moments"  # of a VAE's parameters


class Checkpoint(NamedTuple):
    """A model: what `Module.apply` takes, and what builds the modules."""

    params: dict[str, Any]  # {"vae" | "dit" | "condition" | "predictor": nested arrays}
    config: dict[str, Any]  # {"kind": "vae" | "ldm" | "predictor", "vae": {...}, ...}


# ------------------------------------------------------------------ model directories


def save_model(directory, params, config: dict, *, dtype=np.float32) -> None:
    """Writes a model directory.

    Each file appears at once or not at all, and `config.json` carries the checksum of
    the parameters, so that no crash leaves a directory that loads as another model.

    The config has JSON values, "kind" among them. Storage as float16 halves the file.
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


def load_model(directory: Path) -> Checkpoint:
    """A model directory: parameters as float32 NumPy arrays, and the config.

    Raises:
      UserError: there is no model, or it is damaged.
    """
    config_file, weights = directory / "config.json", directory / "params.safetensors"
    for file in (config_file, weights):
        if not file.is_file():
            raise UserError(
                f"{file}: no such file, so '{directory}' is no model directory; give "
                "the path of a converted model or of a run, mini:NAME, or hub:NAME"
            )
        with open(file, "rb") as stream:
            if problem := impostor(stream.read(200)):
                raise UserError(f"{file}: {problem}")
    try:
        config = json.loads(config_file.read_text())
        config["kind"]
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise UserError(
            f"{config_file}: not the config of a model ({one_line(repr(e))}); it may "
            "be damaged: convert or copy the model again"
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
    arrays = {key: np.asarray(x, np.float32) for key, x in flat.items()}
    params = unflatten_dict(arrays, sep="/")
    try:
        check_config(config, params)
    except ValueError as e:
        raise UserError(
            f"{config_file}: {e}; convert, train or fetch the model again"
        ) from e
    return Checkpoint(params, config)


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


def save_start(workdir: Path, model: Checkpoint) -> None:
    """Writes `model/` of a run, the model that it starts from; once, by one process."""
    directory = workdir / "model"
    if distributed.is_first() and not (directory / "config.json").is_file():
        save_model(directory, *model)


def load_run(workdir: Path, weights: str, step: str) -> Checkpoint:
    """A policy of a run, on the host, with its frozen parts and model config.

    See `load_checkpoint` for `weights` and `step`.

    Raises:
      UserError: there is no such state, or it is damaged.
    """
    model = load_model(workdir / "model")
    name = {"raw": "params", "ema": "ema_params"}[weights]
    policy = states.read_subtree(workdir / "checkpoints", name, best=step == "best")
    if policy is None and step == "best":
        raise UserError(
            f"{workdir}: no state of this run was validated yet, so there is no best "
            "one; take the latest"
        )
    return Checkpoint(model.params | (policy or {}), model.config)

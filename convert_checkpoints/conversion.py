"""Checkpoint files -> parameters and configs, and model directories of them."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from chemeleon_jax.models.store import Checkpoint, save_model
from chemeleon_jax.runs.files import digest, read_json
from convert_checkpoints import architecture as arch
from convert_checkpoints.records import CheckpointError, Record
from convert_checkpoints.tables import Flat, check_complete, convert_tensors
from convert_checkpoints.unpickle import read_checkpoint


@dataclass
class Source:
    """A checkpoint file, read."""

    path: Path
    kind: str  # "vae", "ldm" or "predictor"
    tensors: Flat  # by PyTorch name, without buffers
    latent_std: float | None
    hyper: dict[str, Any]  # pickled hyper-parameters, if any
    ema: list | None

    def part(self, prefix: str) -> Flat:
        """The tensors under a prefix, without it."""
        return {
            name.removeprefix(prefix): value
            for name, value in self.tensors.items()
            if name.startswith(prefix)
        }


def convert(
    paths,
    out_dir: str | os.PathLike,
    weights: str = "raw",
    heads: dict[str, int] | None = None,
) -> dict[Path, Checkpoint]:
    """Writes what `convert_files` makes of checkpoints, once all of them convert.

    Returns:
      {model directory: what it holds}, in the order of the files: `out_dir` itself; for
      several files, one folder of it for each, named after the file.

    Raises:
      CheckpointError: one cannot be converted, or a run or another kind of model is
        there.
    """
    models = convert_files(paths, weights, heads)
    written = {
        Path(out_dir, path.stem if len(models) > 1 else ""): model
        for path, model in models.items()
    }
    for directory in written:
        _check_directory(directory)
    for directory, model in written.items():
        save_model(directory, *model)
    return written


def _check_directory(directory: Path) -> None:
    """Raises CheckpointError where a run or a model of another kind is."""
    if (directory / "checkpoints").exists():
        raise CheckpointError(f"{directory}: is a run; give another --out")
    there = directory / "config.json"
    if there.is_file():
        config = read_json(there)
        if not (isinstance(config, dict) and "source" in config):
            raise CheckpointError(
                f"{directory}: holds a model that was not converted; delete it, or "
                "give another --out"
            )


def convert_files(
    paths, weights: str = "raw", heads: dict[str, int] | None = None
) -> dict[Path, Checkpoint]:
    """Convert Chemeleon2 checkpoints.

    Args:
      paths: files. An LDM file does not hold the head counts of the VAE inside it; they
        come from a VAE file among these, or beside it under the name it was trained
        with. Either must have the very weights that the LDM holds.
      weights: "raw" or "ema", the moving average of the training.
      heads: attention heads where the files do not say, for "encoder", "decoder" and
        "dit".

    Returns:
      The model of each file, in order.

    Raises:
      CheckpointError: a file is unreadable, or not wholly understood.
    """
    if len({Path(p).stem for p in paths}) < len(paths):
        raise CheckpointError("two files have the same name: convert them one by one")
    sources = [read_source(path) for path in paths]
    return {s.path: convert_source(s, weights, heads or {}, sources) for s in sources}


def read_source(path: str | os.PathLike) -> Source:
    """Read a file and recognise what it is."""
    path = Path(path)
    content = read_checkpoint(path)
    try:
        tensors = content.get("state_dict", content)
        if not isinstance(tensors, dict):
            raise CheckpointError("its state_dict is no dict")
        tensors = arch.check_floats(
            {k: v for k, v in tensors.items() if k != "__metadata__"}
        )
        latent_std = tensors.pop("latent_std", None)
        if latent_std is not None and not (latent_std.size == 1 and latent_std > 0):
            raise CheckpointError("latent_std must be one positive number")
        hyper = content.get("hyper_parameters", {})
        # An RL checkpoint pickles them as a class of Lightning's, a kind of dict.
        hyper = hyper.pairs if isinstance(hyper, Record) else hyper
        ema = content.get("ema_state")
        return Source(
            path=path,
            kind=arch.find_kind(tensors),
            tensors=tensors,
            latent_std=None if latent_std is None else float(latent_std.reshape(())),
            hyper=hyper if isinstance(hyper, dict) else {},
            ema=ema.get("shadow_params") if isinstance(ema, dict) else None,
        )
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def convert_source(
    source: Source,
    weights: str,
    heads: dict[str, int],
    others: list[Source],
) -> Checkpoint:
    """The model of one file; see `convert_files`."""
    try:
        config = find_config(source, heads, others)
        tensors = ema_tensors(source) if weights == "ema" else source.tensors
        params, unknown = convert_tensors(source.kind, tensors)
        check_complete(params, arch.target_shapes(config), unknown)
    except CheckpointError as error:
        raise CheckpointError(f"{source.path}: {error}") from None
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        # Shapes or settings that no model has: they come from the file.
        raise CheckpointError(
            f"{source.path}: describes no model that can exist ({error})"[:500]
        ) from error
    config["source"] = {
        "file": source.path.name,
        "sha256": digest(source.path),
        "weights": weights,
    }
    return Checkpoint(unflatten_dict(params, sep="/"), config)


def find_config(source: Source, heads: dict[str, int], others: list[Source]) -> dict:
    """The model's config, see docs/checkpoints.md."""
    hyper = source.hyper
    config: dict[str, Any] = {"kind": source.kind}
    vae = source.part("" if source.kind == "vae" else "vae.")
    if source.kind == "ldm":
        found = {"dit": arch.dit_heads(hyper.get("denoiser"))}
        dit = arch.check_heads(heads, found)["dit"]
        config["dit"] = arch.dit_config(source.part("denoiser."), dit)
        condition = source.part("condition_module.")
        config["condition"] = (
            arch.condition_config(condition, hyper.get("condition_module"))
            if condition
            else None
        )
        config["diffusion"] = arch.check_diffusion(hyper.get("diffusion_configs"))
        if source.latent_std is None:
            raise CheckpointError("tensor 'latent_std' is missing")
        config["latent_std"] = source.latent_std
        modules = trained_on(source, vae, others)
    elif source.kind == "predictor":
        modules = [arch.attribute(hyper.get("vae"), p) for p in ("encoder", "decoder")]
        targets = arch.shape(source.tensors, "proj.8.weight")[0]
        config["predictor"] = arch.predictor_config(hyper, targets)
    else:
        modules = [hyper.get("encoder"), hyper.get("decoder")]
    if vae:
        vae_heads = arch.check_heads(heads, arch.vae_heads(*modules))
        config["vae"] = arch.vae_config(vae, vae_heads)
    return config


def trained_on(source: Source, vae: Flat, others: list[Source]) -> list:
    """Pickled encoder and decoder of the VAE file whose weights an LDM holds.

    Returns:
      [None, None] if there is no such file at hand.
    """
    name = source.hyper.get("vae_ckpt_path")
    beside = source.path.parent / Path(name).name if isinstance(name, str) else None
    candidates = [other for other in others if other.kind == "vae"]
    if not candidates and beside is not None and beside.is_file():
        candidates = [read_source(beside)]
    for other in candidates:
        if other.tensors.keys() == vae.keys() and all(
            np.array_equal(value, vae[key]) for key, value in other.tensors.items()
        ):
            return [other.hyper.get("encoder"), other.hyper.get("decoder")]
    return [None, None]


def ema_tensors(source: Source) -> Flat:
    """The moving averages, under the names of the tensors that they average.

    The file has them as a bare list in `parameters()` order, which is the order of the
    state dict without buffers; either of all parameters, or of those in training.
    """
    averages = source.ema
    if not isinstance(averages, list):
        raise CheckpointError("holds no moving average (ema_state); use --weights raw")
    names = list(source.tensors)
    if len(averages) != len(names):
        names = [name for name in names if not name.startswith("vae.")]
    if len(averages) != len(names):
        raise CheckpointError(
            f"its moving average has {len(averages)} tensors, its state dict "
            f"{len(source.tensors)}"
        )
    tensors = arch.check_floats(dict(zip(names, averages, strict=True)))
    for name, value in tensors.items():
        if value.shape != source.tensors[name].shape:
            raise CheckpointError(f"the moving average of {name!r} has another shape")
    return source.tensors | tensors

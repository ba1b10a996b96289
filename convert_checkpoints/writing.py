"""Checkpoint files -> model directories."""

import os
from pathlib import Path

from chemeleon_jax.models.store import save_model
from convert_checkpoints.conversion import Converted, convert_files


def convert(
    paths,
    out_dir: str | os.PathLike,
    weights: str = "raw",
    heads: dict[str, int] | None = None,
) -> dict[Path, Converted]:
    """Writes what `convert_files` makes of checkpoints, once all of them convert.

    Returns:
      {model directory: what it holds}, in the order of the files: `out_dir` itself; for
      several files, one folder of it for each, named after the file.
    """
    models = convert_files(paths, weights, heads)
    several = len(models) > 1
    written = {Path(out_dir, m.path.stem if several else ""): m for m in models}
    for directory, model in written.items():
        save_model(directory, model.params, model.config)
    return written

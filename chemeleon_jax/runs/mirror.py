"""A run's events on Weights & Biases too. The only module that knows its package."""

import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from chemeleon_jax.devices import distributed
from chemeleon_jax.errors import UserError, one_line
from chemeleon_jax.runs.files import read_json, write_json

PROJECT = "chemeleon_jax"  # where WANDB_PROJECT names no other
MARK = "wandb.json"  # in the run directory: the id there


class Mirror:
    """One run on Weights & Biases; it goes on where a run continues.

    Steps there only grow. What a run that continues repeats is the same as it was, and
    is left out.
    """

    def __init__(self, folder: Path, config: dict[str, Any]):
        """Starts, or continues, the run of a folder.

        Raises:
          UserError: it cannot start: no account, no network.
        """
        self._wandb = import_wandb()
        mark = folder / MARK
        if not mark.is_file():
            write_json(mark, {"id": uuid.uuid4().hex[:12]})
        try:
            self._run = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT") or PROJECT,
                name=os.environ.get("WANDB_NAME") or folder.resolve().name,
                id=read_json(mark)["id"],
                resume="allow",
                dir=folder,
                config=config,
                settings=self._wandb.Settings(console="off"),
            )
        except Exception as error:  # of many kinds, by version
            raise UserError(
                f"config.tracking.wandb: {type(error).__name__}: {one_line(error)}; "
                "`wandb login`, set WANDB_MODE=offline, or leave it False"
            ) from error

    def log(self, step: int, scalars: dict[str, Any]) -> None:
        """Scalars of one step, by tag."""
        self._run.log({tag: float(x) for tag, x in scalars.items()}, step=int(step))

    def log_histogram(self, step: int, tag: str, values: np.ndarray) -> None:
        """How values [n] are distributed."""
        self._run.log({tag: self._wandb.Histogram(np.asarray(values))}, step=int(step))

    def log_image(self, step: int, tag: str, picture: Image.Image) -> None:
        """A picture."""
        self._run.log({tag: self._wandb.Image(picture)}, step=int(step))

    def close(self, failed: bool) -> None:
        """Waits until all is sent, or is on the disk; says whether the run failed."""
        self._run.finish(exit_code=int(failed))


def import_wandb() -> Any:
    """The package `wandb`.

    Raises:
      UserError: it is not installed.
    """
    try:
        import wandb  # pyright: ignore[reportMissingImports]

        wandb.init  # noqa: B018 -- a folder `wandb` here is a package without it
    except (ImportError, AttributeError) as error:
        raise UserError(
            "config.tracking.wandb: the package wandb is not installed; install it "
            "with the extra of that name: pip install -e '.[wandb]'"
        ) from error
    return wandb


def open_mirror(config: Any, folder: Path) -> Mirror | None:
    """The mirror of a run, where its config wants one; on the first process alone."""
    if not (config.tracking.wandb and distributed.is_first()):
        return None
    return Mirror(folder, config.to_dict())

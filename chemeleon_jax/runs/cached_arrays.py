"""What takes long to compute of the reference crystals, kept on disk between runs."""

import hashlib
import logging
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from chemeleon_jax.runs.files import cache_folder, replacing

logger = logging.getLogger(__name__)

_VERSION = 1  # raise when what is kept would come out differently


def kept(
    name: str, key: str, compute: Callable[[], Sequence[np.ndarray]]
) -> list[np.ndarray]:
    """Arrays that an earlier run has kept, or else those of `compute()`.

    A damaged file is computed anew; where nothing can be written, nothing is kept.

    Args:
      name: of the quantity.
      key: digests and settings of all that it depends on.
      compute: the arrays.
    """
    digest = hashlib.sha256(f"{_VERSION} {key}".encode()).hexdigest()
    path = cache_folder() / "references" / f"{name}_{digest[:32]}.npz"
    found = _read(path) if path.is_file() else None
    if found is None:
        found = list(compute())
        try:
            with replacing(path) as temporary:
                np.savez(temporary, *found)
        except OSError as error:
            logger.warning("%s: cannot be kept for the next run (%s)", path, error)
    return found


def _read(path: Path) -> list[np.ndarray] | None:
    """The arrays of a file, None if it is damaged: zip keeps a checksum of each."""
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            return [file[f"arr_{i}"] for i in range(len(file.files))]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        logger.warning("%s: damaged (%s), computed anew", path, error)
        return None

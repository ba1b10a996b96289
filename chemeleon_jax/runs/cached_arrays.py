"""What takes long to compute of the reference crystals, cached between runs."""

import hashlib
import logging
from collections.abc import Callable, Sequence

import numpy as np

from chemeleon_jax.errors import UserError
from chemeleon_jax.runs.files import cache_folder, read_npz, replacing

logger = logging.getLogger(__name__)

_VERSION = 1  # raise when what is cached would come out differently


def cached_arrays(
    name: str, key: str, compute: Callable[[], Sequence[np.ndarray]]
) -> list[np.ndarray]:
    """Arrays that an earlier run has cached, or else those of `compute()`.

    A damaged file is computed anew; where nothing can be written, nothing is cached.

    Args:
      name: of the quantity.
      key: digests and settings of all that it depends on.
      compute: the arrays.
    """
    digest = hashlib.sha256(f"{_VERSION} {key}".encode()).hexdigest()
    path = cache_folder() / "references" / f"{name}_{digest[:32]}.npz"
    if path.is_file():
        try:
            return list(read_npz(path, "cached arrays").values())
        except UserError as error:
            logger.warning("%s: damaged (%s), computed anew", path, error)
    arrays = list(compute())
    try:
        with replacing(path) as temporary:
            np.savez(temporary, *arrays)
    except OSError as error:
        logger.warning("%s: cannot be kept for the next run (%s)", path, error)
    return arrays

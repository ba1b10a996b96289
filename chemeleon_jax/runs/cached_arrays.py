"""What takes long to compute of the reference crystals, cached between runs."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from chemeleon_jax.runs.files import cache_folder, from_cache, read_npz, to_cache

_VERSION = 1  # raise when what is cached would come out differently


def cached_arrays(
    name: str, key: str, compute: Callable[[], Sequence[np.ndarray]]
) -> list[np.ndarray]:
    """Arrays that an earlier run has cached, or else those of `compute()`.

    A damaged file is computed anew; where nothing can be written, nothing is cached.
    The key holds digests and settings of all that the quantity depends on.
    """
    digest = hashlib.sha256(f"{_VERSION} {key}".encode()).hexdigest()
    path = cache_folder() / "references" / f"{name}_{digest[:32]}.npz"
    arrays = from_cache(path, lambda file: read_npz(file, "cached arrays"))
    if arrays is not None:
        return list(arrays.values())
    computed = list(compute())
    to_cache(path, lambda temporary: np.savez(temporary, *computed))
    return computed

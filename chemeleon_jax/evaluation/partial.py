"""Work on many crystals, kept on disk chunk by chunk: cut off, it goes on."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from chemeleon_jax.data.readers.item import Item
from chemeleon_jax.runs.files import read_json, write_json


def prepare_partial(folder: Path, items: Sequence[Item], protocol: Any) -> None:
    """Empties a folder of finished chunks if they are of other crystals or protocol."""
    digest = hashlib.sha256(json.dumps(protocol).encode())
    for structure, problem, _ in items:
        digest.update(problem.encode())
        if structure is not None:
            digest.update(np.array(structure.atomic_numbers, np.int64).tobytes())
            digest.update(structure.lattice.matrix.tobytes())
            digest.update(structure.frac_coords.tobytes())
    name = {"sha256": digest.hexdigest()}
    mark = folder / "evaluation.json"
    if not (mark.is_file() and read_json(mark) == name):
        shutil.rmtree(folder, ignore_errors=True)
        write_json(mark, name)


def in_chunks(
    folder: Path,
    values: Sequence[Any],
    work: Callable[[Sequence[Any]], list[Any]],
    *,
    size: int,
    title: str,
    enough: Callable[[list[Any]], bool] = lambda _: False,
) -> list[Any]:
    """`work(values)`, JSON values one for each, a chunk at a time by way of the disk.

    Chunks that are in the folder are not worked on again. Once what there is of results
    is `enough`, the rest of the values is left out.
    """
    results = []
    with tqdm(total=len(values), desc=title, unit=" crystals") as progress:
        for start in range(0, len(values), size):
            if enough(results):
                break
            some = values[start : start + size]
            file = folder / f"{start:08d}.json"
            if not file.is_file():
                write_json(file, {"rows": work(some)})
            results += read_json(file)["rows"]
            progress.update(len(some))
    return results

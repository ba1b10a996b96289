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
from chemeleon_jax.errors import UserError
from chemeleon_jax.runs.files import read_json, refuse_foreign, write_json

MARK = "evaluation.json"  # of what the chunks in a folder are of


def prepare_partial(folder: Path, items: Sequence[Item], protocol: Any) -> None:
    """Empties a folder of finished chunks if they are of other crystals or protocol.

    Raises:
      UserError: it holds something else.
    """
    digest = hashlib.sha256(json.dumps(protocol).encode())
    for structure, problem, _ in items:
        digest.update(problem.encode())
        if structure is not None:
            digest.update(np.array(structure.atomic_numbers, np.int64).tobytes())
            digest.update(structure.lattice.matrix.tobytes())
            digest.update(structure.frac_coords.tobytes())
    name = {"sha256": digest.hexdigest()}
    mark = folder / MARK
    if not (mark.is_file() and read_json(mark) == name):
        refuse_foreign(folder, mark)
        shutil.rmtree(folder, ignore_errors=True)
        write_json(mark, name)


def check_out(out: Path, names: Sequence[str], key: str) -> None:
    """Checks that results would only take the place of earlier ones.

    Args:
      out: the folder of results.
      names: what is written there.
      key: that `summary.json` has, if this program wrote it.

    Raises:
      UserError: they would take the place of something else.
    """
    refuse_foreign(out / "partial", out / "partial" / MARK)
    summary = out / "summary.json"
    earlier = read_json(summary) if summary.is_file() else None
    if (out / "partial").is_dir() or (isinstance(earlier, dict) and key in earlier):
        return
    for name in names:
        if (out / name).exists():
            raise UserError(
                f"--out={out}: holds {name}, which this program has not written, and "
                "would replace; give another folder"
            )


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

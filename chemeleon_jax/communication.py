"""What a compiled program sends between devices, read from its HLO."""

import re
from typing import NamedTuple

import numpy as np

_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s64": 8,
    "u64": 8,
    "f64": 8,
}
_OPERATION = re.compile(
    r"= (?P<shapes>.*?) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|"
    r"collective-permute|collective-broadcast)(?:-start)?\("
)
_SHAPE = re.compile(r"([a-z]+[0-9]*)\[([0-9,]*)\]")


class Collective(NamedTuple):
    """One array of one collective operation."""

    kind: str  # all-reduce, all-gather, ...
    shape: tuple[int, ...]  # of its result on each device
    num_bytes: int  # of that result


def collectives(hlo: str) -> list[Collective]:
    """The collective operations of a program, each once, also those in loops.

    Args:
      hlo: `jit(f).lower(...).compile().as_text()`.
    """
    found = []
    for line in hlo.splitlines():
        operation = _OPERATION.search(line)
        if operation is None:
            continue
        for dtype, sizes in _SHAPE.findall(operation["shapes"]):
            shape = tuple(int(size) for size in sizes.split(",") if size)
            num_bytes = int(np.prod(shape)) * _BYTES.get(dtype, 4)
            found.append(Collective(operation["kind"], shape, num_bytes))
    return found

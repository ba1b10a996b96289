"""Writes files as torch.save does, without torch, and writes them wrong on request.

Only what checkpoints need: containers, scalars, arrays as tensors, and `Instance` for
objects of any class.
"""

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "bool": "BoolStorage",
}


@dataclass
class Instance:
    """An object of class `name`: made by `name(*args)`, then given `state`."""

    name: str  # "package.module.Class"
    args: tuple = ()
    state: Any = None
    pairs: dict | None = None  # set by key, as for a subclass of dict


@dataclass
class Name:
    """A class or function itself."""

    name: str


class Pickler:
    """Protocol 2, as torch writes it; `storages` fills with the tensors' bytes."""

    def __init__(self):
        self.storages: list[np.ndarray] = []

    def dump(self, value) -> bytes:
        return b"\x80\x02" + self.encode(value) + b"."

    def encode(self, value) -> bytes:
        match value:
            case None:
                return b"N"
            case bool():
                return b"\x88" if value else b"\x89"
            case int():
                return b"J" + struct.pack("<i", value)
            case float():
                return b"G" + struct.pack(">d", value)
            case str():
                return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
            case bytes():  # opcodes, as they are
                return value
            case np.ndarray():
                return self.tensor(value)
            case tuple():
                return b"(" + b"".join(map(self.encode, value)) + b"t"
            case list():
                return b"](" + b"".join(map(self.encode, value)) + b"e"
            case dict():
                return b"}" + self.items(value)
            case Name():
                module, _, name = value.name.rpartition(".")
                return f"c{module}\n{name}\n".encode()
            case Instance():
                made = self.encode(Name(value.name)) + self.encode(value.args) + b"R"
                if value.pairs is not None:
                    made += self.items(value.pairs)
                return made if value.state is None else made + self.state(value.state)
        raise TypeError(type(value))

    def state(self, state) -> bytes:
        return self.encode(state) + b"b"

    def items(self, pairs: dict) -> bytes:
        return (
            b"("
            + b"".join(map(self.encode, [x for p in pairs.items() for x in p]))
            + b"u"
        )

    def storage(self, array: np.ndarray) -> bytes:
        self.storages.append(array)
        kind = Name("torch." + STORAGES[array.dtype.name])
        key = str(len(self.storages) - 1)
        return self.encode(("storage", kind, key, "cpu", array.size)) + b"Q"

    def tensor(self, array: np.ndarray, size=None, stride=None, offset=0) -> bytes:
        size = array.shape if size is None else size
        if stride is None:
            stride = tuple(s // array.itemsize for s in array.strides)
        arguments = (self.storage(array), offset, tuple(size), tuple(stride), False, {})
        return (
            self.encode(Name("torch._utils._rebuild_tensor_v2"))
            + self.encode(arguments)
            + b"R"
        )


def write(path, content, **options) -> Path:
    """Write a value as torch.save would."""
    pickler = Pickler()
    return write_parts(path, pickler.dump(content), pickler.storages, **options)


def write_parts(
    path, pickle: bytes, storages=(), compression=zipfile.ZIP_STORED
) -> Path:
    """Write a torch zip of given parts."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/byteorder", "little")
        for key, array in enumerate(storages):
            archive.writestr(
                f"archive/data/{key}", np.ascontiguousarray(array).tobytes()
            )
        archive.writestr("archive/version", "3\n")
    return Path(path)

"""Checkpoint files -> nested dicts of NumPy arrays, without torch and without trust.

A torch file is a zip of uncompressed entries: `data.pkl`, which describes the objects,
and one `data/<key>` per storage. Nothing is extracted and nothing is copied: tensors
are read-only views of the memory-mapped file. Format: torch/serialization.py.
"""

import io
import json
import math
import os
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from chemeleon_jax.runs.files import impostor
from convert_checkpoints import opcodes
from convert_checkpoints.records import CheckpointError, Global, Record

__all__ = ["CheckpointError", "Global", "Record", "read_checkpoint"]

MAX_PICKLE_BYTES = 64 << 20
MAX_DIRECTORY_BYTES = 4 << 20
ZIP_ERRORS = (
    zipfile.BadZipFile,
    struct.error,
    ValueError,
    NotImplementedError,
    OverflowError,
)
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

STORAGE_TYPES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
}


def read_checkpoint(path: str | os.PathLike) -> dict:
    """Read a `.ckpt`, `.pt`, `.pth`, `.safetensors` or sharded safetensors file.

    Args:
      path: the file; for sharded safetensors, the `*.index.json`.

    Returns:
      The top-level dict of the file. Tensors are read-only NumPy arrays backed by the
      file, and any object that is no tensor, container or number is a `Record`.

    Raises:
      CheckpointError: unreadable, damaged, hostile, or of an unknown format.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise CheckpointError("not a regular file")
        with open(path, "rb") as file:
            if problem := impostor(file.read(200)):
                raise CheckpointError(problem)
        if path.name.endswith(".safetensors.index.json"):
            return _read_sharded(path)
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        return _read_torch(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None


def _read_torch(path: Path) -> dict:
    archive = _Archive(path)
    content = opcodes.load(
        archive.read("data.pkl", MAX_PICKLE_BYTES),
        functions=TENSOR_FUNCTIONS,
        persistent=archive.storage,
    )
    if not isinstance(content, dict):
        raise CheckpointError("holds no dict of tensors at its top level")
    return content


class _Archive:
    """The entries of a torch zip file, checked before any is used."""

    def __init__(self, path: Path):
        with _BoundedFile(path) as file:
            if file.read(len(LEGACY_MAGIC)) == LEGACY_MAGIC:
                raise CheckpointError(
                    "written in the format before PyTorch 1.6, which is a bare pickle; "
                    "save it anew with a current torch.save"
                )
            try:
                with zipfile.ZipFile(file) as archive:
                    entries = archive.infolist()
                    directory_start = archive.start_dir
            except CheckpointError:
                raise
            except ZIP_ERRORS as error:
                raise CheckpointError(
                    f"not a PyTorch checkpoint, or cut off ({error})"
                ) from None
        self.bytes = np.memmap(path, mode="r")
        self.entries = self._locate(entries, directory_start)
        order = self.read("byteorder", 16) if "byteorder" in self.entries else b"little"
        if bytes(order) not in (b"little", b"big"):
            raise CheckpointError("damaged zip: unknown byte order")
        self.byte_order = "<" if bytes(order) == b"little" else ">"
        self.storages: dict[str, np.ndarray] = {}

    def _locate(self, entries, directory_start) -> dict[str, tuple[int, int, int]]:
        """Name without the top folder -> (offset, size, checksum).

        Refuses what torch never writes.
        """
        located: dict[str, tuple[int, int, int]] = {}
        previous_end = 0
        for entry in sorted(entries, key=lambda e: e.header_offset):
            name = entry.filename
            folder, slash, rest = name.partition("/")
            if not slash or ".." in name.split("/") or "\\" in name or not folder:
                raise CheckpointError(f"hostile zip: entry named {name[:80]!r}")
            if folder != entries[0].filename.partition("/")[0]:
                raise CheckpointError("a zip of several folders: not from torch.save")
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise CheckpointError(
                    f"entry {name[:80]!r} is compressed or encrypted, which torch.save "
                    "never does"
                )
            start = self._data_offset(entry)
            end = start + entry.file_size
            if entry.header_offset < previous_end or end > directory_start:
                raise CheckpointError(
                    f"damaged zip: entry {name[:80]!r} overlaps another, or lies about "
                    "its size"
                )
            if entry.compress_size != entry.file_size or rest in located:
                raise CheckpointError(
                    f"damaged zip: entry {name[:80]!r} is there twice, or has two sizes"
                )
            located[rest] = (start, entry.file_size, entry.CRC)
            previous_end = end
        if "data.pkl" not in located:
            raise CheckpointError(
                "a zip file, but without data.pkl: not from torch.save"
            )
        return located

    def _data_offset(self, entry) -> int:
        """Where an entry's bytes begin: after its header, name and extra field."""
        header = self.bytes[entry.header_offset : entry.header_offset + 30].tobytes()
        if len(header) < 30 or header[:4] != b"PK\3\4":
            raise CheckpointError("damaged zip: no local header where one should be")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        return entry.header_offset + 30 + name_length + extra_length

    def read(self, name: str, limit: int) -> memoryview:
        """An entry's bytes, checked against their checksum."""
        if name not in self.entries:
            raise CheckpointError(f"damaged zip: entry {name[:80]!r} is missing")
        offset, size, crc = self.entries[name]
        if size > limit:
            raise CheckpointError(f"entry {name!r} has {size} bytes: too long")
        content = memoryview(self.bytes)[offset : offset + size]
        if zlib.crc32(content) != crc:
            raise CheckpointError(f"damaged: checksum of entry {name!r} differs")
        return content

    def storage(self, persistent_id: Any) -> np.ndarray | Record:
        """The flat array that `("storage", type, key, device, count)` refers to."""
        match persistent_id:
            case ("storage", Global() as kind, str(key), str(), int(count)):
                pass
            case _:
                raise CheckpointError("damaged pickle: not a storage reference")
        kind_name = kind.name.removeprefix("torch.").removeprefix("storage.")
        dtype = STORAGE_TYPES.get(kind_name)
        if dtype is None:  # quantised, float8, ...: no number type of NumPy's
            return Record(kind, (key, count))
        if key not in self.storages:
            content = self.read(f"data/{key}", len(self.bytes))
            dtype = np.dtype(dtype).newbyteorder(self.byte_order)
            if len(content) != count * dtype.itemsize:
                raise CheckpointError(
                    f"storage {key!r} should have {count * dtype.itemsize} bytes, has "
                    f"{len(content)}"
                )
            self.storages[key] = np.frombuffer(content, dtype)
        storage = self.storages[key]
        if len(storage) != count or storage.dtype != np.dtype(dtype):
            raise CheckpointError(f"storage {key!r} is described in two ways")
        return storage


class _BoundedFile(io.FileIO):
    """A file whose single reads are bounded: zipfile reads a directory in one piece."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:  # "the rest": asked for near the end of the file
            size = MAX_DIRECTORY_BYTES
        if size > MAX_DIRECTORY_BYTES:
            raise CheckpointError("damaged zip: its directory is too long")
        return super().read(size)


def _tensor(args: tuple) -> np.ndarray | Record:
    """`torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...)`."""
    storage, offset, size, stride = args[:4]
    if isinstance(storage, Record):
        return Record(Global("torch._utils._rebuild_tensor_v2"), args)
    if not isinstance(storage, np.ndarray) or len(size) != len(stride):
        raise CheckpointError("damaged pickle: a tensor without a storage")
    if any(not isinstance(n, int) or n < 0 for n in (offset, *size, *stride)):
        raise CheckpointError("damaged pickle: negative size in a tensor")
    if len(size) > 16:
        raise CheckpointError("damaged pickle: a tensor of more than 16 axes")
    count = math.prod(size)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    # An expanded tensor (stride 0) may be larger than its storage, within a limit:
    # whoever copies it pays.
    if count and (last >= len(storage) or count > max(len(storage), 1 << 16)):
        raise CheckpointError(
            f"a tensor of shape {str(tuple(size))[:80]} reaches outside its storage of "
            f"{len(storage)} numbers"
        )
    if not count:
        return np.zeros([min(n, 1 << 31) for n in size], storage.dtype)
    steps = [s * storage.itemsize for s in stride]
    return np.lib.stride_tricks.as_strided(
        storage[offset:], size, steps, writeable=False
    )


# Calls that mean a tensor; opcodes.load makes a Record of any other.
TENSOR_FUNCTIONS = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda args: args[0],
    "torch._utils._rebuild_parameter_with_state": lambda args: args[0],
    "torch.Size": lambda args: tuple(args[0]),
}


def _read_safetensors(path: Path) -> dict:
    # The format is a length, a JSON header and raw bytes; the library checks that the
    # tensors tile the file exactly.
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
            return tensors | {"__metadata__": file.metadata() or {}}
    except (SafetensorError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"damaged safetensors file ({error})") from None


def _read_sharded(index: Path) -> dict:
    """The tensors of all shards that `weight_map` names, all in the index's folder."""
    try:
        weight_map = json.loads(index.read_bytes()[:MAX_PICKLE_BYTES])["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError("damaged index: no weight_map in it") from None
    tensors: dict = {}
    for shard in shards:
        if shard != Path(shard).name or not shard.endswith(".safetensors"):
            raise CheckpointError(f"hostile index: it names the file {shard[:80]!r}")
        tensors |= _read_safetensors(index.parent / shard)
    missing = set(weight_map) - set(tensors)
    if missing:
        raise CheckpointError(f"tensors missing in the shards: {sorted(missing)[:5]}")
    return tensors

"""The restricted reader: what it reads, and how hostile files end."""

import json
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile

import ml_dtypes
import numpy as np
import paths
import pytest
from safetensors.numpy import save_file
from torch_files import Instance, Name, Pickler, write, write_parts

from convert_checkpoints import CheckpointError, read_checkpoint
from convert_checkpoints.records import Global, Record

FIXTURES = paths.FIXTURES / "chemeleon2"


def test_reads_what_pytorch_wrote():
    """Names, a shape, and head count: read off vae.ckpt by hand."""
    content = read_checkpoint(f"{FIXTURES}/vae.ckpt")
    assert content["pytorch-lightning_version"] == "2.6.6"
    state = content["state_dict"]
    assert len(state) == 65
    assert state["encoder.transformer.layers.1.linear1.weight"].shape == (64, 32)
    encoder = content["hyper_parameters"]["encoder"]
    assert encoder.name == "src.vae_module.encoders.transformer.TransformerEncoder"
    assert encoder.get("d_model") == 32


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "bool"])
def test_tensors_of_every_type(tmp_path, dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    read = read_checkpoint(write(tmp_path / "a.pt", {"x": array}))["x"]
    np.testing.assert_array_equal(read, array)
    assert read.dtype == array.dtype
    assert not read.flags.writeable and not read.flags.owndata  # a view of the file


def test_bfloat16(tmp_path):
    array = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    read = read_checkpoint(write(tmp_path / "a.pt", {"x": array}))["x"]
    assert read.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(read.astype(float), [1.5, -2.0])


def test_strided_views_of_a_storage(tmp_path):
    """A transposed tensor and a slice; strides and offset count elements."""
    pickler = Pickler()
    storage = np.arange(6, dtype=np.float32)
    transposed = pickler.tensor(storage, size=(3, 2), stride=(1, 3))
    part = pickler.tensor(storage, size=(2,), stride=(1,), offset=4)
    path = write_parts(
        tmp_path / "a.pt", pickler.dump({"t": transposed, "p": part}), pickler.storages
    )
    content = read_checkpoint(path)
    np.testing.assert_array_equal(content["t"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(content["p"], [4, 5])


def test_other_objects_become_records(tmp_path):
    path = write(
        tmp_path / "a.pt",
        {
            "module": Instance("some.package.Net", (3,), {"heads": 8}),
            "config": Instance("some.package.Config", pairs={"lr": 0.5}),
            "partial": Instance(
                "functools.partial", (Name("torch.optim.adamw.AdamW"),)
            ),
            "ordered": Instance("collections.OrderedDict", pairs={"a": 1}),
            "set": Instance("builtins.set", ([1, 2],)),
        },
    )
    content = read_checkpoint(path)
    module = content["module"]
    assert (module.name, module.args, module.get("heads")) == (
        "some.package.Net",
        (3,),
        8,
    )
    assert content["config"].pairs == {"lr": 0.5}
    assert content["partial"].args == (Global("torch.optim.adamw.AdamW"),)
    assert content["ordered"] == {"a": 1}
    assert content["set"].items == [1, 2]


def test_newer_protocols(tmp_path):
    """Whatever Python itself pickles, in every protocol."""
    value = {"a": [1, 2**70, -1.5, None, True], "b": ("ä", b"\0\1"), "c": {"d": []}}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path = write_parts(tmp_path / "a.pt", pickle.dumps(value, protocol))
        assert read_checkpoint(path) == value, protocol


def test_safetensors_and_shards(tmp_path):
    one, two = np.ones((2, 3), np.float32), np.zeros(4, np.float32)
    save_file({"one": one}, tmp_path / "a.safetensors")
    save_file({"two": two}, tmp_path / "b.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {"one": "a.safetensors", "two": "b.safetensors"}})
    )
    content = read_checkpoint(index)
    np.testing.assert_array_equal(content["one"], one)
    np.testing.assert_array_equal(content["two"], two)
    index.write_text(json.dumps({"weight_map": {"one": "../a.safetensors"}}))
    with pytest.raises(CheckpointError, match="hostile index"):
        read_checkpoint(index)


# ------------------------------------------------------------------------ hostile files


class Attack:
    """Pickles as a call of os.mkdir, which would leave a trace."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", range(6))
def test_a_call_is_refused_and_not_made(tmp_path, protocol):
    trace = tmp_path / "trace"
    payload = pickle.dumps({"state_dict": {}, "x": Attack(trace)}, protocol)
    with pytest.raises(CheckpointError, match=r"hostile pickle: it names .*mkdir"):
        read_checkpoint(write_parts(tmp_path / "a.pt", payload))
    assert not trace.exists()


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "posix.system",
        "nt.system",
        "builtins.eval",
        "__builtin__.exec",
        "subprocess.Popen",
        "functools.reduce",
        "operator.attrgetter",
        "importlib.import_module",
        "collections.abc.Callable",
        "sys.exit",
        "pickle.loads",
    ],
)
def test_names_that_no_checkpoint_needs(tmp_path, name):
    path = write(tmp_path / "a.pt", {"x": Instance(name, ("1",))})
    with pytest.raises(CheckpointError, match="hostile pickle"):
        read_checkpoint(path)


def test_third_party_callables_stay_names(tmp_path):
    """Nothing is imported: a gadget in an installed package is a name like others."""
    content = read_checkpoint(
        write(tmp_path / "a.pt", {"x": Instance("numpy.load", ("/etc/passwd",))})
    )
    assert isinstance(content["x"], Record)
    assert content["x"].args == ("/etc/passwd",)


ONE = np.ones(1, np.float32)
DEEP = b"\x80\x02" + b"(" * 200_000 + b"t" * 200_000 + b"."
BOMBS = {
    # each would cost minutes, gigabytes or a stack overflow in a trusting reader
    "memo index": b"\x80\x02r\xff\xff\xff\xffN.",
    "huge memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "declared bytes": b"\x80\x05\x8e" + struct.pack("<Q", 1 << 40) + b".",
    "declared text": b"\x80\x05\x8d" + struct.pack("<Q", (1 << 63) - 1) + b".",
    "declared integer": b"\x80\x02\x8b" + struct.pack("<i", 1 << 30) + b".",
    "large integer": b"\x80\x02\x8b" + struct.pack("<i", 1 << 20) + b"\1" * (1 << 20),
    "decimal integer": b"I" + b"9" * 100_000 + b"\n.",
    "deep tuples": DEEP,
    "deep key": b"\x80\x02}" + DEEP[2:-1] + b"Ns.",
    "many opcodes": b"\x80\x02" + b"}0" * 4_000_000 + b".",
    "many objects": b"\x80\x02(" + b"}" * 6_000_000 + b"t.",
    "colliding keys": b"\x80\x02}("
    + b"".join(
        b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + b"N"
        for i in range(100_000)
    )
    + b"u.",
    "copies": b"\x80\x02]q\0(" + b"N" * 100_000 + b"e0"
    b"cbuiltins\nlist\nq\x01" + b"0h\x01h\0\x85R" * 100_000 + b".",
    "no end": b"\x80\x02(((((",
    "empty": b"",
    "stack underflow": b"\x80\x02R.",
    "state of a list": b"\x80\x02]}b.",
    "call of a number": b"\x80\x02K\x01)R.",
    "list at the top": b"\x80\x02].",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_end_soon(tmp_path, name):
    start = time.process_time()
    with pytest.raises(CheckpointError):
        read_checkpoint(write_parts(tmp_path / "a.pt", BOMBS[name]))
    assert time.process_time() - start < 10


def test_bombs_stay_small(tmp_path):
    """Under 1 GB, interpreter and NumPy included."""
    for i, bomb in enumerate(BOMBS.values()):
        write_parts(tmp_path / f"{i}.pt", bomb)
    code = (
        "import re, sys, pathlib; from convert_checkpoints import *\n"
        "for p in pathlib.Path(sys.argv[1]).glob('*.pt'):\n"
        "    try: read_checkpoint(p)\n"
        "    except CheckpointError: pass\n"
        # Not getrusage: a child's starts from what its parent, pytest, has grown to.
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', status)[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 1e6  # kB


def tensor(**view) -> bytes:
    """A file's pickle with one tensor, seen as `view` says, of a storage of 4."""
    return Pickler().dump({"x": Pickler().tensor(np.ones(4, np.float32), **view)})


@pytest.mark.parametrize(
    "view",
    [
        {"size": (5,), "stride": (1,)},
        {"size": (2, 2), "stride": (3, 1)},
        {"size": (4,), "stride": (1,), "offset": 1},
        {"size": (4,), "stride": (1,), "offset": -1},
        {"size": (2,), "stride": (-1,), "offset": 3},
        {"size": (1 << 30, 1 << 30), "stride": (0, 0)},
        {"size": (-1,), "stride": (1,)},
        {"size": (2, 2), "stride": (1,)},
        {"size": (1,) * 40, "stride": (1,) * 40},
    ],
)
def test_tensors_outside_their_storage(tmp_path, view):
    path = write_parts(tmp_path / "a.pt", tensor(**view), [np.ones(4, np.float32)])
    with pytest.raises(CheckpointError):
        read_checkpoint(path)


def test_storages_that_lie(tmp_path):
    path = tmp_path / "a.pt"
    write_parts(path, tensor(), [np.ones(3, np.float32)])
    with pytest.raises(CheckpointError, match="should have 16 bytes, has 12"):
        read_checkpoint(path)
    write_parts(path, tensor(), [])
    with pytest.raises(CheckpointError, match="'data/0' is missing"):
        read_checkpoint(path)


# ------------------------------------------------------------------------- damaged zips


@pytest.fixture
def good(tmp_path):
    """A small sound file."""
    return write(tmp_path / "good.pt", {"x": np.arange(1000, dtype=np.float32)})


def damaged(path, content: bytes):
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)
    return str(error.value)


def test_truncated(good):
    whole = good.read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        damaged(good, whole[:size])


def test_a_flipped_bit_in_a_tensor(good):
    content = bytearray(good.read_bytes())
    content[content.index(np.arange(500, 510, dtype=np.float32).tobytes())] ^= 1
    assert "checksum" in damaged(good, bytes(content))


def test_legacy_format(good):
    from convert_checkpoints.unpickle import LEGACY_MAGIC

    assert "before PyTorch 1.6" in damaged(good, LEGACY_MAGIC + b"\x80\x02M\xe9\x03.")


def test_a_compressed_entry(tmp_path):
    """A zip bomb needs compression, and torch.save never compresses."""
    pickle_ = Pickler().dump({"x": "a" * 10_000_000})
    path = write_parts(tmp_path / "a.pt", pickle_, compression=zipfile.ZIP_DEFLATED)
    assert "compressed" in damaged(path, path.read_bytes())


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", "a\\..\\b/c"])
def test_paths_out_of_the_archive(good, name):
    with zipfile.ZipFile(good, "a") as archive:
        archive.writestr(name, "x")
    damaged(good, good.read_bytes())
    assert not (good.parent.parent / "evil").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_twice(good):
    with zipfile.ZipFile(good, "a") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    assert "twice" in damaged(good, good.read_bytes())


def test_overlapping_entries(good):
    """Two names for the same bytes: the directory points one entry at another's."""
    content = bytearray(good.read_bytes())
    entries = [i for i in range(len(content)) if content[i : i + 4] == b"PK\1\2"]
    first, second = entries[0], entries[2]
    content[second + 42 : second + 46] = content[first + 42 : first + 46]
    assert "overlaps" in damaged(good, bytes(content))


def test_an_entry_larger_than_the_file(good):
    content = bytearray(good.read_bytes())
    entries = [i for i in range(len(content)) if content[i : i + 4] == b"PK\1\2"]
    content[entries[2] + 20 : entries[2] + 28] = struct.pack("<II", 1 << 31, 1 << 31)
    damaged(good, bytes(content))


def test_not_files_at_all(tmp_path):
    for path in (tmp_path, tmp_path / "missing.pt"):
        with pytest.raises(CheckpointError, match=str(path)):
            read_checkpoint(path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_checkpoint(tmp_path / "fifo")


def test_damaged_safetensors(tmp_path):
    path = tmp_path / "a.safetensors"
    for content in (b"", b"\xff" * 64, struct.pack("<Q", 1 << 60) + b"{}"):
        damaged(path, content)

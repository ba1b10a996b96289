"""Mutated checkpoints end in one clear error, or convert; nothing else happens."""

import random
import time
import zlib

import numpy as np
import pytest
from chemeleon2_files import random as random_tensors
from chemeleon2_files import vae_shapes, write_vae

from convert_checkpoints import CheckpointError
from convert_checkpoints.conversion import convert_source, read_source

INTERESTING = [b"", b"\0", b"\xff" * 4, b"\xff" * 8, b"(", b"R", b"b", b"cos\nsystem\n"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The bytes of a small VAE's file."""
    sizes = {"width": 4, "decoder_width": 6, "mlp": 8, "layers": 1, "latent": 2}
    tensors = random_tensors(vae_shapes(**sizes))
    path = tmp_path_factory.mktemp("sound") / "vae.ckpt"
    return write_vae(path, tensors, heads=2).read_bytes()


def mutate(content: bytes, rng: random.Random) -> bytes:
    """One to four random edits: bits, bytes, cuts, copies, insertions."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice([1, 4, 30, 1000]))
        match rng.randrange(6):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(data):
                data[at] = rng.randrange(256)
            case 2:
                del data[at:end]
            case 3:
                data[at:at] = data[at:end]
            case 4:
                data[at:at] = rng.choice(INTERESTING)
            case _:
                data[at : at + 8] = rng.choice(INTERESTING)
    return bytes(data)


def mutate_pickle(content: bytes, rng: random.Random) -> bytes:
    """Edits inside the pickle, of the same length and with the checksums put right.

    So the mutation gets past the zip, to the reader of opcodes and to what believes it.
    """
    start = content.index(b"\x80\x02")
    size = int.from_bytes(content[18:22], "little")
    pickle = content[start : start + size]
    edited = mutate(pickle, rng)[:size].ljust(size, b".")
    old, new = (zlib.crc32(p).to_bytes(4, "little") for p in (pickle, edited))
    return content.replace(pickle, edited).replace(old, new)


@pytest.mark.parametrize("count", [250, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mutation", [mutate, mutate_pickle])
def test_mutated_files(sound, tmp_path, mutation, count):
    rng = random.Random(count)
    path = tmp_path / "mutated.ckpt"
    converted = 0
    for _ in range(count):
        path.write_bytes(mutation(sound, rng))
        start = time.process_time()
        try:
            config, params = convert_source(read_source(path))
            assert all(np.isfinite(x).all() for x in params.values())
            converted += 1
        except CheckpointError as error:
            assert str(path) in str(error)
        assert time.process_time() - start < 10
    assert list(tmp_path.iterdir()) == [path]  # nothing was written
    assert converted < count / 2

"""Mutated checkpoints end in one clear error, or convert; nothing else happens."""

import random
import time
import zlib

import jax
import numpy as np
import pytest
from chemeleon2_files import random as random_tensors
from chemeleon2_files import vae_shapes, write_vae
from fuzzing import mutate

from convert_checkpoints import CheckpointError
from convert_checkpoints.conversion import convert_source, read_source


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The bytes of a small VAE's file."""
    sizes = {"width": 4, "decoder_width": 6, "mlp": 8, "layers": 1, "latent": 2}
    tensors = random_tensors(vae_shapes(**sizes))
    path = tmp_path_factory.mktemp("sound") / "vae.ckpt"
    return write_vae(path, tensors, heads=2).read_bytes()


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
            source = read_source(path)
            params, _ = convert_source(source, "raw", {}, [source])
            leaves = jax.tree.leaves(params)
            assert leaves and all(np.isfinite(x).all() for x in leaves)
            converted += 1
        except CheckpointError as error:
            assert str(path) in str(error)
        assert time.process_time() - start < 10
    assert list(tmp_path.iterdir()) == [path]  # nothing was written
    assert converted < count / 2

"""Files of which a byte has changed: read as they were, or refused in a line."""

import numpy as np
import pytest

from chemeleon_jax.data import dataset
from chemeleon_jax.data.crystals import take
from chemeleon_jax.errors import UserError
from chemeleon_jax.potentials import hull
from chemeleon_jax.runs import iteration_files
from chemeleon_jax.runs.cached_arrays import cached_arrays
from convert_checkpoints.comparison import Recording

FLIPS = 400


def few():
    return dataset.load_dataset("mp_mini").subset(np.arange(5))


def write_dataset(path):
    dataset.save_npz(path, few())


def write_hull(path):
    counts = hull.composition_counts(few().crystals.atom_types)
    hull.save_hull(path, hull.Hull(counts, np.arange(5.0), "digest"))


def write_crystals(path):
    np.savez_compressed(path, **vars(take(few().crystals, slice(3))), total=np.ones(3))


def write_recording(path):
    np.savez(path, x=np.arange(20.0), y=np.ones((2, 2), np.int32))


@pytest.mark.parametrize(
    ("write", "read"),
    [
        (write_dataset, dataset.load_npz),
        (write_dataset, dataset.load_dataset),
        (write_hull, hull.read_hull),
        (write_crystals, iteration_files.read_iteration),
        (write_recording, Recording),
    ],
)
def test_a_flipped_byte_is_a_line_or_changes_nothing(tmp_path, write, read):
    """Once zlib.error and tokenize.TokenError came through as tracebacks."""
    path = tmp_path / "file.npz"
    write(path)
    content, refused = path.read_bytes(), 0
    read(path)
    for changed in flipped(content):
        path.write_bytes(changed)
        try:
            read(path)
        except UserError as error:
            assert "file.npz" in str(error)
            refused += 1
    assert refused > FLIPS / 2  # the others are of dates and attributes


def flipped(content: bytes):
    """The content, each time with one byte changed; all of the first and last ones."""
    rng = np.random.default_rng(0)
    ends = [*range(150), *range(len(content) - 150, len(content))]
    for position in [*ends, *rng.integers(len(content), size=FLIPS - len(ends))]:
        changed = bytearray(content)
        changed[position] ^= rng.integers(1, 256)
        yield bytes(changed)


def test_a_flipped_byte_of_cached_arrays_computes_them_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    arrays = [np.arange(30.0), np.array([1, 2])]
    cached_arrays("name", "key", lambda: arrays)
    (path,) = tmp_path.rglob("*.npz")
    for changed in flipped(path.read_bytes()):
        path.write_bytes(changed)
        found = cached_arrays("name", "key", lambda: arrays)
        for one, other in zip(found, arrays, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("module", "name", "read"),
    [
        (dataset, "mp_mini.npz", lambda: dataset._load_embedded.__wrapped__()),
        (hull, "hull.npz", lambda: hull.load_hull(chgnet())),
        (hull, "references.npz", lambda: hull.reference_crystals()),
    ],
)
def test_a_flipped_byte_of_an_embedded_file_is_a_line(
    tmp_path, monkeypatch, module, name, read
):
    copy, content = tmp_path / name, (module.ASSETS / name).read_bytes()
    monkeypatch.setattr(module, "ASSETS", tmp_path)
    rng = np.random.default_rng(0)
    for position in rng.integers(len(content), size=20):
        changed = bytearray(content)
        changed[position] ^= 1
        copy.write_bytes(changed)
        hull._embedded_hull.cache_clear()
        with pytest.raises(UserError, match="was altered.*install chemeleon_jax"):
            read()


def chgnet():
    from chemeleon_jax.potentials import chgnet
    from chemeleon_jax.potentials.types import Potential

    return Potential("chgnet", chgnet.WEIGHTS_SHA256, None)

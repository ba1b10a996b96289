"""What is computed of the references once, and kept on disk."""

import numpy as np
import pytest

from chemeleon_jax.runs.cached_arrays import cached_arrays

ARRAYS = [np.arange(600.0).reshape(20, 30), np.array([1, 2, 3])]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "chemeleon_jax" / "references"


def unwanted():
    raise AssertionError("computed again")


def assert_equal(found):
    for one, other in zip(found, ARRAYS, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


def test_arrays_are_computed_once_per_key(folder):
    assert_equal(cached_arrays("name", "one", lambda: ARRAYS))
    assert_equal(cached_arrays("name", "one", unwanted))
    other = [np.zeros(2)]
    for name, key in (("name", "another"), ("other", "one")):
        assert cached_arrays(name, key, lambda: other)[0].tolist() == [0.0, 0.0]
    assert_equal(cached_arrays("name", "one", unwanted))
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_damaged_files_are_computed_anew(folder, damage, caplog):
    cached_arrays("name", "key", lambda: ARRAYS)
    (file,) = folder.iterdir()
    content = bytearray(file.read_bytes())
    content[2500] ^= 1  # in the middle of the first array
    damaged = {"flipped": content, "cut": content[:2500], "empty": b""}[damage]
    file.write_bytes(damaged)
    assert_equal(cached_arrays("name", "key", lambda: ARRAYS))
    assert "damaged" in caplog.text
    assert_equal(cached_arrays("name", "key", unwanted))


def test_without_a_place_to_write_nothing_is_kept(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert_equal(cached_arrays("name", "key", lambda: ARRAYS))
    assert "cannot be kept" in caplog.text

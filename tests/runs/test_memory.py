import ctypes
import os

import pytest
import soak

from chemeleon_jax.runs import memory


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="no glibc")
def test_what_was_freed_between_what_is_in_use_is_given_back():
    blocks = [bytes(100_000) for _ in range(2000)]  # 200 MB
    used = blocks[::20]
    del blocks
    before = soak.resident(os.getpid())
    memory.give_back()
    assert soak.resident(os.getpid()) < before - 100
    assert len(used) == 100


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    memory.give_back()

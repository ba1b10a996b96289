import ctypes
from types import SimpleNamespace

from chemeleon_jax.runs import memory


def test_glibc_is_asked_for_all_that_was_freed(monkeypatch):
    asked = []
    glibc = SimpleNamespace(malloc_trim=asked.append)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: glibc)
    memory.give_back()
    assert asked == [0]


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    memory.give_back()

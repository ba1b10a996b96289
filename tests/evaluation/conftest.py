import pytest
from known_crystals import KNOWN, save

from chemeleon_jax.evaluation import terms


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The known crystals, and a home for the hull that is computed of them."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(terms, "CHUNK", 16)
    save(tmp_path / "known.json", KNOWN)
    return tmp_path

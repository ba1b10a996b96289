"""Hub names, with a local directory in the hub's cache layout standing in for it."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import paths
import pytest

from chemeleon_jax.errors import UserError
from chemeleon_jax.models import hub, store
from chemeleon_jax.models.loading import load_checkpoint

FIXTURES = paths.FIXTURES / "chemeleon2"


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A hub that has mp_20's VAE and base LDM, and nothing behind it."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    repo = cache / ("models--" + hub.REPO.replace("/", "--"))
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    for name, file in (("mp_20_vae", "vae"), ("mp_20_ldm_base", "ldm_null")):
        path = repo / "snapshots" / ("0" * 40) / hub.FILES[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(FIXTURES / f"{file}.ckpt", path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return repo


def test_fetched_converted_once_and_reused(stand_in):
    first = load_checkpoint("hub:mp_20_ldm_base")
    assert first.config["kind"] == "ldm"
    assert first.config["vae"]["decoder"]["heads"] == 4
    assert first.config["source"]["file"] == Path(hub.FILES["mp_20_ldm_base"]).name
    shutil.rmtree(stand_in)  # from here on only what was converted is left
    again = load_checkpoint("hub:mp_20_ldm_base")
    assert store.params_digest(again.params) == store.params_digest(first.params)
    assert load_checkpoint("hub:mp_20_vae").config["kind"] == "vae"
    with pytest.raises(UserError, match="hub:mp_20_ldm_rl: cannot fetch"):
        load_checkpoint("hub:mp_20_ldm_rl")


def test_a_file_that_is_not_what_the_hub_said_is_refused(stand_in):
    """As the hub's client keeps them: a link to a file named by its SHA-256."""
    file = stand_in / "snapshots" / ("0" * 40) / hub.FILES["mp_20_vae"]
    content = file.read_bytes()
    blob = stand_in / "blobs" / hashlib.sha256(content).hexdigest()
    blob.parent.mkdir()
    file.unlink()
    file.symlink_to(blob)
    blob.write_bytes(content[:-100] + bytes(1) + content[-99:])
    with pytest.raises(UserError, match="not the file that is known"):
        load_checkpoint("hub:mp_20_vae")
    blob.write_bytes(content)
    assert load_checkpoint("hub:mp_20_vae").config["kind"] == "vae"


def test_importing_does_not_load_the_hub():
    """The network is touched when a hub name is used, and not before."""
    code = (
        "import sys, chemeleon_jax.models.loading\n"
        "print('huggingface_hub' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr

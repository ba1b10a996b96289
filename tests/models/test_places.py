"""Models that are not what they seem, and paths as people write them."""

import shutil

import pytest

from chemeleon_jax.errors import UserError
from chemeleon_jax.models.loading import MINI, load_checkpoint
from convert_checkpoints.__main__ import main as convert
from convert_checkpoints.records import CheckpointError
from convert_checkpoints.unpickle import read_checkpoint

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
PAGE = b"<!DOCTYPE html>\n<html>Sign in</html>"


@pytest.mark.parametrize(
    ("content", "words"), [(POINTER, "git lfs pull"), (PAGE, "an HTML page")]
)
@pytest.mark.parametrize("file", ["config.json", "params.safetensors"])
def test_what_stands_for_a_model_is_named(tmp_path, file, content, words):
    shutil.copytree(MINI / "predictor", tmp_path / "model")
    (tmp_path / "model" / file).write_bytes(content)
    with pytest.raises(UserError, match=f"{file}: {words}|{file}: .*{words}"):
        load_checkpoint(tmp_path / "model")
    for name in ("x.ckpt", "x.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name}: .*{words}"):
            read_checkpoint(tmp_path / name)


def test_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(MINI / "predictor", tmp_path / "model")
    assert load_checkpoint("~/model").config["kind"] == "predictor"
    with pytest.raises(UserError, match="~nobody-here/model"):
        load_checkpoint("~nobody-here/model")


def test_the_converter_ends_with_2(tmp_path, capsys):
    (tmp_path / "x.ckpt").write_bytes(POINTER)
    assert convert([str(tmp_path / "x.ckpt"), "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr().err
    assert "git lfs pull" in shown and shown.count("\n") == 1

import errno
import json
import shutil
import subprocess
import sys

import jax
import pytest

from chemeleon_jax.errors import UserError
from chemeleon_jax.runs.directory import differences, work_directory, write_run_info

CONFIG = {"kind": "ldm", "dit": {"width": 4, "heads": 2}, "vae": {}}
CONFIG |= {"condition": None, "latent_std": 0.1}


def test_run_info_says_how_the_run_was_started(tmp_path):
    write_run_info(tmp_path, {"seed": 7, "rl": {"clip_ratio": 0.1}}, CONFIG, "start")
    config = json.loads((tmp_path / "config.json").read_text())
    info = json.loads((tmp_path / "run.json").read_text())
    assert config == {"seed": 7, "rl": {"clip_ratio": 0.1}}
    assert info["reference_sha256"] == "start"
    assert info["architecture"] == {k: v for k, v in CONFIG.items() if k[0] != "l"}
    assert info["packages"]["jax"] == jax.__version__


def test_a_changed_config_is_said_and_taken(tmp_path, caplog):
    first = {"seed": 7, "rl": {"clip_ratio": 0.1, "alarm": float("inf")}, "t": (1, 2)}
    write_run_info(tmp_path, first, CONFIG, "start")
    write_run_info(tmp_path, first, CONFIG, "start")
    assert caplog.text == ""
    second = {"rl": {"clip_ratio": 0.2, "alarm": float("inf")}, "t": (1, 2), "new": 1}
    write_run_info(tmp_path, second, CONFIG, "start")
    assert (
        "continues with another config: new: absent -> 1; "
        "rl.clip_ratio: 0.1 -> 0.2; seed: 7 -> absent"
    ) in caplog.text
    assert json.loads((tmp_path / "config.json").read_text())["new"] == 1


def test_another_model_is_another_run(tmp_path):
    write_run_info(tmp_path, {"seed": 8}, CONFIG, "start")
    wider = CONFIG | {"dit": {"width": 8}}
    with pytest.raises(UserError, match="another model .*dit.width: 4 -> 8"):
        write_run_info(tmp_path, {"seed": 9}, wider, "start")
    with pytest.raises(UserError, match="started from another model"):
        write_run_info(tmp_path, {"seed": 9}, CONFIG, "another")
    assert json.loads((tmp_path / "config.json").read_text()) == {"seed": 8}


def test_differences_name_the_field():
    before = {"a": {"b": 1.5, "c": [1, 2]}, "d": None}
    assert differences(before, {"a": {"b": 1.5, "c": (1, 2)}, "d": None}) == []
    assert differences(before, {"a": {"b": 1.5, "c": (2, 1)}, "d": 0.0}) == [
        "a.c: [1, 2] -> [2, 1]",
        "d: None -> 0.0",
    ]


# --------------------------------------------------------------------- work directory

HOLDER = """
import fcntl, sys
lock = open(sys.argv[1], "a+")
fcntl.flock(lock, fcntl.LOCK_EX)
print("process 7 on elsewhere", file=lock, flush=True)
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_refused_while_the_first_lives(tmp_path):
    command = [sys.executable, "-S", "-c", HOLDER, str(tmp_path / "run.lock")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as first:
        assert first.stdout.readline() == "locked\n"
        with (
            pytest.raises(UserError, match=r"runs here \(process 7 on elsewhere\)"),
            work_directory(tmp_path),
        ):
            pass
        first.kill()
    with work_directory(tmp_path):
        with (
            pytest.raises(UserError, match="another process"),
            work_directory(tmp_path),
        ):
            pass


def test_a_directory_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="run cannot be written there.*Not a directory"),
        work_directory(tmp_path / "file" / "run"),
    ):
        pass


def test_faults_of_the_disk_end_the_run_in_a_line(tmp_path):
    with (
        pytest.raises(UserError, match="run cannot be written there.*No such file"),
        work_directory(tmp_path / "run") as folder,
    ):
        shutil.rmtree(folder)
        (folder / "crystals").mkdir()
    with (
        pytest.raises(UserError, match="no space left"),
        work_directory(tmp_path / "run"),
    ):
        raise OSError(errno.ENOSPC, "no space left")  # of an open file: without a name
    with pytest.raises(FileNotFoundError), work_directory(tmp_path / "run"):
        open("/nowhere")  # not the run's fault


def test_a_run_does_not_go_on_with_other_random_numbers(tmp_path, monkeypatch):
    """JAX_ENABLE_X64 draws in float64, from other bits."""
    write_run_info(tmp_path, {}, {"kind": "vae"})
    assert json.loads((tmp_path / "run.json").read_text())["x64"] is False
    write_run_info(tmp_path, {}, {"kind": "vae"})
    with jax.enable_x64(True), pytest.raises(UserError, match="JAX_ENABLE_X64=0"):
        write_run_info(tmp_path, {}, {"kind": "vae"})

"""Events on Weights & Biases: a module in the place of its package, and itself."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from chemeleon_jax.errors import UserError
from chemeleon_jax.rl.checks import check_rl
from chemeleon_jax.rl.config import rl_config
from chemeleon_jax.runs.mirror import open_mirror
from chemeleon_jax.runs.tracking import Tracker, read_scalars


@pytest.fixture
def config():
    config = rl_config("mini")
    config.reward.components.energy.weight = 1.0
    config.tracking.wandb = True
    return config


class Recorder:
    """What the package is asked to do."""

    def __init__(self):
        self.started, self.logged, self.codes = [], [], []
        self.Settings = self.Histogram = self.Image = SimpleNamespace
        self.Histogram = lambda values: ("histogram", values.tolist())
        self.Image = lambda picture: ("image", picture.size)

    def init(self, **asked):
        self.started.append(asked)
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self, exit_code):
        self.codes.append(exit_code)


def write(folder, config, start=0):
    with Tracker(folder, 3, start=start, mirror=open_mirror(config, folder)) as tracker:
        tracker.log(start, {"train/reward": np.float32(0.5)})
        tracker.log_histogram(start, "val/distribution/density", np.arange(3.0))
        tracker.log_image(start, "val/best_crystals", Image.new("RGB", (4, 2)))


def test_what_is_logged_is_there_too(tmp_path, config, monkeypatch):
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", recorder)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    write(tmp_path, config)
    write(tmp_path, config, start=2)
    first, second = recorder.started
    assert first["id"] == second["id"]  # it goes on
    assert (first["project"], first["name"]) == ("mine", tmp_path.name)
    assert first["config"]["rl"]["objective"] == "grpo"
    assert recorder.logged[:3] == [
        (0, {"train/reward": 0.5}),
        (0, {"val/distribution/density": ("histogram", [0.0, 1.0, 2.0])}),
        (0, {"val/best_crystals": ("image", (4, 2))}),
    ]
    assert [step for step, _ in recorder.logged] == [0, 0, 0, 2, 2, 2]
    with (
        pytest.raises(KeyError),
        Tracker(tmp_path, 3, mirror=open_mirror(config, tmp_path)),
    ):
        raise KeyError
    assert recorder.codes == [0, 0, 1]  # of how the run ended
    config.tracking.wandb = False
    assert open_mirror(config, tmp_path) is None


def test_without_the_package_or_an_account_it_is_one_line(
    tmp_path, config, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"wandb is not installed.*'\.\[wandb\]'"):
        check_rl(config, 1)  # before anything is loaded
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace())  # a folder wandb/
    with pytest.raises(UserError, match="is not installed"):
        check_rl(config, 1)
    recorder = Recorder()
    recorder.init = lambda **_: 1 / 0
    monkeypatch.setitem(sys.modules, "wandb", recorder)
    with pytest.raises(UserError, match="tracking.wandb: ZeroDivisionError.*offline"):
        open_mirror(config, tmp_path)


def test_the_package_itself_writes_a_run_offline(tmp_path, config, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    write(tmp_path, config)
    (run,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"train/reward" in run.read_bytes()
    assert list(tmp_path.rglob("media/images/val/best_crystals*.png"))
    assert read_scalars(tmp_path)["train/reward"][1].tolist() == [0.5]

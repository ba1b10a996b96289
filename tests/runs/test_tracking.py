import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chemeleon_jax.runs import tracking
from chemeleon_jax.runs.tracking import Tracker, read_scalars


def write(run_dir, values, start=0):
    with Tracker(run_dir, total=10, start=start) as tracker:
        for step, value in enumerate(values, start):
            tracker.log(step, {"train/reward": value, "time/sample": 0.5})


def test_scalars_come_back(tmp_path):
    with Tracker(tmp_path, total=3) as tracker:
        tracker.log(0, {"train/reward": jnp.float32(0.25), "val/msun": np.float64(1)})
        tracker.log(1, {"train/reward": float("nan")})
        # On disk at once: a killed process loses nothing.
        assert read_scalars(tmp_path)["train/reward"][0].tolist() == [0, 1]
        tracker.log(2, {"train/reward": jnp.array(-2)})
    curves = read_scalars(tmp_path)
    steps, values = curves["train/reward"]
    assert steps.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(values, np.float32([0.25, np.nan, -2.0]))
    assert curves["val/msun"][0].tolist() == [0]


def test_a_resumed_run_is_one_curve(tmp_path):
    write(tmp_path, [0.0, 0.1, 0.2, 0.3])  # ends after step 3, last saved before step 2
    write(tmp_path, [2.2, 2.3, 2.4], start=2)
    steps, values = read_scalars(tmp_path)["train/reward"]
    assert steps.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(values, [0.0, 0.1, 2.2, 2.3, 2.4], rtol=1e-6)


def test_event_files_of_other_programs_are_left_alone(tmp_path):
    write(tmp_path, [0.0, 0.1])
    (tmp_path / "events.out.tfevents.1.host.profile-empty").write_bytes(b"")
    write(tmp_path, [1.1], start=1)
    _, values = read_scalars(tmp_path)["train/reward"]
    np.testing.assert_allclose(values, [0.0, 1.1], rtol=1e-6)


def test_what_is_cut_off_leaves_the_files(tmp_path):
    """For readers that know nothing of restarts: every point is there once."""
    write(tmp_path, [0.0, 0.1, 0.2, 0.3])
    write(tmp_path, [2.2, 2.3, 2.4], start=2)
    write(tmp_path, [3.4], start=4)
    write(tmp_path, [4.3, 4.4], start=3)  # the state at 4 was damaged
    points = [
        (event.step, value.tag)
        for file in tracking._event_files(tmp_path)
        for event, _ in tracking._events(file)
        for value in event.summary.value
    ]
    tags = "train/reward", "time/sample"
    assert points == [(step, tag) for step in range(5) for tag in tags]
    values = read_scalars(tmp_path)["train/reward"][1]
    np.testing.assert_allclose(values, [0.0, 0.1, 2.2, 4.3, 4.4], rtol=1e-6)


def test_a_run_without_a_checkpoint_starts_its_curve_anew(tmp_path):
    write(tmp_path, [0.0, 0.1, 0.2])
    write(tmp_path, [1.0])
    assert read_scalars(tmp_path)["train/reward"][1].tolist() == [1.0]


def test_a_torn_last_record_is_left_out(tmp_path):
    write(tmp_path, [1.0, 2.0])
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    assert read_scalars(tmp_path)["train/reward"][1].tolist() == [1.0]
    write(tmp_path, [3.0], start=1)
    assert read_scalars(tmp_path)["train/reward"][1].tolist() == [1.0, 3.0]


def test_tensorboard_reads_the_same(tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    write(tmp_path, [0.0, 0.1, 0.2, 0.3])
    write(tmp_path, [2.2, 2.3], start=2)
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    seen = [(e.step, e.value) for e in events.Scalars("train/reward")]
    steps, values = read_scalars(tmp_path)["train/reward"]
    assert seen == list(zip(steps.tolist(), values.tolist(), strict=True))


def test_progress_leaves_the_compilation_out(tmp_path, monkeypatch):
    clock = iter([100.0, 104.0, 112.0])
    monkeypatch.setattr(tracking.time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    with Tracker(tmp_path, total=103, start=50, stream=out) as tracker:
        tracker.progress(50, reward=jnp.float32(0.41239), KL=1e-5)
        tracker.progress(51, reward=0.5)
        tracker.progress(53, reward=0.5)
    assert out.getvalue().splitlines() == [
        "iteration 51/103  reward 0.4124  KL 1e-05",
        "iteration 52/103  reward 0.5  4 s/iteration  3 min left",  # 51 * 4 s
        "iteration 54/103  reward 0.5  4 s/iteration  3 min left",  # 49 * 4 s
    ]


def test_other_processes_are_silent(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    out = io.StringIO()
    with Tracker(tmp_path / "run", total=2, stream=out) as tracker:
        tracker.log(0, {"train/reward": 1.0})
        tracker.progress(0, reward=1.0)
    assert not (tmp_path / "run").exists()
    assert out.getvalue() == ""

import resource
import shutil
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_state import assert_identical, blank_state, trained_state

from chemeleon_jax.devices.sharding import make_mesh, replicate
from chemeleon_jax.errors import UserError
from chemeleon_jax.runs import states
from chemeleon_jax.runs.states import RunCheckpoints, read_subtree


def kept(workdir):
    return sorted(d.name for d in (workdir / "checkpoints").iterdir())


def numbers(step):
    return {"x": jnp.full(2, step)}


def largest_file(directory):
    return max(directory.rglob("*"), key=lambda f: f.is_file() and f.stat().st_size)


def flip_a_bit(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_resumed_state_is_bit_identical(tmp_path):
    state = trained_state()
    with RunCheckpoints(tmp_path) as run:
        assert run.restore_latest(blank_state()) is None
        run.save(3, state)
    with RunCheckpoints(tmp_path) as run:
        assert run.latest_step == 3
        assert_identical(run.restore_latest(blank_state()), state)


def test_a_state_that_was_saved_leaves_memory_with_its_last_name(tmp_path):
    """Orbax leaves a cycle of references behind, around every array."""
    state = numbers(1)
    gone = weakref.ref(state["x"])
    with RunCheckpoints(tmp_path) as run:
        run.save(1, state)
        del state
        assert gone() is None


def test_a_state_moves_between_numbers_of_devices(tmp_path):
    state = trained_state()
    with RunCheckpoints(tmp_path) as run:
        run.save(3, replicate(state, make_mesh(4)))
        for devices in (1, 2, 4):
            target = replicate(blank_state(), make_mesh(devices))
            restored = run.restore_latest(target)
            assert_identical(restored, state)
            assert len(restored.params["dit"]["x_embedder"]["kernel"].devices()) == (
                devices
            )


def test_latest_and_best_are_kept(tmp_path):
    """Guards against keeping the best only, which deletes the newest."""
    scores = {1: 0.1, 2: 0.9, 3: 0.9, 4: float("nan"), 5: None, 6: 0.2}
    with RunCheckpoints(tmp_path) as run:
        for step, score in scores.items():
            run.save(step, numbers(step), score=score)
        assert run.latest_step == 6
        assert run.best_step == 2
    assert kept(tmp_path) == ["2", "5", "6"]
    for best, step in ((True, 2), (False, 6)):
        x = read_subtree(tmp_path / "checkpoints", "x", best=best)
        assert x.tolist() == [step, step]


def test_a_state_of_another_shape_is_refused(tmp_path):
    with RunCheckpoints(tmp_path) as run:
        run.save(1, {"x": jnp.zeros(2)})
        with pytest.raises(UserError, match="checkpoints/1.*--workdir"):
            run.restore_latest({"x": jnp.zeros(3)})
        with pytest.raises(UserError, match="checkpoints/1"):
            run.restore_latest({"y": jnp.zeros(2)})


# ------------------------------------------------------------------------- damage


def truncate(directory):
    file = largest_file(directory)
    file.write_bytes(file.read_bytes()[:-1])


def flip_state(directory):
    flip_a_bit(largest_file(directory / "state"))


def flip_manifest(directory):
    flip_a_bit(directory / "manifest.json")


def lose_a_file(directory):
    largest_file(directory / "state").unlink()


def lose_the_manifest(directory):
    (directory / "manifest.json").unlink()


@pytest.mark.parametrize(
    "damage", [truncate, flip_state, flip_manifest, lose_a_file, lose_the_manifest]
)
def test_a_damaged_newest_state_falls_back_on_the_one_before(tmp_path, damage, caplog):
    with RunCheckpoints(tmp_path) as run:
        run.save(1, numbers(1), score=1.0)
        run.save(2, numbers(2), score=2.0)
    damage(tmp_path / "checkpoints" / "2")
    newest = read_subtree(tmp_path / "checkpoints", "x")  # of a run that goes on
    assert newest.tolist() == [1, 1]
    with RunCheckpoints(tmp_path) as run:
        assert run.restore_latest(numbers(0))["x"].tolist() == [1, 1]
        assert "checkpoints/2 is damaged" in caplog.text
        assert run.best_step == 1
        run.save(2, numbers(22))  # the run comes to this step again
        assert run.restore_latest(numbers(0))["x"].tolist() == [22, 22]
    assert kept(tmp_path) == ["1", "2", "damaged-2"]


def test_only_damaged_states_are_no_reason_to_start_anew(tmp_path):
    with RunCheckpoints(tmp_path) as run:
        run.save(1, numbers(1), score=1.0)
        flip_state(tmp_path / "checkpoints" / "1")
        with pytest.raises(UserError, match="best state is damaged"):
            read_subtree(tmp_path / "checkpoints", "x", best=True)
        with pytest.raises(UserError, match="every state is damaged"):
            read_subtree(tmp_path / "checkpoints", "x")
        with pytest.raises(UserError, match="every state is damaged"):
            run.restore_latest(numbers(0))


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    with RunCheckpoints(tmp_path) as run:
        run.save(1, numbers(1))
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "1", folder / ".writing-2")
    shutil.copytree(folder / "1", folder / ".deleting-0")
    with RunCheckpoints(tmp_path) as run:
        assert run.latest_step == 1
    assert kept(tmp_path) == ["1"]


# ------------------------------------------------------------------- no room to write


def test_a_full_disk_leaves_earlier_states(tmp_path):
    """Files may not grow beyond a size, which fails a write as a full disk does."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RunCheckpoints(tmp_path) as run:
        run.save(1, numbers(1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, unlimited[1]))
        try:
            with pytest.raises(UserError, match="2: this state cannot be written"):
                noise = np.random.default_rng(0).normal(size=4096)
                run.save(2, {"x": jnp.asarray(noise)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        assert kept(tmp_path) == ["1"]
        assert run.restore_latest(numbers(0))["x"].tolist() == [1, 1]
        run.save(2, numbers(2))
    assert kept(tmp_path) == ["1", "2"]


def test_a_vanished_directory_does_not_come_back(tmp_path):
    with RunCheckpoints(tmp_path / "run") as run:
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(UserError, match="cannot be written"):
            run.save(1, numbers(1))
    assert not (tmp_path / "run").exists()


def test_a_kill_before_the_last_rename_leaves_no_state(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    with RunCheckpoints(tmp_path) as run:
        run.save(1, numbers(1))
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(states.os, "replace", kill)
            run.save(2, numbers(2))
    assert kept(tmp_path) == [".writing-2", "1"]
    with RunCheckpoints(tmp_path) as run:
        state = run.restore_latest(numbers(0))
    assert jax.device_get(state["x"]).tolist() == [1, 1]

"""Several processes on this machine, connected by gloo."""

import shutil

import jax
import many_processes
import numpy as np
import pytest
import two_processes

from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.devices import distributed
from chemeleon_jax.devices.sharding import device_order
from chemeleon_jax.errors import UserError
from chemeleon_jax.rewards.scoring import owners
from chemeleon_jax.runs.states import RunCheckpoints, read_subtree

VARIABLES = (
    "JAX_COORDINATOR_ADDRESS SLURM_STEP_NODELIST SLURM_NTASKS OMPI_COMM_WORLD_SIZE "
    "TPU_WORKER_HOSTNAMES KUBERNETES_SERVICE_HOST JOB_COMPLETION_INDEX"
).split()


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, None),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "JAX_COORDINATOR_ADDRESS"),
        ({"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2"}, "SLURM"),
        ({"SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "1"}, None),
        ({"SLURM_NTASKS": "2"}, None),  # a batch script, outside of srun
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "Open MPI"),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1"}, "TPU pod"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
        (
            {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"},
            "Kubernetes",
        ),
    ],
)
def test_a_launcher_of_several_processes_is_recognised(environment, name, monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert distributed.launcher() == name


def test_a_process_number_that_is_none(monkeypatch):
    monkeypatch.setenv("JAX_PROCESS_ID", "first")
    with pytest.raises(UserError, match="JAX_PROCESS_ID=first"):
        distributed.run(True, print)


def test_alone_nothing_is_exchanged():
    assert distributed.broadcast_from_first(7) == distributed.max_over_processes(7) == 7
    assert distributed.gather({"x": np.ones(3)})["x"].shape == (1, 3)


def test_devices_hold_a_share_of_every_inner_batch():
    assert device_order(8, 2, 2).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert device_order(8, 2, 1).tolist() == list(range(8))


def test_one_process_has_all_crystals_of_a_formula():
    types = np.array([[11, 17], [3, 9], [17, 11], [3, 3], [11, 17], [9, 0]])
    empty = np.zeros((6, 2, 3)), np.ones((6, 3)), np.ones((6, 3))
    crystals = CrystalBatch(types, *empty, types > 0)
    # NaCl three times; then LiF, Li and F to whoever has less.
    assert owners(crystals, 2).tolist() == [0, 1, 0, 1, 0, 1]
    assert owners(crystals, 1).tolist() == [0] * 6


def test_two_processes_score_save_and_end_as_one(tmp_path):
    script = two_processes.__file__
    started = many_processes.start([script, str(tmp_path)], 2, 1)
    said = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [143, 143], said
    assert "SIGTERM: the state after 2 is saved" in said[0]
    alone = two_processes.score()
    for i in range(2):
        found = np.load(tmp_path / f"rewards_{i}.npz")
        for name in ("unique", "novel", "valid"):
            np.testing.assert_array_equal(found[name], getattr(alone, name))
        for name in ("total", "advantage", "raw"):
            np.testing.assert_allclose(found[name], getattr(alone, name), atol=1e-5)
        for name, values in alone.components.items():
            np.testing.assert_allclose(found[name], values, atol=1e-5, err_msg=name)
    assert alone.unique.tolist().count(False) == 3
    # What two have written together, one reads alone.
    folder = tmp_path / "run"
    w = read_subtree(folder / "checkpoints", "w", best=True)
    np.testing.assert_array_equal(w, two_processes.state()["w"])
    with RunCheckpoints(folder) as saved:
        target = jax.tree.map(jax.numpy.zeros_like, two_processes.state())
        assert int(saved.restore_latest(target)["step"]) == 3


# ------------------------------------------------------------------------ whole runs


@pytest.mark.slow
@pytest.mark.parametrize("name", many_processes.PROGRAMS)
def test_any_layout_is_the_same_run(tmp_path, name):
    program = many_processes.run_config(tmp_path, 4, name)
    for layout, found in many_processes.compare_layouts(program):
        bounds = dict.fromkeys(found, 1e-4 if layout == "1x1 at once" else 1e-5)
        bounds |= many_processes.BOUNDS[name]
        far = {k: max(v) for k, v in found.items() if max(v) > bounds[k]}
        assert not far, layout


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_process_dies_the_other_ends_and_both_continue(tmp_path, victim):
    quick = {"config.reward.components.energy.weight": 0.0}
    program = many_processes.run_config(tmp_path, 1000, **quick)
    seconds, said = many_processes.kill_one(program, "killed", victim)
    assert seconds < 60
    assert "another" in said
    with RunCheckpoints(tmp_path / "killed") as saved:
        done = saved.latest_step
    program.options["config.num_iterations"] = done + 2
    many_processes.finish(many_processes.launch(program, "killed", 2, 1))
    with RunCheckpoints(tmp_path / "killed") as saved:
        assert saved.latest_step == done + 2
    # On other devices too.
    shutil.copytree(tmp_path / "killed", tmp_path / "alone")
    program.options["config.num_iterations"] = done + 3
    many_processes.finish(many_processes.launch(program, "alone", 1, 1))

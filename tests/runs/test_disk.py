"""Real runs on disks that are full, read-only, or gone. Needs the right to mount."""

import shutil
import subprocess

import pytest
from kill_and_resume import Program, finish, prepare, wait_for

from chemeleon_jax.runs.states import find_damage, list_steps

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A run of twelve iterations, each of which saves a state."""
    return prepare(tmp_path_factory.mktemp("runs"), "train", iterations=12)


@pytest.fixture
def disk(program):
    """A disk of 64 MB, mounted where a run's directory will be."""
    folder = program.folder / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a disk here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def end_of(program: Program, run: str, fault=None) -> tuple[int, str]:
    """Status and messages of a run to which something happens after an iteration."""
    with program.start(run) as process:
        if fault:
            wait_for(process, 3)
            fault()
        said = process.stderr.read()
    return process.returncode, said


def intact(run) -> list[int]:
    steps = sorted(list_steps(run / "checkpoints"))
    assert not any(find_damage(run / "checkpoints" / str(s)) for s in steps)
    assert not list((run / "checkpoints").glob(".*"))
    return steps


def fill(disk) -> None:
    """Writes until nothing more can be written."""
    with pytest.raises(OSError), open(disk / "filler", "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def test_a_disk_that_fills_up_and_then_is_read_only(program, disk):
    status, said = end_of(program, "disk/run", lambda: fill(disk))
    assert status == 2 and "No space left" in said and "Traceback" not in said
    before = intact(disk / "run")
    assert before and before[-1] < 12

    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    status, said = end_of(program, "disk/run")
    assert status == 2 and "Read-only file system" in said and "Traceback" not in said
    assert intact(disk / "run") == before

    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    (disk / "filler").unlink()
    finish(program, "disk/run")
    assert intact(disk / "run")[-1] == 12


def test_a_directory_that_vanishes(program):
    run = program.folder / "gone"
    status, said = end_of(program, "gone", lambda: shutil.rmtree(run))
    assert status == 2 and str(run) in said and "Traceback" not in said
    assert not run.exists()

"""The scripts of docs/robustness.md, in a short form and in full."""

import signal

import pytest
from kill_and_resume import (
    ITERATIONS,
    compare,
    finish,
    interrupt,
    kill_and_finish,
    prepare,
)


def test_a_killed_run_ends_like_one_left_alone(tmp_path):
    program = prepare(tmp_path, "train", iterations=9)
    pace = finish(program, "whole")
    # By Ctrl-C, which no process outlives, and by a SIGKILL.
    interrupt(program, "killed", signal.SIGINT, 130)
    assert kill_and_finish(program, "killed", kills=1, pace=pace, seed=0)[0] == 1
    assert compare(program, "whole", "killed") == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ITERATIONS)
def test_twenty_kills(tmp_path, name):
    program = prepare(tmp_path, name, ITERATIONS[name])
    pace = finish(program, "whole")
    assert kill_and_finish(program, "killed", kills=20, pace=pace, seed=0)[0] == 20
    assert compare(program, "whole", "killed") == []

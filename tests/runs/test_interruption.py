import os
import signal
import subprocess
import sys

import pytest

from chemeleon_jax.runs.interruption import Interrupted, SaveOnSignal


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_a_signal_saves_when_the_iteration_has_ended(number, status, capsys):
    saved, before = [], signal.getsignal(number)
    with (
        pytest.raises(Interrupted) as exit,
        SaveOnSignal(lambda step, state: saved.append((step, state))) as interruption,
    ):
        interruption.finished(1, "first")
        os.kill(os.getpid(), number)
        while interruption._signal is None:
            pass  # an iteration
        interruption.finished(2, "second")
    assert exit.value.code == status
    assert saved == [(2, "second")]
    assert "the state after 2 is saved" in capsys.readouterr().err
    assert signal.getsignal(number) is before


BUSY = """
import os, signal, time
from chemeleon_jax.runs import interruption
from chemeleon_jax.errors import UserError

def save(step, state):
    if state == "no room":
        raise UserError("no room")
    print("saved", step, state, flush=True)

interruption.GRACE = 0.01
with interruption.SaveOnSignal(save) as run:
    run.finished(7, STATE)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)  # an iteration that does not end
"""


@pytest.mark.parametrize(
    ("state", "status", "out"),
    [("seventh", 143, "saved 7 seventh\n"), ("no room", 2, "")],
)
def test_a_long_iteration_is_given_up_and_the_last_one_saved(state, status, out):
    code = BUSY.replace("STATE", repr(state))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (status, out)


def test_without_a_signal_nothing_happens():
    with SaveOnSignal(print) as interruption:
        interruption.finished(1, None)

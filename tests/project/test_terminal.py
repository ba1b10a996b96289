"""Printing never stops work; what the user can mend is one line and status 2."""

import errno
import subprocess
import sys

import pytest
from paths import ROOT

from chemeleon_jax.errors import UserError, exit_status, one_line

PROGRAM = """
import sys
from chemeleon_jax.errors import exit_status, run_program
def work():
    for i in range(20_000):
        print("é Å", i)
    print("to stderr", file=sys.stderr)
    open(sys.argv[1], "w").write("done")
run_program(lambda: exit_status(work))
"""


def shell(command, **environment):
    return subprocess.run(
        ["/bin/bash", "-c", command, "-", sys.executable, PROGRAM],
        capture_output=True,
        timeout=60,
        env={"PYTHONPATH": str(ROOT), **environment},
    )


@pytest.mark.parametrize(
    "ending", ["| head -1", "2>&-", ">&-", ">&- 2>&-", "> /dev/full", "</dev/null", ""]
)
@pytest.mark.parametrize("environment", [{}, {"PYTHONIOENCODING": "ascii"}])
def test_work_is_done_whatever_becomes_of_its_output(tmp_path, ending, environment):
    done = tmp_path / "done"
    result = shell(f'set -o pipefail; "$1" -c "$2" {done} {ending}', **environment)
    assert done.read_text() == "done"
    assert result.returncode == 0
    assert b"Error" not in result.stderr


def test_what_a_terminal_cannot_show_is_escaped(tmp_path):
    result = shell(f'"$1" -c "$2" {tmp_path}/x', LC_ALL="C", PYTHONIOENCODING="ascii")
    assert result.stdout.startswith(b"\\xe9 \\xc5 0\n")


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("wrong:\n  \x1b[31mred\0"), "error: wrong: ?[31mred?\n"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            "error: /x: Permission denied: give another place, or put it right\n",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "error: No space left on device: give another place, or put it right\n",
        ),
    ],
)
def test_one_line_and_status_2(capsys, error, line):
    assert exit_status(fail, error) == 2
    assert capsys.readouterr().err == line


def test_faults_of_the_program_are_no_lines():
    for error in (ValueError("x"), ConnectionError("x")):
        with pytest.raises(type(error)):
            exit_status(fail, error)


def test_ctrl_c_is_a_line(tmp_path):
    code = PROGRAM.replace('print("to', 'raise KeyboardInterrupt\n    print("to')
    command = [sys.executable, "-c", code, str(tmp_path / "x")]
    environment = {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, env=environment, timeout=60)
    assert result.returncode == 130 and result.stderr == b"error: interrupted\n"


def test_one_line():
    assert one_line("a\n  b\tc\r\n") == "a b c"
    assert one_line("é\u2028\x85\x1b") == "é ?"

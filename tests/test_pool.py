import ctypes
import os
import signal
import subprocess
import sys
import time

import pytest

from chemeleon_jax.rewards.pool import (
    DIED,
    OK,
    OUT_OF_MEMORY,
    RAISED,
    TIMED_OUT,
    WorkerPool,
)

LIMIT = 1.0  # s


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(2, time_limit=LIMIT, memory_limit=1.0) as pool:
        yield pool


def misbehave(x):
    match x:
        case 3:
            raise ValueError("three")
        case 5:
            time.sleep(1000)
        case 7:
            ctypes.string_at(0)  # a segmentation fault
        case 8:
            leak = []
            while True:
                leak.append(bytes(1 << 24))
        case 9:
            sys.exit(0)
    return x * x


def fail_once(item):
    path, how = item
    if not os.path.exists(path):
        open(path, "w").close()
        if how == "hang":
            time.sleep(1000)
        os.kill(os.getpid(), signal.SIGKILL)
    return "second time"


def log_and_die(path):
    with open(path, "a") as file:
        file.write("x")
    os.abort()


LEAK = []


def leak_some(_):
    LEAK.append(bytes(200 << 20))


def environment(_):
    return {
        "pid": os.getpid(),
        "jax": "jax" in sys.modules,
        "main": getattr(sys.modules.get("__mp_main__"), "__file__", None),
        "threads": os.environ["OMP_NUM_THREADS"],
        "platform": os.environ["JAX_PLATFORMS"],
        "here": os.getcwd() in sys.path,
    }


@pytest.mark.parametrize("chunk_size", [None, 1, 5])
def test_only_the_culprits_are_lost(pool, chunk_size):
    outcomes = pool.map(misbehave, range(12), chunk_size=chunk_size)
    status = {3: RAISED, 5: TIMED_OUT, 7: DIED, 8: OUT_OF_MEMORY, 9: RAISED}
    assert [o.status for o in outcomes] == [status.get(x, OK) for x in range(12)]
    assert [o.value for o in outcomes if o.status == OK] == [
        x * x for x in range(12) if x not in status
    ]
    assert outcomes[3].message == "ValueError: three"
    assert outcomes[3].traceback.endswith("ValueError: three\n")
    assert "in misbehave" in outcomes[3].traceback
    assert "1 s" in outcomes[5].message and "-11" in outcomes[7].message
    assert "1 GiB" in outcomes[8].message


@pytest.mark.parametrize("how", ["die", "hang"])
def test_what_was_lost_alone_has_one_more_chance(pool, tmp_path, how):
    count = tmp_path / "count"
    outcome = pool.call(fail_once, (str(count), how), time_limit=LIMIT)
    assert outcome.status == OK and outcome.value == "second time"
    count.unlink()
    outcome = pool.call(fail_once, (str(count), how), time_limit=LIMIT, retry=False)
    assert outcome.status == {"die": DIED, "hang": TIMED_OUT}[how]


def test_one_more_chance_and_no_third(pool, tmp_path):
    log = tmp_path / "log"
    assert pool.call(log_and_die, str(log), time_limit=LIMIT).status == DIED
    assert log.read_text() == "xx"


def test_what_leaks_little_by_little_is_started_afresh(pool):
    """200 MiB a call, 24 calls: more than twice what two workers may hold."""
    outcomes = pool.map(leak_some, range(24), chunk_size=1)
    assert [o.status for o in outcomes] == [OK] * 24


def test_what_cannot_be_pickled(pool):
    outcome = pool.call(lambda x: x, 1, time_limit=LIMIT)
    assert outcome.status == DIED and "pickle" in outcome.message


def test_workers_are_killed_between_calls(pool):
    for _ in range(3):
        pid = pool.call(environment, 0, time_limit=LIMIT).value["pid"]
        os.kill(pid, signal.SIGKILL)
        outcomes = pool.map(misbehave, [0, 1, 2])
        assert [o.value for o in outcomes] == [0, 1, 4]


def test_workers_have_one_thread_and_no_jax(pool):
    assert (
        pool.call(environment, 0, time_limit=LIMIT).value.items()
        >= {
            "jax": False,
            "main": None,
            "threads": "1",
            "platform": "cpu",
            "here": True,
        }.items()
    )


def test_nothing_to_do(pool):
    assert pool.map(misbehave, []) == []


def test_a_closed_pool_says_so():
    pool = WorkerPool(1)
    pool.close()
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        pool.map(misbehave, [1])


PROGRAM = """
import os, time
from chemeleon_jax.rewards.pool import WorkerPool
pool = WorkerPool(1, time_limit=600.0)
print(pool.map(os.getpgid, [0])[0].value, flush=True)
pool.map(time.sleep, [600])
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_program(how):
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    group = int(program.stdout.readline())  # of the program and its workers
    assert group == program.pid
    program.send_signal(how)
    program.wait(120)
    program.stdout.close()
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("a worker is still there after 10 s")

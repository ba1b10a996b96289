"""What both pools promise: processes of this machine, and of a Ray cluster."""

import ctypes
import importlib.util
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from chemeleon_jax.errors import UserError
from chemeleon_jax.workers.executors import start_pool
from chemeleon_jax.workers.outcome import Status
from chemeleon_jax.workers.pool import WorkerPool

LIMIT = 1.0  # s
HAS_RAY = importlib.util.find_spec("ray") is not None
with_ray = pytest.mark.skipif(not HAS_RAY, reason="needs the extra 'ray'")
EXECUTORS = ["processes", pytest.param("ray", marks=with_ray)]


@pytest.fixture(scope="module", params=EXECUTORS)
def pool(request):
    handler = signal.getsignal(signal.SIGTERM)
    with start_pool(request.param, 2, time_limit=LIMIT, memory_limit=1.0) as pool:
        assert signal.getsignal(signal.SIGTERM) is handler
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


def kill_once(item):
    path, parent = item
    if not os.path.exists(path):
        open(path, "w").close()
        kill_again(parent)
    return "second time"


def kill_again(parent):
    os.kill(os.getppid() if parent else os.getpid(), signal.SIGKILL)
    time.sleep(1000)


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


@with_ray
def test_no_cluster_at_the_address():
    """The first of this file: where there is a connection already, it is used."""
    with pytest.raises(UserError, match=r"ray_address = 'auto': Could not find any"):
        start_pool("ray", ray_address="auto")


@pytest.mark.parametrize("chunk_size", [None, 1, 5])
def test_only_the_culprits_are_lost(pool, chunk_size):
    outcomes = pool.map(misbehave, range(12), chunk_size=chunk_size)
    status = {
        3: Status.RAISED,
        5: Status.TIMED_OUT,
        7: Status.DIED,
        8: Status.OUT_OF_MEMORY,
        9: Status.RAISED,
    }
    assert [o.status for o in outcomes] == [status.get(x, Status.OK) for x in range(12)]
    assert [o.value for o in outcomes if o.status == Status.OK] == [
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
    assert outcome.status == Status.OK and outcome.value == "second time"
    count.unlink()
    outcome = pool.call(fail_once, (str(count), how), time_limit=LIMIT, retry=False)
    assert outcome.status == {"die": Status.DIED, "hang": Status.TIMED_OUT}[how]


def test_one_more_chance_and_no_third(pool, tmp_path):
    log = tmp_path / "log"
    assert pool.call(log_and_die, str(log), time_limit=LIMIT).status == Status.DIED
    assert log.read_text() == "xx"


def test_what_leaks_little_by_little_is_started_afresh(pool):
    """200 MiB a call, 24 calls: more than twice what two workers may hold."""
    outcomes = pool.map(leak_some, range(24), chunk_size=1)
    assert [o.status for o in outcomes] == [Status.OK] * 24


def test_what_cannot_be_pickled(pool):
    outcome = pool.call(lambda x: x, 1, time_limit=LIMIT)
    assert outcome.status == Status.DIED and "pickle" in outcome.message


def test_workers_are_killed_between_calls(pool):
    for _ in range(3):
        pid = pool.call(environment, 0, time_limit=LIMIT).value["pid"]
        os.kill(pid, signal.SIGKILL)
        outcomes = pool.map(misbehave, [0, 1, 2])
        assert [o.value for o in outcomes] == [0, 1, 4]


def test_what_runs_the_workers_is_killed(pool, tmp_path):
    """With Ray, the actor; with processes, the worker once more."""
    ray = not isinstance(pool, WorkerPool)
    outcome = pool.call(kill_once, (str(tmp_path / "dead"), ray), time_limit=LIMIT)
    assert outcome.value == "second time"
    outcome = pool.call(kill_again, ray, time_limit=LIMIT)
    assert outcome.status == Status.DIED


@pytest.mark.parametrize("pool", EXECUTORS[1:], indirect=True)
def test_rewards_of_a_ray_cluster_are_those_of_processes_bit_for_bit(pool):
    # Not at the top of this file, which the workers import.
    from small_reward import BATCH, COMPONENTS, assert_same, build, score

    names = ("creativity", "energy", "custom")
    components = {name: COMPONENTS[name] for name in names}
    with WorkerPool(2, time_limit=60.0) as processes:
        expected = score(BATCH, reward=build(processes, components), group_size=4)
    found = score(BATCH, reward=build(pool, components), group_size=4)
    assert 0 < expected.unique.sum() < 16 and np.ptp(expected.total) > 0
    assert_same(found, expected, rtol=0)


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


def test_many_items_travel_in_small_chunks(pool, monkeypatch):
    """A chunk has the time limit of one item."""
    sizes, run = [], pool.run_chunks

    def run_and_tell(function, chunks, limit):
        sizes.extend(map(len, chunks))
        return run(function, chunks, limit)

    monkeypatch.setattr(pool, "run_chunks", run_and_tell)
    assert [o.value for o in pool.map(abs, range(600))] == list(range(600))
    assert max(sizes) == 32 and sum(sizes) == 600


def test_nothing_to_do(pool):
    assert pool.map(misbehave, []) == []


def test_ray_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "chemeleon_jax.workers.ray_pool", raising=False)
    with pytest.raises(UserError, match=r"reward.executor = 'ray'.*\[ray\]"):
        start_pool("ray")


def test_a_closed_pool_says_so():
    pool = WorkerPool(1)
    pool.close()
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        pool.map(misbehave, [1])


PROGRAM = """
import os, signal, time
# Shells start what runs in the background with Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from chemeleon_jax.workers.pool import WorkerPool
pool = WorkerPool(1, time_limit=600.0)
print(pool.map(os.getpgid, [0])[0].value, flush=True)
pool.map(time.sleep, [600])
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_program(how):
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
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
            assert b"leaked" not in program.stderr.read()
            program.stderr.close()
            return
        time.sleep(0.1)
    pytest.fail("a worker is still there after 10 s")

import os
import tempfile

# Before jax is imported: four CPU devices, so that sharding is really exercised, and
# quick compilation, since tests compile much and compute little.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=4"
    + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

# What the package keeps for later runs, it keeps for these tests only, and so does JAX
# what it compiles: many tests have the same programs. Both processes use one folder.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="chemeleon_jax-")
    os.environ["XDG_CACHE_HOME"] = _CACHE.name
    os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{_CACHE.name}/chemeleon_jax/compiled"
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax  # noqa: E402
import pytest  # noqa: E402

from chemeleon_jax.models import buckets  # noqa: E402
from chemeleon_jax.workers.pool import WorkerPool  # noqa: E402

# One width where a run has five: each is traced, lowered and compiled. The tests of
# widths set their own.
buckets.WIDTH_STEP = 20

# A forgotten axis is an error, not a silent outer product.
jax.config.update("jax_numpy_rank_promotion", "raise")


# Of minutes each. They come first: what is last one process does, the other waiting.
_LONGEST = ("test_kill_and_resume.py", "test_train_end_to_end.py", "test_pretrain.py")


def pytest_collection_modifyitems(items):
    """The longest files first, the others as they were."""
    items.sort(key=lambda item: item.path.name not in _LONGEST)


@pytest.fixture(scope="module")
def pool():
    """Two worker processes."""
    with WorkerPool(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def reward(pool):
    """A small reward of every component."""
    from small_reward import build  # here: most tests need none of what it imports

    return build(pool)

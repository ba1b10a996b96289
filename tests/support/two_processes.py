"""One of two processes that score a batch, save a state and end together."""

import os
import signal
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import tiny

from chemeleon_jax.data.crystals import take
from chemeleon_jax.data.dataset import load_dataset
from chemeleon_jax.devices import distributed
from chemeleon_jax.devices.sharding import make_mesh, shard_params
from chemeleon_jax.models.vae import make_vae
from chemeleon_jax.rewards import compute_rewards, make_reward
from chemeleon_jax.runs.directory import work_directory
from chemeleon_jax.runs.interruption import SaveOnSignal
from chemeleon_jax.runs.states import RunCheckpoints
from chemeleon_jax.workers.pool import WorkerPool

ROWS = [40, 41, 40, 42, 43, 41, 44, 45, 40, 46, 47]  # of mp_mini; an odd number
REWARD = {
    "normalize_fn": "std",
    "eps": 1e-4,
    "reference_dataset": "a few",
    "components": {
        "creativity": {"weight": 1.0},
        "structure_diversity": {"weight": 1.0, "normalize_fn": "norm"},
        "custom": {"weight": 1.0, "function": "custom_rewards:ranks"},
    },
}


def state(value: float = 1.0):
    """Large enough to be cut in two."""
    return {"w": value * np.arange(2048, dtype=np.float32), "step": np.int32(3)}


def score():
    """Rewards of crystals, some of them twice, and some known."""
    dataset, vae = load_dataset("mp_mini"), tiny.vae_checkpoint()
    with WorkerPool(1, time_limit=120.0) as pool:
        reward = make_reward(
            REWARD,
            dataset=dataset.subset(np.array([40, 47, 100])),
            vae=(make_vae(vae.config["vae"]), vae.params["vae"]),
            pool=pool,
        )
        compute = jax.jit(partial(compute_rewards, group_size=len(ROWS)))
        with jax.set_mesh(make_mesh()):
            crystals = take(dataset.crystals, ROWS)
            return jax.device_get(compute(crystals, reward=reward))


def work(folder: Path) -> None:
    """What both do."""
    mesh = make_mesh(fsdp=2)
    with work_directory(folder / "run") as run, RunCheckpoints(run) as saved:
        saved.save(3, shard_params(state(), mesh), score=0.5)
        restored = saved.restore_latest(shard_params(state(0.0), mesh))
        (part,) = restored["w"].addressable_shards
        np.testing.assert_array_equal(part.data, state()["w"][part.index])
        assert part.data.shape == (1024,)
        found = score()
        np.savez(
            folder / f"rewards_{jax.process_index()}.npz",
            **vars(found) | {"components": [], "status": [], "metrics": []},
            **found.components,
        )
        with SaveOnSignal(lambda *_: None) as interruption:
            interruption.finished(1, None)
            if not distributed.is_first():  # the other one has to learn of it
                os.kill(os.getpid(), signal.SIGTERM)
                while interruption._signal is None:
                    pass
            interruption.finished(2, None)


if __name__ == "__main__":
    distributed.run(None, work, Path(sys.argv[1]))

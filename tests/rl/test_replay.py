"""Crystals that are trained on again."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from chemeleon_jax import sample_group
from chemeleon_jax.errors import UserError
from chemeleon_jax.models.optimizer import make_optimizer
from chemeleon_jax.rl.checks import check_rl
from chemeleon_jax.rl.config import GRPOConfig
from chemeleon_jax.rl.learner import init_state, train_step
from chemeleon_jax.rl.replay import Replay, Replayed, join_minibatches, load_replay
from chemeleon_jax.runs.iteration_files import CRYSTALS, save_iteration
from configs.rl_dng import get_config

KEY = jax.random.key(0)
SETTINGS = ConfigDict(
    {"crystals": 4, "iterations": 2, "share": 0.5, "per_formula": 1}, type_safe=False
)
SHAPE = (tiny.MAX_ATOMS, 4)


def iteration(number, total, advantage, unique=(True,) * 4, seed=None):
    """An iteration's arrays; latents of its crystals: 10 `number` + 0, 1, 2, 3.

    What they were asked for is minus that.
    """
    crystals = tiny.crystals((2, 3, 4, 5), seed=number if seed is None else seed)
    names = 10 * number + np.arange(4, dtype=np.float32)
    return jax.tree.map(np.asarray, vars(crystals)) | {
        "latents": np.broadcast_to(names[:, None, None], (4, *SHAPE)),
        "total": np.asarray(total, float),
        "advantage": np.asarray(advantage, np.float32),
        "valid": np.ones(4, bool),
        "unique": np.asarray(unique),
        "asked_gap": -names[:, None],
    }


def kept(*iterations, condition=None):
    replay = Replay(SHAPE, condition, **SETTINGS)
    for arrays in iterations:
        replay.add(arrays)
    return replay.draw(KEY)


def names(replayed: Replayed) -> list[int]:
    return sorted(set(replayed.latents[:, 0, 0].astype(int).tolist()))


def test_the_best_unique_of_the_last_iterations_are_kept():
    drawn = kept(
        iteration(1, [9, 9, 9, 9], [1, 1, 1, 1]),  # is forgotten
        iteration(2, [4, 3, 2, 1], [1, -1, 0.5, 0.1]),  # 20, 22: half of four
        iteration(3, [4, 3, 2, 1], [3, 0.5, -1, 0.2], [False, True, True, True]),
    )
    assert names(drawn) == [20, 22, 31, 33]
    by_name = dict(zip(drawn.latents[:, 0, 0], drawn.advantage, strict=True))
    assert by_name == pytest.approx({20: 1.0, 22: 0.5, 31: 0.5, 33: 0.2})
    atoms = dict(zip(drawn.latents[:, 0, 0], drawn.mask.sum(1), strict=True))
    assert atoms == {20: 2, 22: 4, 31: 3, 33: 5}


def test_of_one_formula_the_best_few_are_kept_and_of_equal_ones_the_newest():
    same = {"advantage": [1, 1, 1, 1], "seed": 0}
    earlier = iteration(2, [5, 3, 2, 1], **same)
    assert names(kept(earlier, iteration(3, [4, 3, 2, 1], **same))) == [20, 31]


def test_before_there_are_any_rows_fill_that_count_for_nothing():
    drawn = kept(condition={"gap": np.ones((2, 1))})
    assert drawn.latents.shape == (4, *SHAPE) and not drawn.advantage.any()
    assert drawn.condition["gap"].shape == (4, 1) and kept().condition is None


def test_a_run_that_continues_has_kept_the_same(tmp_path):
    history = [iteration(i, [4, 3, 2, 1], [1, -1, 0.5, 0.1]) for i in range(3)]
    for i, arrays in enumerate(history):
        saved = arrays | {"components": {}, "novel": None, "e_above_hull": None}
        crystals = {name: arrays[name] for name in CRYSTALS}
        more = {name: arrays[name] for name in ("latents", "asked_gap")}
        save_iteration(tmp_path, i, crystals, saved, **more)
    load = partial(load_replay, tmp_path, SETTINGS, 3, shape=SHAPE)
    for condition in (None, {"gap": jnp.zeros((1, 1))}):
        found = load(condition=condition).draw(KEY)
        expected = kept(*history, condition=condition)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert (
        names(found) and (found.condition["gap"][:, 0] == -found.latents[:, 0, 0]).all()
    )
    (tmp_path / "crystals" / "iteration_000002.npz").unlink()
    with pytest.raises(UserError, match="iteration_000002.*replay.crystals = 4"):
        load(condition=None)


def test_each_minibatch_gets_its_share():
    joined = join_minibatches(jnp.arange(4), 10 + jnp.arange(2), 2)
    assert joined.tolist() == [0, 1, 10, 2, 3, 11]


def test_a_replayed_crystal_is_trained_on_like_any_other():
    """With noise of its own, and not at all without an advantage."""
    sampler, policy = tiny.sampler(4)
    rollout = jax.jit(partial(sample_group, record=False), static_argnames="group_size")
    _, trajectory = rollout(
        policy, KEY, jnp.array([3, 5]), sampler=sampler, group_size=2
    )
    optimizer = make_optimizer(1e-3)
    config = GRPOConfig(objective="awm", kl_weight=0.0)
    step = jax.jit(partial(train_step, config=config, optimizer=optimizer))

    def gradient(advantage, weight):
        rows = trajectory.latents, trajectory.mask, jnp.full(4, weight)
        replayed = Replayed(*rows, jnp.arange(4)), jax.random.key(1)
        _, metrics = step(
            init_state(policy, optimizer),
            trajectory,
            advantage,
            sampler=sampler,
            reference_params=policy,
            replayed=replayed,
        )
        return metrics

    assert gradient(jnp.zeros(4), 0.0)["grad_norm"] == 0.0
    assert gradient(jnp.zeros(4), 1.0)["grad_norm"] > 1e-3
    # The same crystals once more, but not the same copies of them.
    once, twice = (gradient(jnp.ones(4), x)["grad_norm"] for x in (0.0, 1.0))
    assert abs(twice / once - 2) > 1e-3


def test_what_does_not_fit_is_refused():
    config = get_config()
    config.rl.replay.crystals = 32
    with pytest.raises(UserError, match="replay.crystals = 32.*trajectories"):
        check_rl(config, 1)
    config.rl.objective = "nft"
    check_rl(config, 1)
    config.rl.replay.crystals = 33
    with pytest.raises(UserError, match="replay.crystals = 33.*multiple"):
        check_rl(config, 1)

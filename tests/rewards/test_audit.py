"""A judge that the reward does not ask."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crystal_sets import salt
from ml_collections import ConfigDict

from chemeleon_jax.data.crystals import from_structures
from chemeleon_jax.data.dataset import load_dataset
from chemeleon_jax.devices.sharding import make_mesh
from chemeleon_jax.potentials import loading
from chemeleon_jax.potentials.hull import Hull, composition_counts
from chemeleon_jax.potentials.types import Potential
from chemeleon_jax.rewards import compute_rewards, judges, make_reward
from chemeleon_jax.rewards.audit import Audit, compare, spearman

# Caesium chloride at its best by the reward, and stretched; the bromide; no crystal.
BATCH = from_structures([salt("Cl", a) for a in (4.0, 4.2)] + [salt("Br", 4.0)] * 2, 4)
BATCH.frac_coords[3] = 0.0


def springs(best):
    """2 eV/Å^2 for what each length of a cell is off `best`; eV/atom."""

    def energies(crystals):
        energy = 2 * ((crystals.lengths - best) ** 2).sum(-1)
        return energy, jnp.zeros(len(energy), jnp.int32)

    return energies


def bromide(crystals):
    """Chlorides are on the hull, bromides 0.5 eV/atom above it."""
    energy = 0.5 * (crystals.atom_types == 35).any(1).astype(jnp.float32)
    return energy, jnp.zeros(len(energy), jnp.int32)


@pytest.fixture
def make(monkeypatch, pool):
    """Makes a reward by springs at 4 Å, and the audit of it that a config asks for."""
    for name, energies in {
        "springs": springs(4.0),
        "wide": springs(4.2),
        "bromide": bromide,
    }.items():
        potential = Potential(name, name, energies)
        monkeypatch.setitem(loading.LOADERS, name, lambda *_, p=potential: p)
    hull = Hull(composition_counts([[17], [35], [55]]), [0.0] * 3)
    monkeypatch.setattr(judges, "load_hull", lambda *_: hull)

    def make(relaxed_reward=0, limit=0.15, **judge):
        energy = {"weight": 1.0, "potentials": "springs", "relax_steps": relaxed_reward}
        defaults = {"potential": "", "relax_steps": 0, "relax_with": ""}
        settings = {"normalize_fn": "none", "eps": 1e-4, "reference_dataset": "mp_mini"}
        config = ConfigDict(
            {
                "judge": defaults | {"max_gap": None} | judge,
                "alarms": {"judge_gap": limit},
                "validation_samples": len(BATCH.mask),
                "validate_every": 1,
                "reward": settings | {"components": {"energy": energy}},
            }
        )
        known = load_dataset("mp_mini").subset(np.arange(3))
        reward = make_reward(config.reward, dataset=known, pool=pool)
        found = jax.jit(compute_rewards, static_argnames=("group_size",))(
            BATCH, reward=reward, group_size=4
        )
        return Audit(config, reward, make_mesh(), "runs/x"), jax.device_get(found)

    return make


def opinion(above, metastable=0.0, msun=0.0):
    above = np.asarray(above, np.float32)
    metrics = {"metastable": metastable, "msun": msun}
    return SimpleNamespace(e_above_hull=above, valid=above < 9, metrics=metrics)


def test_the_gap_and_the_order_by_hand():
    """Metastable: 2 of 5 by the reward, 3 of 5 by the judge. Ranks 123 and 132."""
    reward = opinion([0.0, 0.05, 0.2, np.nan, 0.4])
    judge = opinion([0.05, 0.3, 0.1, 0.0, np.nan], metastable=0.6, msun=0.2)
    found = compare(reward, judge)
    assert found["metastable"] == 0.6 and found["msun"] == 0.2
    assert found["gap"] == pytest.approx(0.4 - 0.6)
    # 1 - 6 (0 + 1 + 1) / (3 (9 - 1))
    assert found["rank_correlation"] == pytest.approx(0.5)


def test_a_reward_without_energies_has_no_gap():
    reward = SimpleNamespace(e_above_hull=None, valid=np.ones(2, bool))
    found = compare(reward, opinion([0.05, 0.3], metastable=0.5))
    assert found["metastable"] == 0.5
    assert np.isnan([found["gap"], found["rank_correlation"]]).all()


@pytest.mark.parametrize(
    ("x", "y"),
    [([], []), ([1.0], [2.0]), ([1.0, 1.0], [1.0, 2.0]), ([np.nan, 1], [1, np.nan])],
)
def test_no_order_of_too_few(x, y):
    assert np.isnan(spearman(np.array(x), np.array(y)))


def test_without_a_judge_the_reward_decides(make):
    audit, rewards = make()
    verdict = audit.score(0, BATCH, rewards)
    assert verdict.score == pytest.approx(float(rewards.metrics["reward"]))
    assert verdict.metrics == {} and verdict.fooled == ""


def test_the_judge_sees_what_the_reward_does_not(make):
    """Springs: 0, 0.24 and 0 above the hull; the judge: 0, 0 and 0.5."""
    audit, rewards = make(potential="bromide")
    found = audit.start(lambda: (BATCH, rewards))
    assert found is not None
    assert found["metastable"] == 0.5 and found["gap"] == 0.0
    # Both chlorides match each other: one of four is unique, novel and metastable.
    assert found["msun"] == 0.25
    assert found["rank_correlation"] == pytest.approx(-0.5)


def test_the_judge_sees_the_crystals_as_they_relax(make):
    """2 * 3 * 0.2^2 = 0.24 above the hull at 4 Å, where the reward has put them."""
    start = {}
    for steps, own in ((0, 0), (40, 0), (40, 40)):
        audit, rewards = make(relaxed_reward=steps, potential="wide", relax_steps=own)
        start[steps, own] = audit.start(lambda r=rewards: (BATCH, r))
    assert start[0, 0]["metastable"] == 0.25  # the stretched one
    assert start[40, 0]["metastable"] == 0.0
    assert start[40, 0]["gap"] == pytest.approx(0.75)
    assert start[40, 40]["metastable"] == 0.75


def test_a_gap_that_widens_is_an_alarm_and_then_the_end(make, caplog):
    audit, rewards = make(potential="bromide", max_gap=0.3)
    audit.start(lambda: (BATCH, rewards))
    same = audit.score(4, BATCH, rewards)
    assert same.metrics["val/alarm/judge_gap"] == 0 and same.fooled == ""
    assert same.score == 0.25 and same.metrics["val/judge/gap"] == 0.0
    # One bromide more, which the reward takes for stable.
    for more, above in ((0.25, [0, 0, 0, 1]), (0.5, [0, 0, 0, 0])):
        fooled = rewards.replace(e_above_hull=np.array(above, np.float32))
        verdict = audit.score(9, BATCH, fooled)
        assert verdict.metrics["val/judge/gap"] == pytest.approx(more)
        assert verdict.metrics["val/alarm/judge_gap"] == 1
        assert bool(verdict.fooled) == (more > 0.3)
    shares = (
        "of the last 4 crystals 75.0% are metastable by the reward and 50.0% by "
        "bromide; of the original model's 50.0% are metastable by the reward and "
        "50.0% by bromide"
    )
    assert caplog.messages == [
        f"iteration 10: judge_gap is 0.25, above its alarm at 0.15: {shares}"
    ]
    assert "widened by 0.5, more than config.judge.max_gap = 0.3" in verdict.fooled
    assert "runs/x@best the one that the judge likes best" in verdict.fooled

"""compute_rewards: what must not change a crystal's reward, and what cannot stop it."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import SLOW
from pymatgen.core import Lattice, Structure
from small_reward import (
    BATCH,
    COMPONENTS,
    PURE,
    assert_same,
    build,
    check_finite,
    random_crystals,
    score,
)

from chemeleon_jax.data.crystals import VALIDITY_REASONS, from_structures, take
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.potentials.hull import Hull
from chemeleon_jax.rewards import compute_rewards
from chemeleon_jax.workers.pool import WorkerPool

seeds = st.integers(0, 2**32 - 1)


@SLOW
@given(seeds)
def test_padding_changes_nothing(reward, seed):
    batch = random_crystals(16, seed)
    extra = [(0, 0), (0, 5)]
    padded = CrystalBatch(
        np.pad(batch.atom_types, extra),
        np.pad(batch.frac_coords, [*extra, (0, 0)], constant_values=0.3),
        batch.lengths,
        batch.angles,
        np.pad(batch.mask, extra),
    )
    narrow = score(batch, reward=reward, group_size=4)
    wide = score(padded, reward=reward, group_size=4)
    assert_same(wide, narrow, atol=1e-4)


@pytest.fixture(scope="module")
def blind_reward(pool):
    """The components that are not told the index of an atom, as the VAE is."""
    names = ("creativity", "energy", "composition_diversity", "custom")
    return build(pool, {name: COMPONENTS[name] for name in names})


@SLOW
@given(seeds)
def test_the_order_of_atoms_and_the_origin_change_nothing_but_the_models(
    blind_reward, seed
):
    batch = random_crystals(16, seed)
    moved = jax.tree.map(np.copy, batch)
    rng = np.random.default_rng(seed)
    for i, n in enumerate(batch.mask.sum(-1)):
        order = rng.permutation(n)
        moved.atom_types[i, :n] = batch.atom_types[i, order]
        moved.frac_coords[i, :n] = batch.frac_coords[i, order] + rng.random(3)
    before = score(batch, reward=blind_reward, group_size=4)
    after = score(moved, reward=blind_reward, group_size=4)
    assert_same(after, before, atol=1e-4)


@SLOW
@given(seeds)
def test_each_crystal_keeps_its_values_in_any_order(reward, seed):
    """Of one formula, the first of its kind is unique: here none is there twice."""
    batch = jax.tree.map(np.copy, random_crystals(16, seed))
    batch.atom_types[:, 0] = 30 + np.arange(16)
    order = np.random.default_rng(seed).permutation(16)
    before = score(batch, reward=reward, group_size=16)
    after = score(take(batch, order), reward=reward, group_size=16)
    for field in ("components", "status", "valid", "unique", "novel", "e_above_hull"):
        one, other = getattr(before, field), getattr(after, field)
        assert_same(jax.tree.map(lambda x: x[order], one), other, atol=1e-5)
    np.testing.assert_allclose(after.total, before.total[order], atol=1e-3)


def test_the_number_of_workers_changes_nothing(reward):
    with WorkerPool(1) as single:
        one = score(BATCH, reward=build(single), group_size=4)
    two = score(BATCH, reward=reward, group_size=4)
    assert_same(one, two, rtol=0)


def degenerate_crystals():
    """One hopeless crystal per row; what makes it so is in the name."""
    names = (
        ["fine", "overlapping", "one atom", "flat", "huge", "NaN", "infinite cell"]
        + ["zero cell", "impossible angles", "no atom", "unknown element"]
        + ["identical", "negative", "far outside", "dense", "sparse"]
    )
    crystals = jax.tree.map(np.copy, random_crystals(len(names), seed=1, width=20))
    at = {name: i for i, name in enumerate(names)}
    types, frac, lengths, angles, mask = vars(crystals).values()
    frac[at["overlapping"]] = 0
    mask[at["one atom"], 1:] = False
    angles[at["flat"]] = [30, 60, 90]
    lengths[at["huge"]] = 1e6
    frac[at["NaN"], 0, 0] = np.nan
    lengths[at["infinite cell"], 0] = np.inf
    lengths[at["zero cell"]] = 0
    angles[at["impossible angles"]] = [10, 10, 170]
    mask[at["no atom"]] = False
    types[at["unknown element"], 0] = 118
    for name in ("overlapping", "identical"):
        types[at[name]], mask[at[name]] = 26, True
    frac[at["identical"]] = 0.5
    lengths[at["negative"]] = -5
    frac[at["far outside"]] += 1e5
    lengths[at["dense"]] = 0.3
    lengths[at["sparse"]] = 200
    return crystals.replace(atom_types=np.where(mask, types, 0)), at


def test_degenerate_crystals_go_through_every_component(reward):
    crystals, at = degenerate_crystals()
    output = score(crystals, reward=reward, group_size=4)
    check_finite(output)
    assert output.valid[at["fine"]] and output.valid[at["one atom"]]
    assert output.valid.sum() <= 4
    assert not (~output.valid & (output.unique | output.novel)).any()
    counted = [output.metrics[f"invalid/{reason}"] for reason in VALIDITY_REASONS[1:]]
    assert sum(counted) == (~output.valid).sum()
    for name, values in output.components.items():
        assert values[~output.valid].max() <= values[output.valid].min(), name


def test_a_batch_without_a_valid_crystal(reward):
    crystals = BATCH.replace(lengths=np.full_like(BATCH.lengths, np.nan))
    output = score(crystals, reward=reward, group_size=4)
    check_finite(output)
    assert not output.valid.any()
    np.testing.assert_array_equal(output.advantage, np.zeros(16))


def test_invalid_crystals_change_no_other(reward):
    """Bad rows between the good: each component keeps its values."""
    crystals, at = degenerate_crystals()
    bad = take(crystals, np.array([at["NaN"], at["overlapping"], at["flat"]]))
    wide = random_crystals(16, seed=0, width=20)
    mixed = jax.tree.map(lambda a, b: np.concatenate([a[:8], b, a[8:]]), wide, bad)
    rows = np.r_[0:8, 11:19]
    alone = score(wide, reward=reward, group_size=16)
    among = score(mixed, reward=reward, group_size=19)
    for name, values in alone.components.items():
        np.testing.assert_allclose(
            among.components[name][rows], values, atol=1e-5, err_msg=name
        )


def test_a_fault_of_a_component_is_not_the_end(reward, pool, caplog):
    reward = build(pool, {"energy": COMPONENTS["energy"]})

    class Broken(Hull):
        def e_above_hull(self, atom_types, energies):
            raise RuntimeError("no hull today")

    object.__setattr__(reward.context, "hulls", {"stub": Broken(PURE, [0.0] * 5)})
    output = score(BATCH, reward=reward, group_size=4)
    check_finite(output)
    assert output.metrics["failures/energy/raised"] == 16
    assert (output.components["energy"] == -1).all()
    assert "no hull today" in caplog.text


def test_workers_that_end_cost_their_crystal_only():
    """And each is counted by its reason."""
    sizes = [4, 1, 2, 3, 5, 1]
    places = np.mgrid[:2, :2, :2].reshape(3, -1).T / 2
    lattice = Lattice.cubic(6)
    crystals = from_structures(
        [Structure(lattice, ["Fe"] * n, places[:n]) for n in sizes]
    )
    custom = {"weight": 1.0, "function": "custom_rewards:misbehaves_by_size"}
    with WorkerPool(2, time_limit=10.0, memory_limit=2.0) as pool:
        reward = build(pool, {"custom": custom})
        output = compute_rewards(crystals, reward=reward, group_size=6)
    check_finite(output)
    assert output.valid.all()
    # The lowest of the batch for those without a value.
    assert output.components["custom"].tolist() == [4, 4, 4, 4, 5, 4]
    counted = {
        tag.removeprefix("failures/custom/"): int(count)
        for tag, count in output.metrics.items()
        if tag.startswith("failures/custom/") and count
    }
    assert counted == {"died": 3, "out_of_memory": 1}
    assert output.metrics["custom"] == 4.5

"""compute_rewards: what each component gives, and how they add up."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from pymatgen.core import Lattice, Structure
from small_reward import (
    BATCH,
    COMPONENTS,
    KNOWN,
    PURE,
    assert_same,
    build,
    models,
    random_crystals,
    score,
)

from chemeleon_jax.data.crystals import from_structures, take
from chemeleon_jax.errors import UserError
from chemeleon_jax.potentials.hull import Hull, composition_counts, save_hull
from chemeleon_jax.potentials.types import Potential
from chemeleon_jax.rewards import compute_rewards, make_reward
from chemeleon_jax.rewards.diversity import diversity, kernel_mean
from chemeleon_jax.rewards.features import encode_references, mean_latent
from chemeleon_jax.rewards.predictor import property_reward
from chemeleon_jax.rewards.recent import RecentCrystals
from chemeleon_jax.rewards.stability import EnergyStatus


def test_total_and_advantage(reward):
    output = score(BATCH, reward=reward, group_size=4)
    norm = lambda x: (x - x.min()) / (x.max() - x.min() + 1e-4)  # noqa: E731
    parts = {k: np.asarray(v, np.float64) for k, v in output.components.items()}
    total = (
        parts["creativity"]
        + norm(parts["energy"])
        + 0.1
        * norm(parts["structure_diversity"])
        * (np.ptp(parts["structure_diversity"]) >= 1e-4)
        + norm(parts["composition_diversity"])
        * (np.ptp(parts["composition_diversity"]) >= 1e-4)
        + 0.3 * parts["element_kl"]
        + parts["predictor"]
        + 0.5 * parts["custom"]
    )
    np.testing.assert_allclose(output.total, total, atol=1e-5)
    groups = total.reshape(4, 4)
    deviation = groups - groups.mean(1, keepdims=True)
    advantage = deviation / (groups.std(1, ddof=1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(output.advantage, advantage.ravel(), atol=1e-4)
    weights = {k: c["weight"] for k, c in COMPONENTS.items()}
    raw = sum(weights[k] * parts[k] for k in parts)
    np.testing.assert_allclose(output.raw, raw, atol=1e-5)
    for name in ("creativity", "energy", "element_kl", "predictor", "custom"):
        assert output.metrics[name] == pytest.approx(parts[name].mean(), abs=1e-6)
    # What crystals contribute adds up to nothing: the batch's own number is logged.
    vae, params = models()["vae"]
    latent = mean_latent(vae, params, BATCH)
    kernel = kernel_mean(encode_references(vae, params, KNOWN))
    _, _, likeness = diversity(latent, np.asarray(output.valid), kernel)
    assert output.metrics["structure_diversity"] == pytest.approx(likeness, rel=1e-5)
    assert abs(parts["structure_diversity"].mean()) < 1e-6 < abs(likeness)


def test_components_normalised_within_their_group(reward):
    """GDPO: the best of each group counts 1, however narrow the group's range is."""
    grouped = jax.jit(partial(compute_rewards, group_size=4, component_group_size=4))
    output = grouped(BATCH, reward=reward)
    total = np.zeros((4, 4))
    for name, fields in COMPONENTS.items():
        values = np.asarray(output.components[name], np.float64).reshape(4, 4)
        if fields.get("normalize_fn") == "norm":
            low, high = values.min(1, keepdims=True), values.max(1, keepdims=True)
            spread = high - low >= 1e-4
            values = np.where(spread, (values - low) / (high - low + 1e-4), 0.0)
        total += fields["weight"] * values
    np.testing.assert_allclose(output.total, total.ravel(), atol=1e-5)
    together = score(BATCH, reward=reward, group_size=4)
    assert not np.allclose(output.total, together.total, atol=1e-3)


def test_jit_or_not_argument_or_closed_over(reward):
    before = score._cache_size()
    jitted = score(BATCH, reward=reward, group_size=4)
    score(random_crystals(16, seed=5), reward=reward, group_size=4)
    assert score._cache_size() - before <= 1
    eager = compute_rewards(BATCH, reward=reward, group_size=4)
    assert_same(jitted, eager, atol=1e-5)
    closed = jax.jit(partial(compute_rewards, reward=reward, group_size=4))
    assert_same(closed(BATCH), eager, atol=1e-5)


def test_energy_above_hull_and_what_has_none(reward):
    output = score(BATCH, reward=reward, group_size=16)
    lithium = (BATCH.atom_types == 3).any(-1)
    iron = (BATCH.atom_types == 26).any(-1) & ~lithium
    expected = np.where(lithium | iron, np.nan, 1.5 - BATCH.mask.sum(-1))
    np.testing.assert_allclose(output.e_above_hull, expected)
    clipped = -np.clip(np.nan_to_num(expected, nan=1.0), 0, 1)
    np.testing.assert_allclose(output.components["energy"], clipped)
    reasons = np.array([s.name.lower() for s in EnergyStatus])[output.status["energy"]]
    assert set(reasons[lithium]) == {"failed"} and set(reasons[iron]) == {"no_hull"}
    assert output.metrics["failures/energy/failed"] == lithium.sum()
    assert output.metrics["failures/energy/no_hull"] == iron.sum()
    metastable = expected <= 0.1
    assert output.metrics["metastable"] == pytest.approx(metastable.mean())
    msun = metastable & np.asarray(output.unique & output.novel)
    assert 0 < msun.sum() < 16
    assert output.metrics["msun"] == pytest.approx(msun.mean())


def test_guards_set_the_easy_ways_to_a_low_energy_aside(pool, tmp_path):
    """Na-O has one compound on record, Li-O-Na so two; Na-Fe none."""
    oxides = np.array([[11, 8, 0, 0], [3, 3, 3, 8]])
    entries = np.concatenate([PURE, composition_counts(oxides)])
    save_hull(tmp_path / "hull.npz", Hull(entries, [0.0] * 5 + [-1.0] * 2))
    systems = [[11], [11, 11], [11, 26], [11, 8], [11, 8, 3], [8, 3, 3, 11]]
    places = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0, 0], [0, 0.5, 0]]
    crystals = from_structures(
        [Structure(Lattice.cubic(5), types, places[: len(types)]) for types in systems]
    )
    energies = lambda x: (jnp.zeros(len(x.mask)), jnp.zeros(len(x.mask), int))  # noqa: E731
    guards = {"energy": {"weight": 1.0, "clip_max": 3.0}}
    guards["creativity"] = {"weight": 1.0}

    def judged():
        reward = make_reward(
            {
                "normalize_fn": "std",
                "eps": 1e-4,
                "components": guards,
                "hull_file": str(tmp_path / "hull.npz"),
            },
            dataset=KNOWN,
            potential=Potential("zero", "zero", energies),
            pool=pool,
        )
        return compute_rewards(crystals, reward=reward, group_size=6)

    free = judged()
    assert (free.components["energy"] > -3).all()
    assert free.components["creativity"][2:].tolist() == [1.0] * 4
    guards["energy"] |= {"min_elements": 2, "min_hull_entries": 1}
    guards["creativity"] |= {"min_elements": 2}
    guarded = judged()
    reasons = np.array([s.name.lower() for s in EnergyStatus])[
        guarded.status["energy"]
    ].tolist()
    assert reasons == ["few_elements"] * 2 + ["few_hull_entries"] + ["ok"] * 3
    assert guarded.components["energy"][:3].tolist() == [-3.0] * 3
    np.testing.assert_array_equal(
        guarded.components["energy"][3:], free.components["energy"][3:]
    )
    assert guarded.components["creativity"].tolist() == [0.0] * 2 + [1.0] * 4
    assert guarded.metrics["failures/creativity/few_elements"] == 2
    assert guarded.metrics["failures/energy/few_hull_entries"] == 1
    np.testing.assert_array_equal(guarded.e_above_hull, free.e_above_hull)
    guards["energy"] |= {"min_hull_entries": 2}
    assert judged().metrics["failures/energy/few_hull_entries"] == 2
    guards["energy"] |= {"min_hull_entries": 3}
    assert judged().metrics["failures/energy/few_hull_entries"] == 4
    above = np.sort(free.e_above_hull)
    guards["energy"] = dict(guards["energy"], min_elements=1, min_hull_entries=0)
    assert above[2] == 0.0 < above[3]
    guards["energy"] |= {"min_e_above_hull": float(above[3]) / 2}
    deep = judged()
    reasons = np.array([s.name.lower() for s in EnergyStatus])[deep.status["energy"]]
    assert (reasons == "far_below_hull").sum() == 3
    assert (deep.components["energy"][reasons != "ok"] == -3.0).all()
    assert deep.metrics["failures/energy/far_below_hull"] == 3
    # Na+ Li+ O2- is balanced, Na+ Li+ Li+ O2- is not; Na and NaFe are metals.
    guards["energy"] |= {"min_e_above_hull": None, "charge_balanced": True}
    balanced = judged()
    reasons = np.array([s.name.lower() for s in EnergyStatus])[
        balanced.status["energy"]
    ]
    assert reasons[[0, 1, 2, 4, 5]].tolist() == ["ok"] * 4 + ["unbalanced"]
    assert balanced.components["energy"][5] == -3.0
    # One element is all of the first two, half of the third, fourth and sixth.
    guards["energy"] |= {"charge_balanced": False, "max_fraction": 0.5}
    diluted = judged().status["energy"] == EnergyStatus.DILUTED
    assert diluted.tolist() == [True] * 2 + [False] * 4
    guards["energy"] |= {"max_fraction": 0.4}
    assert judged().metrics["failures/energy/diluted"] == 5


def test_what_is_not_new_earns_nothing_by_its_stability(pool):
    has_energy = ~np.isin(BATCH.atom_types, [3, 26]).any(-1)
    repeated, *met = np.flatnonzero(has_energy)[:3]
    (known,) = np.flatnonzero(~np.isin(KNOWN.crystals.atom_types, [3, 26]).any(-1))[:1]
    crystals = jax.tree.map(
        lambda *x: np.concatenate(x),
        take(BATCH, [*range(16), repeated]),
        take(KNOWN.crystals, [known]),
    )
    recent = RecentCrystals(1, batch_size=2, max_atoms=6)
    recent.add(take(BATCH, met))
    seen = partial(score, group_size=18, recent=recent.crystals)
    energy = {"weight": 1.0, "clip_max": 30.0}
    free, gated = (
        seen(crystals, reward=build(pool, {"energy": energy | {"new_only": new_only}}))
        for new_only in (False, True)
    )
    ok = np.asarray(free.status["energy"]) == EnergyStatus.OK
    not_new = np.asarray(gated.status["energy"]) == EnergyStatus.NOT_NEW
    old = ~np.asarray(free.unique & free.novel)
    old[met] = True
    assert ok[[repeated, *met, 16, 17]].all() and old[[16, 17]].all()
    assert not old[repeated]
    np.testing.assert_array_equal(not_new, old & ok)
    np.testing.assert_array_equal(
        gated.components["energy"],
        np.where(not_new, -30.0, free.components["energy"]),
    )
    np.testing.assert_array_equal(free.e_above_hull, gated.e_above_hull)


def test_energies_on_request_only(pool):
    reward = build(pool, {"custom": COMPONENTS["custom"]})
    output = score(BATCH, reward=reward, group_size=4)
    assert output.e_above_hull is None and "msun" not in output.metrics
    asked = score(BATCH, reward=reward, group_size=4, with_energies=True)
    assert "msun" in asked.metrics
    np.testing.assert_array_equal(asked.total, output.total)


def test_components_alone_are_those_in_company(reward, pool):
    together = score(BATCH, reward=reward, group_size=4)
    for name, fields in COMPONENTS.items():
        alone = build(pool, {name: fields})
        output = score(BATCH, reward=alone, group_size=4)
        np.testing.assert_allclose(
            output.components[name], together.components[name], atol=1e-6
        )


def test_features_of_references_are_those_of_crystals():
    features = encode_references(*models()["vae"], KNOWN)
    assert features.shape == (30, 4)
    direct = mean_latent(*models()["vae"], take(KNOWN.crystals, np.arange(5)))
    np.testing.assert_allclose(features[:5], direct, atol=1e-5)


def test_property_reward():
    predicted, valid = np.array([-1.0, 2.0, 7.0, np.nan, 2.0]), np.arange(5) < 4
    values, status = property_reward(
        predicted, valid, target=3.0, clip_min=0.0, clip_max=6.0
    )
    assert values.tolist() == [-9, -1, -9, 0, 0] and status.tolist() == [0, 0, 0, 5, 1]
    values, _ = property_reward(predicted, valid, clip_min=0.0)
    assert values.tolist() == [0, 2, 7, 0, 0]


def test_config_dict_and_further_custom_rewards(pool):
    custom = {"weight": 1.0, "function": "custom_rewards:num_sites"}
    zero = {"weight": 0.0, "function": ""}
    config = ConfigDict({"packing": custom, "custom": zero}).to_dict()
    reward = build(pool, ConfigDict(config))
    output = score(BATCH, reward=reward, group_size=4)
    assert list(output.components) == ["packing"]
    np.testing.assert_array_equal(output.components["packing"], BATCH.mask.sum(-1))


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ({"creativty": {"weight": 1.0}}, "'creativty'; the nearest is 'creativity'"),
        ({"energy": {"weight": 1.0, "wieght": 2}}, "'wieght'; the nearest is 'weight'"),
        (
            {"energy": {"weight": 1.0, "normalize_fn": "nrom"}},
            "energy.normalize_fn.*nearest is 'norm'",
        ),
        (
            {"predictor": {"weight": 1.0, "property": "gap"}},
            "'gap': the predictor knows band_gap, density",
        ),
    ],
)
def test_typing_errors(components, message, pool):
    with pytest.raises(UserError, match=message):
        build(pool, components)

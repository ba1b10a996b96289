"""compute_rewards: what holds for every component, and for a whole batch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict
from properties import SLOW
from pymatgen.core import Lattice, Structure

from chemeleon_jax.crystals import VALIDITY_REASONS, from_structures, take
from chemeleon_jax.data import Dataset
from chemeleon_jax.errors import UserError
from chemeleon_jax.models.predictor import Predictor
from chemeleon_jax.models.vae import make_vae
from chemeleon_jax.potentials import FAILED, Potential
from chemeleon_jax.potentials.hull import Hull, composition_counts
from chemeleon_jax.rewards import compute_rewards, make_reward
from chemeleon_jax.rewards.energy import REASONS
from chemeleon_jax.rewards.features import encode_references, mean_latent
from chemeleon_jax.rewards.pool import WorkerPool
from chemeleon_jax.rewards.predictor import property_reward
from chemeleon_jax.types import CrystalBatch

ELEMENTS = [3, 8, 11, 17, 26]
SIZE = {"width": 8, "layers": 1, "heads": 2, "mlp_width": 16}
VAE = make_vae({"encoder": SIZE, "decoder": SIZE, "latent_channels": 4})
PREDICTOR = Predictor(("band_gap", "density"), (1.0, 2.0), (0.5, 3.0))
DENSITY = "chemeleon_jax.rewards.custom:atomic_density"
COMPONENTS = {
    "creativity": {"weight": 1.0, "normalize_fn": "none"},
    "energy": {"weight": 1.0, "normalize_fn": "norm"},
    "structure_diversity": {"weight": 0.1, "normalize_fn": "norm"},
    "composition_diversity": {"weight": 1.0, "normalize_fn": "norm"},
    "predictor": {"weight": 1.0, "property": "density", "target": 3.0},
    "custom": {
        "weight": 0.5,
        "function": "chemeleon_jax.rewards.custom:atomic_density",
    },
}


seeds = st.integers(0, 2**32 - 1)


def random_crystals(count, seed, width=6):
    rng = np.random.default_rng(seed)
    structures = []
    for _ in range(count):
        n = int(rng.integers(1, 4))
        places = rng.permutation(np.mgrid[:2, :2, :2].reshape(3, -1).T)[:n] / 2
        lattice = Lattice.from_parameters(*rng.uniform(4, 7, 3), 90, 95, 100)
        structures.append(Structure(lattice, rng.choice(ELEMENTS, n), places))
    return from_structures(structures, width)


def make_dataset(crystals):
    count = len(crystals.mask)
    ids = np.array([f"known-{i}" for i in range(count)])
    return Dataset(crystals, {}, ids, np.zeros(count, np.int8))


def stub_energies(crystals):
    """-n eV/atom for n atoms; no energy for those with lithium."""
    energy = -crystals.mask.sum(-1).astype(jnp.float32)
    lithium = (crystals.atom_types == 3).any(-1)
    status = jnp.where(lithium, FAILED, 0)
    return jnp.where(lithium, jnp.nan, energy), status


PURE = composition_counts(np.array(ELEMENTS)[:, None])
HULL = Hull(PURE[:4], [-1.5] * 4)  # iron has no reference
KNOWN = make_dataset(random_crystals(30, seed=100))
BATCH = random_crystals(16, seed=0)


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def models():
    crystals = jax.tree.map(jnp.asarray, take(BATCH, np.arange(2)))
    noise = jnp.zeros((2, 6, 4))
    init = jax.jit(VAE.init)
    vae = init(jax.random.key(0), crystals, crystals.lattice, noise)["params"]
    features, latent = jnp.zeros((2, 6, 8)), jnp.zeros((2, 6, 4))
    init = jax.jit(PREDICTOR.init)
    predictor = init(jax.random.key(1), features, latent, crystals.mask)
    predictor = {"vae": vae, "predictor": predictor["params"]}
    return {"vae": (VAE, vae), "predictor": (VAE, PREDICTOR, predictor)}


def build(models, pool, components=None, **config):
    config = {"normalize_fn": "std", "eps": 1e-4} | config
    config["components"] = COMPONENTS if components is None else components
    return make_reward(
        config,
        dataset=KNOWN,
        potential=Potential("stub", "stub", stub_energies),
        hull=HULL,
        pool=pool,
        **models,
    )


@pytest.fixture(scope="module")
def reward(models, pool):
    return build(models, pool)


score = jax.jit(compute_rewards, static_argnames=("group_size", "with_energies"))


def check_finite(output):
    for name, values in output.components.items():
        assert np.isfinite(values).all(), name
    for array in (output.total, output.advantage, output.raw):
        assert np.isfinite(array).all()
    assert all(np.isfinite(v) for v in output.metrics.values())


def assert_same(one, other, **tolerance):
    jax.tree.map(partial(np.testing.assert_allclose, **tolerance), one, other)


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
    for name in ("creativity", "energy", "predictor", "custom"):
        assert output.metrics[name] == pytest.approx(parts[name].mean(), abs=1e-6)


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
    reasons = np.array(REASONS)[output.status["energy"]]
    assert set(reasons[lithium]) == {"failed"} and set(reasons[iron]) == {"no_hull"}
    assert output.metrics["failures/energy/failed"] == lithium.sum()
    assert output.metrics["failures/energy/no_hull"] == iron.sum()
    metastable = expected <= 0.1
    assert output.metrics["metastable"] == pytest.approx(metastable.mean())
    msun = metastable & np.asarray(output.unique & output.novel)
    assert 0 < msun.sum() < 16
    assert output.metrics["msun"] == pytest.approx(msun.mean())


def test_guards_set_elements_and_sparse_systems_aside(models, pool):
    """Na-O has one compound on record, Li-O-Na so two; Na-Fe none."""
    oxides = np.array([[11, 8, 0, 0], [3, 3, 3, 8]])
    hull = Hull(
        np.concatenate([PURE, composition_counts(oxides)]), [0.0] * 5 + [-1.0] * 2
    )
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
            {"normalize_fn": "std", "eps": 1e-4, "components": guards},
            dataset=KNOWN,
            potential=Potential("zero", "zero", energies),
            hull=hull,
            pool=pool,
        )
        return compute_rewards(crystals, reward=reward, group_size=6)

    free = judged()
    assert (free.components["energy"] > -3).all()
    assert free.components["creativity"][2:].tolist() == [1.0] * 4
    guards["energy"] |= {"min_elements": 2, "min_hull_entries": 1}
    guards["creativity"] |= {"min_elements": 2}
    guarded = judged()
    reasons = np.array(REASONS)[guarded.status["energy"]].tolist()
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


def test_energies_on_request_only(models, pool):
    reward = build(models, pool, {"custom": COMPONENTS["custom"]})
    output = score(BATCH, reward=reward, group_size=4)
    assert output.e_above_hull is None and "msun" not in output.metrics
    asked = score(BATCH, reward=reward, group_size=4, with_energies=True)
    assert "msun" in asked.metrics
    np.testing.assert_array_equal(asked.total, output.total)


def test_components_alone_are_those_in_company(reward, models, pool):
    together = score(BATCH, reward=reward, group_size=4)
    for name, fields in COMPONENTS.items():
        alone = build(models, pool, {name: fields})
        output = score(BATCH, reward=alone, group_size=4)
        np.testing.assert_allclose(
            output.components[name], together.components[name], atol=1e-6
        )


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
def blind_reward(models, pool):
    """The components that are not told the index of an atom, as the VAE is."""
    names = ("creativity", "energy", "composition_diversity", "custom")
    return build(models, pool, {name: COMPONENTS[name] for name in names})


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


def test_the_number_of_workers_changes_nothing(reward, models):
    with WorkerPool(1) as single:
        one = score(BATCH, reward=build(models, single), group_size=4)
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


def test_a_fault_of_a_component_is_not_the_end(reward, models, pool, caplog):
    reward = build(models, pool, {"energy": COMPONENTS["energy"]})

    class Broken(Hull):
        def e_above_hull(self, atom_types, energies):
            raise RuntimeError("no hull today")

    object.__setattr__(reward.context, "hull", Broken(PURE, [0.0] * 5))
    output = score(BATCH, reward=reward, group_size=4)
    check_finite(output)
    assert output.metrics["failures/energy/raised"] == 16
    assert (output.components["energy"] == -1).all()
    assert "no hull today" in caplog.text


def test_workers_that_end_cost_their_crystal_only(models):
    """And each is counted by its reason."""
    sizes = [4, 1, 2, 3, 5, 1]
    places = np.mgrid[:2, :2, :2].reshape(3, -1).T / 2
    lattice = Lattice.cubic(6)
    crystals = from_structures(
        [Structure(lattice, ["Fe"] * n, places[:n]) for n in sizes]
    )
    custom = {"weight": 1.0, "function": "custom_rewards:misbehaves_by_size"}
    with WorkerPool(2, time_limit=10.0, memory_limit=2.0) as pool:
        reward = build(models, pool, {"custom": custom})
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


def test_features_of_references_are_those_of_crystals(models):
    features = encode_references(*models["vae"], KNOWN.crystals)
    assert features.shape == (30, 4)
    direct = mean_latent(*models["vae"], take(KNOWN.crystals, np.arange(5)))
    np.testing.assert_allclose(features[:5], direct, atol=1e-5)


def test_property_reward():
    predicted, valid = np.array([-1.0, 2.0, 7.0, np.nan, 2.0]), np.arange(5) < 4
    values, status = property_reward(
        predicted, valid, target=3.0, clip_min=0.0, clip_max=6.0
    )
    assert values.tolist() == [-9, -1, -9, 0, 0] and status.tolist() == [0, 0, 0, 5, 1]
    values, _ = property_reward(predicted, valid, clip_min=0.0)
    assert values.tolist() == [0, 2, 7, 0, 0]


def test_config_dict_and_further_custom_rewards(models, pool):
    custom = {"weight": 1.0, "function": "custom_rewards:num_sites"}
    zero = {"weight": 0.0, "function": ""}
    config = ConfigDict({"packing": custom, "custom": zero}).to_dict()
    reward = build(models, pool, ConfigDict(config))
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
def test_typing_errors(components, message, models, pool):
    with pytest.raises(UserError, match=message):
        build(models, pool, components)

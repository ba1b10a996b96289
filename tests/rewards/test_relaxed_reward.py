"""Rewards of relaxed crystals, and of several potentials."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crystal_sets import salt

from chemeleon_jax.data.crystals import from_structures, take
from chemeleon_jax.data.dataset import load_dataset
from chemeleon_jax.devices.sharding import make_mesh
from chemeleon_jax.errors import UserError
from chemeleon_jax.potentials import loading
from chemeleon_jax.potentials.hull import Hull, composition_counts
from chemeleon_jax.potentials.types import Potential, Status
from chemeleon_jax.rewards import compute_rewards, judges, make_reward
from chemeleon_jax.rewards.judges import split_names
from chemeleon_jax.rewards.recent import RecentCrystals, load_recent
from chemeleon_jax.rewards.stability import EnergyStatus, combine_opinions
from chemeleon_jax.runs.iteration_files import save_iteration
from chemeleon_jax.workers import outcome

# Caesium chloride twice, stretched; the bromide; and one whose atoms coincide.
BATCH = from_structures([salt("Cl", 4.4), salt("Cl", 4.0), salt("Br", 4.3)], 4)
BATCH = take(BATCH, [0, 1, 2, 2])
BATCH.frac_coords[3] = 0.0
BEST = 4.2  # Å, of the cubic cell of every crystal
score = jax.jit(partial(compute_rewards, group_size=4, with_energies=True))


def springs(crystals):
    """2 eV/Å^2 for what each length of a cell is off `BEST`; eV/atom."""
    energy = 2 * ((crystals.lengths - BEST) ** 2).sum(-1)
    return energy, jnp.zeros(len(energy), jnp.int32)


def bromide(crystals):
    """0.5 eV/atom for what has bromine, 0 else."""
    energy = 0.5 * (crystals.atom_types == 35).any(1).astype(jnp.float32)
    return energy, jnp.full(len(energy), Status.OK, jnp.int32)


@pytest.fixture
def make(monkeypatch, pool):
    """Makes a reward of the energy above a hull of elements at 0, by springs first."""
    for name, energies in {"springs": springs, "bromide": bromide}.items():
        potential = Potential(name, name, energies)
        monkeypatch.setitem(loading.LOADERS, name, lambda *_, p=potential: p)
    hull = Hull(composition_counts([[17], [35], [55]]), [0.0] * 3)
    monkeypatch.setattr(judges, "load_hull", lambda *_: hull)

    def make(relaxed=False, components=None, **energy):
        energy = {"weight": 1.0, "potentials": "springs", "clip_max": 9.0} | energy
        return make_reward(
            {
                "normalize_fn": "none",
                "eps": 1e-4,
                "relaxed": relaxed,
                "components": {"energy": energy} | (components or {}),
            },
            dataset=load_dataset("mp_mini").subset(np.arange(3)),
            pool=pool,
        )

    return make


def test_crystals_are_judged_as_they_relax(make):
    still = score(BATCH, reward=make())
    np.testing.assert_allclose(still.e_above_hull[:3], [0.24, 0.24, 0.06], atol=1e-4)
    assert still.relaxed is None and still.rmsd is None
    moved = score(BATCH, reward=make(relax_steps=40))
    np.testing.assert_allclose(moved.e_above_hull[:3], 0.0, atol=2e-3)
    np.testing.assert_allclose(moved.relaxed.lengths[:3], BEST, atol=0.03)
    np.testing.assert_allclose(moved.rmsd[:3], 0.0, atol=1e-3)  # the cell alone
    # What is not a crystal stays where it is.
    np.testing.assert_array_equal(moved.relaxed.lengths[3], BATCH.lengths[3])
    np.testing.assert_array_equal(moved.relaxed.mask, BATCH.mask)
    assert moved.status["energy"].tolist() == [0, 0, 0, EnergyStatus.INVALID]
    assert moved.valid.tolist() == [True] * 3 + [False]


def test_the_batch_does_not_change_how_a_crystal_relaxes(make):
    reward = make(relax_steps=40)
    whole = score(BATCH, reward=reward)
    order = [2, 0, 3, 1]
    other = score(take(BATCH, order), reward=reward)
    np.testing.assert_allclose(
        other.e_above_hull, whole.e_above_hull[np.array(order)], atol=1e-6
    )


def test_four_devices_relax_as_one(make):
    reward = make(relax_steps=40, relaxed=True)
    one = score(BATCH, reward=reward)
    with jax.set_mesh(make_mesh(4)):
        four = score(BATCH, reward=reward)
    np.testing.assert_allclose(four.e_above_hull, one.e_above_hull, atol=1e-6)
    np.testing.assert_allclose(four.relaxed.lengths, one.relaxed.lengths, atol=1e-4)
    np.testing.assert_array_equal(four.unique, one.unique)


def test_what_relaxes_to_one_crystal_is_one(make):
    """Uniqueness of the relaxed crystals, if the reward is of them."""
    far = take(BATCH, [0, 1, 2, 3])
    far.lengths[1, 0] = 2.6  # Å; another crystal, till the springs act
    apart = score(far, reward=make(relax_steps=60))
    together = score(far, reward=make(relax_steps=60, relaxed=True))
    assert apart.unique.tolist() == [True, True, True, False]
    assert together.unique.tolist() == [True, False, True, False]


def test_two_potentials_and_their_dispute(make):
    """By hand: springs 0.24, 0.24, 0.06 eV/atom, and 0, 0, 0.5 for the bromide."""
    names = {"potentials": "springs, bromide"}
    largest = score(BATCH, reward=make(**names))
    expected = [0.24, 0.24, 0.5]
    np.testing.assert_allclose(largest.e_above_hull[:3], expected, atol=1e-4)
    spread = score(BATCH, reward=make(**names, combine="mean_plus_spread"))
    expected = [0.12 + 0.24, 0.12 + 0.24, 0.28 + 0.44]
    np.testing.assert_allclose(spread.e_above_hull[:3], expected, atol=1e-4)
    np.testing.assert_allclose(largest.opinions["bromide"][:3], [0, 0, 0.5], atol=1e-6)
    assert largest.metrics["metastable/bromide"] == pytest.approx(0.5)
    assert largest.metrics["metastable/springs"] == pytest.approx(0.25)
    disagreement = (0.24 + 0.24 + 0.44) / 3
    assert largest.metrics["disagreement"] == pytest.approx(disagreement, abs=1e-4)
    strict = score(BATCH, reward=make(**names, max_disagreement=0.3))
    assert strict.status["energy"][2] == EnergyStatus.DISPUTED
    assert strict.metrics["failures/energy/disputed"] == 1
    np.testing.assert_allclose(
        strict.components["energy"], [-0.24, -0.24, -9.0, -9.0], atol=1e-4
    )


def test_one_relaxes_and_the_other_judges(make):
    reward = make(potentials="bromide", relax_with="springs", relax_steps=40)
    found = score(BATCH, reward=reward)
    assert list(found.opinions) == ["bromide"]
    np.testing.assert_allclose(found.e_above_hull[:3], [0, 0, 0.5], atol=1e-6)
    np.testing.assert_allclose(found.relaxed.lengths[:3], BEST, atol=0.03)


def test_displacement_is_minus_the_rmsd(make):
    components = {"displacement": {"weight": 1.0, "clip_max": 0.5}}
    reward = make(relax_steps=40, components=components)
    values = score(BATCH, reward=reward).components["displacement"]
    np.testing.assert_allclose(values, [0, 0, 0, -0.5], atol=1e-3)


def test_what_cannot_be_relaxed_has_no_displacement(make):
    term = make(components={"displacement": {"weight": 1.0}}, relax_steps=1).terms[1]
    batch = SimpleNamespace(valid=np.array([True, True, False]))
    batch.computed = {"rmsd": np.array([0.25, np.nan, np.nan])}
    values, status = term.component.evaluate(batch)
    assert values[0] == -0.25 and term.component.penalty == -1.0
    assert status.tolist() == [outcome.Status.OK, outcome.Status.BAD_VALUE, 1]


def test_combined_opinions_take_the_first_fault():
    ok, failed = EnergyStatus.OK, EnergyStatus.FAILED
    above, status = combine_opinions(
        [
            (np.array([0.1, np.nan, 0.3]), np.array([ok, failed, ok])),
            (np.array([0.2, 0.0, np.nan]), np.array([ok, ok, EnergyStatus.NO_HULL])),
        ]
    )
    np.testing.assert_array_equal(above, [0.2, np.nan, np.nan])
    assert status.tolist() == [ok, failed, EnergyStatus.NO_HULL]


def test_recent_crystals_are_the_relaxed_ones_again(make, tmp_path):
    found = jax.device_get(score(BATCH, reward=make(relax_steps=40, relaxed=True)))
    save_iteration(tmp_path, 0, vars(BATCH), vars(found))
    sizes = {"batch_size": 4, "max_atoms": 4}
    loaded = load_recent(tmp_path, 1, 1, **sizes, relaxed=True)
    recent = RecentCrystals(1, **sizes)
    recent.add(found.relaxed)
    np.testing.assert_array_equal(loaded.crystals.lengths, recent.crystals.lengths)
    # A run that continues with fewer crystals in an iteration has room for both.
    fewer = load_recent(tmp_path, 1, 1, batch_size=2, max_atoms=4, relaxed=True)
    np.testing.assert_array_equal(fewer.crystals.lengths, recent.crystals.lengths)


def test_a_potential_that_cannot_relax_is_named(make, monkeypatch):
    monkeypatch.setitem(
        loading.LOADERS, "ase", lambda name, _: Potential(name, "", bromide)
    )
    with pytest.raises(UserError, match="relax_with: ase:argon"):
        make(relax_steps=4, relax_with="ase:argon:lennard_jones")


@pytest.mark.parametrize("names", ["", " , ", "chgnet,chgnet"])
def test_potentials_are_named_once(names):
    with pytest.raises(UserError, match="name each potential once"):
        split_names(names)


def test_a_file_of_one_hull_does_not_go_with_two_potentials():
    energy = {"potentials": "chgnet,sevennet-0"}
    config = {"components": {"energy": energy}, "hull_file": "mine.csv"}
    with pytest.raises(UserError, match="hull_file = mine.csv holds energies of one"):
        judges.load_judges(config, load_dataset("mp_mini").subset(np.arange(3)))

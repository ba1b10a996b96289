import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from chemeleon_jax.data import dataset
from chemeleon_jax.data.batches import (
    BucketedBatches,
    augment,
    corrupt,
    random_rotations,
)
from chemeleon_jax.data.crystals import chemical_system, from_structures
from chemeleon_jax.data.dataset import (
    MP20_ATOM_COUNTS,
    SPLITS,
    Dataset,
    load_dataset,
    load_npz,
    save_npz,
    split_by_chemical_system,
)
from chemeleon_jax.errors import UserError


def small_dataset(counts, width=20):
    """Cubic cells with the given atom counts; label `index` counts crystals."""
    rng = np.random.default_rng(0)
    structures = [
        Structure(Lattice.cubic(4 + n), ["Cu"] * n, rng.uniform(size=(n, 3)))
        for n in counts
    ]
    size = len(counts)
    return Dataset(
        from_structures(structures, width),
        {"index": np.arange(size, dtype=np.float32)},
        np.array([f"id-{i}" for i in range(size)]),
        np.zeros(size, np.int8),
    )


# --- the embedded crystals --------------------------------------------------------


def test_embedded_crystals_and_labels():
    dataset = load_dataset("mp_mini")
    assert len(dataset) == 13757
    assert len(np.unique(dataset.crystals.atom_types)) == 87 + 1  # and padding
    found = {k: int(np.isfinite(v).sum()) for k, v in dataset.labels.items()}
    assert found == {
        "formation_energy": 3420,
        "e_above_hull_dft": 3420,
        "band_gap": 1056,
        "bulk_modulus": 1006,
        "shear_modulus": 1006,
    }
    # As the sources print them: Nb4CoSi in elastic_tensor.csv, Rb2Te's gap
    row = dataset.material_ids.tolist().index("mp-10003")
    assert dataset.labels["bulk_modulus"][row] == pytest.approx(194.268884, abs=1e-4)
    assert dataset.labels["shear_modulus"][row] == pytest.approx(97.141604, abs=1e-4)
    row = dataset.material_ids.tolist().index("mp-441")
    assert dataset.labels["band_gap"][row] == pytest.approx(1.88)


def test_embedded_rock_salt():
    """mp-22862: primitive cell, sodium at the origin, chlorine at the centre."""
    dataset = load_dataset("mp_mini")
    row = dataset.material_ids.tolist().index("mp-22862")
    crystal = dataset.subset([row]).crystals
    assert crystal.atom_types[0, :2].tolist() == [11, 17]
    assert crystal.frac_coords[0, :2].tolist() == [[0.0] * 3, [0.5] * 3]
    np.testing.assert_allclose(crystal.angles[0], 60, atol=1e-3)


def test_every_embedded_crystal_has_an_atom_at_the_origin():
    crystals = load_dataset("mp_mini").crystals
    assert crystals.frac_coords.min() == 0 and crystals.frac_coords.max() < 1
    at_origin = (crystals.frac_coords == 0).all(-1) & crystals.mask
    assert at_origin.any(-1).all()


def test_no_chemical_system_is_in_two_splits():
    dataset = load_dataset("mp_mini")
    systems = {
        name: {chemical_system(t) for t in dataset.select(name).crystals.atom_types}
        for name in SPLITS
    }
    assert not systems["train"] & systems["validation"]
    assert not systems["train"] & systems["test"]
    assert not systems["validation"] & systems["test"]
    sizes = [len(dataset.select(name)) for name in SPLITS]
    assert sizes == [12347, 690, 720]
    # drawn anew from the hashes: the stored split is the rule's
    crystals = dataset.crystals
    np.testing.assert_array_equal(
        split_by_chemical_system(crystals.atom_types[:200]), dataset.split[:200]
    )


def test_altered_embedded_file_is_refused(monkeypatch, tmp_path):
    content = bytearray((dataset.ASSETS / "mp_mini.npz").read_bytes())
    content[1000] ^= 1
    (tmp_path / "mp_mini.npz").write_bytes(content)
    monkeypatch.setattr(dataset, "ASSETS", tmp_path)
    dataset._load_embedded.cache_clear()
    with pytest.raises(UserError, match="mp_mini.npz was altered: its SHA-256 is"):
        load_dataset("mp_mini")
    dataset._load_embedded.cache_clear()


def test_atom_counts():
    dataset = small_dataset([1, 4, 4, 20])
    histogram = dataset.atom_count_histogram
    assert histogram[[0, 3, 19]].tolist() == [0.25, 0.5, 0.25]
    assert histogram.sum() == MP20_ATOM_COUNTS.sum() == pytest.approx(1)
    assert MP20_ATOM_COUNTS[3] == pytest.approx(0.15271, abs=1e-5)


def test_unknown_split_and_file():
    with pytest.raises(UserError, match="unknown split 'val'.*validation"):
        small_dataset([1]).select("val")
    with pytest.raises(UserError, match="'mp_maxi' not found: give 'mp_mini'"):
        load_dataset("mp_maxi")


# --- npz --------------------------------------------------------------------------


@pytest.mark.parametrize(("quantise", "error"), [(False, 0), (True, 0.5 / 2**16)])
def test_npz_round_trip(tmp_path, quantise, error):
    dataset = small_dataset([1, 7, 20])
    dataset.labels["gap"] = np.array([1.5, np.nan, 0], np.float32)
    save_npz(tmp_path / "a.npz", dataset, quantise=quantise)
    again = load_dataset(tmp_path / "a.npz")
    np.testing.assert_array_equal(
        again.crystals.atom_types, dataset.crystals.atom_types
    )
    np.testing.assert_array_equal(again.labels["gap"], dataset.labels["gap"])
    assert again.material_ids.tolist() == dataset.material_ids.tolist()
    difference = np.abs(again.crystals.frac_coords - dataset.crystals.frac_coords)
    assert np.minimum(difference, 1 - difference).max() <= error + 1e-7
    assert (again.digest == dataset.digest) == (not quantise)


def test_npz_that_is_no_data_set(tmp_path):
    np.savez(tmp_path / "a.npz", lengths=np.ones(3))
    with pytest.raises(UserError, match="it lacks angles, atom_types"):
        load_npz(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes(b"not a zip")
    with pytest.raises(UserError, match="b.npz cannot be read"):
        load_npz(tmp_path / "b.npz")


# --- batches ----------------------------------------------------------------------


def test_every_crystal_once_per_epoch():
    counts = np.random.default_rng(0).integers(1, 21, 203)
    batches = BucketedBatches(small_dataset(counts), 128, seed=3, multiple_of=4)
    shapes, seen, once = set(), [], []
    for step in range(batches.batches_per_epoch):
        crystals, labels = batches.at(step)
        once += labels["index"][batches.counted(step)].astype(int).tolist()
        shapes.add(crystals.mask.shape)
        seen += labels["index"].astype(int).tolist()
        # labels stay with their crystals, and no atom is cut off
        np.testing.assert_array_equal(
            crystals.mask.sum(-1), counts[labels["index"].astype(int)]
        )
    # 128 atoms: 32 crystals of width 4, 16 of 8, 8 of 12 and 16, 4 of 20
    assert shapes == {(32, 4), (16, 8), (8, 12), (8, 16), (4, 20)}
    assert set(seen) == set(range(203))
    assert 0 < len(seen) - 203 < 4  # only the last batch is filled up
    assert sorted(once) == list(range(203))


def test_batches_are_a_function_of_seed_and_step():
    dataset = small_dataset(np.arange(200) % 20 + 1)
    batches = BucketedBatches(dataset, 128, seed=0)
    again = BucketedBatches(dataset, 128, seed=0)  # a resumed run
    other = BucketedBatches(dataset, 128, seed=1)
    late = batches.batches_per_epoch * 3 + 2

    def indices(batches, step):
        return batches.at(step)[1]["index"].tolist()

    assert indices(again, late) == indices(batches, late)
    assert indices(batches, 0) == indices(again, 0)
    assert indices(other, 0) != indices(batches, 0)
    assert indices(batches, 0) != indices(batches, batches.batches_per_epoch)


def test_small_data_set_still_fills_a_batch():
    batches = BucketedBatches(small_dataset([3, 9], width=10), 64, multiple_of=8)
    crystals, _ = batches.at(0)
    assert batches.batches_per_epoch == 1
    assert crystals.mask.shape == (8, 10)
    with pytest.raises(UserError, match="data set is empty"):
        BucketedBatches(small_dataset([3]).select("test"))


def test_batches_of_small_crystals_can_be_smaller_and_more():
    dataset = small_dataset([3] * 64 + [9] * 16, width=10)

    def shapes(**most):
        batches = BucketedBatches(dataset, 160, **most)
        return sorted(
            batches.at(step)[0].mask.shape for step in range(batches.batches_per_epoch)
        )

    # Of 64 small crystals 40 fill a batch, and 24 go with the 16 large ones.
    assert shapes() == [(16, 10)] * 3 + [(40, 4)]
    assert shapes(crystals_per_batch=8) == [(8, 4)] * 8 + [(8, 10)] * 2


# --- augmentation -----------------------------------------------------------------


@pytest.fixture(scope="module")
def crystals():
    rows = np.arange(0, 13757, 1000)
    return jax.tree.map(jnp.asarray, load_dataset("mp_mini").subset(rows).crystals)


def distances(crystals, lattice):
    """Shortest distance over 27 images for each pair, padding 0."""
    grid = jnp.stack(jnp.meshgrid(*[jnp.arange(-1, 2)] * 3), -1).reshape(-1, 3)
    frac = crystals.frac_coords[:, :, None] - crystals.frac_coords[:, None]
    frac = frac - jnp.round(frac)
    vectors = (frac[:, :, :, None] + grid[None, None, None]) @ lattice[:, None, None]
    shortest = jnp.linalg.norm(vectors, axis=-1).min(-1)
    return np.asarray(shortest * crystals.mask[:, None] * crystals.mask[:, :, None])


def test_augmentation_keeps_the_crystal(crystals):
    moved, lattice = jax.jit(augment)(jax.random.key(0), crystals)
    np.testing.assert_allclose(
        distances(moved, lattice), distances(crystals, crystals.lattice), atol=1e-3
    )
    # proper: no mirror image
    np.testing.assert_allclose(
        jnp.linalg.det(lattice), jnp.linalg.det(crystals.lattice), rtol=1e-4
    )
    assert moved.frac_coords.min() >= 0 and moved.frac_coords.max() < 1
    assert not moved.frac_coords[~moved.mask].any()
    assert jnp.array_equal(moved.lengths, crystals.lengths)


def test_every_crystal_moves_by_itself(crystals):
    moved, lattice = augment(jax.random.key(0), crystals)
    shift = moved.frac_coords[:, 0] - crystals.frac_coords[:, 0]
    assert len(np.unique(np.asarray(shift[:, 0] % 1).round(4))) == len(shift)
    rotation = jnp.linalg.inv(crystals.lattice) @ lattice
    assert len(np.unique(np.asarray(rotation[:, 0, 0]).round(4))) == len(shift)


def test_augmentation_can_be_switched_off(crystals):
    same, lattice = augment(jax.random.key(0), crystals, translate=False, rotate=False)
    assert jnp.array_equal(same.frac_coords, crystals.frac_coords)
    assert jnp.array_equal(lattice, crystals.lattice)


def test_random_rotations_are_proper_and_uniform():
    rotations = random_rotations(jax.random.key(1), 4000)
    product = rotations @ rotations.swapaxes(-1, -2)
    identity = np.broadcast_to(np.eye(3), product.shape)
    np.testing.assert_allclose(product, identity, atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.det(rotations), 1, atol=1e-5)
    # uniform on SO(3): entries have mean 0 and mean square 1/3
    np.testing.assert_allclose(rotations.mean(0), 0, atol=0.04)
    np.testing.assert_allclose((rotations**2).mean(0), 1 / 3, atol=0.03)


def test_corruption(crystals):
    big = jax.tree.map(lambda x: jnp.concatenate([x] * 40), crystals)
    corrupt_jit = jax.jit(corrupt)
    key, lattice = jax.random.key(0), big.lattice
    noisy = corrupt_jit(key, big, lattice, type_rate=0.25, jitter=0.1)
    hidden = (noisy.atom_types == 0)[big.mask].mean()
    assert hidden == pytest.approx(0.25, abs=0.02)
    frac = noisy.frac_coords - big.frac_coords
    cartesian = ((frac - jnp.round(frac)) @ lattice)[big.mask]
    assert cartesian.std() == pytest.approx(0.1, abs=0.003)
    assert not noisy.frac_coords[~big.mask].any()
    clean = corrupt_jit(key, big, lattice, type_rate=0.0, jitter=0.0)
    assert jnp.array_equal(clean.atom_types, big.atom_types)
    assert jnp.allclose(clean.frac_coords, big.frac_coords)

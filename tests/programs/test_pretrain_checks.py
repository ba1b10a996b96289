"""What `pretrain` refuses, and what its validations are means of."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from command_lines import parsed

from chemeleon_jax.data.batches import BucketedBatches
from chemeleon_jax.data.dataset import load_dataset, save_npz
from chemeleon_jax.devices.sharding import make_mesh
from chemeleon_jax.errors import UserError
from chemeleon_jax.models import store
from chemeleon_jax.models.loading import load_checkpoint
from chemeleon_jax.models.predictor import make_predictor
from chemeleon_jax.pretrain import (
    PretrainState,
    after_validation,
    load_splits,
    make_validate,
    pretrain,
)
from chemeleon_jax.pretraining.checks import check_pretrain
from chemeleon_jax.pretraining.predictor import labelled_crystals
from chemeleon_jax.pretraining.stage import PerCrystal, Stage

TARGETS = ("band_gap", "formation_energy")


def few_crystals(train=16, validation=21):
    """Small crystals of mp_mini with a formation energy; every third has a gap."""
    dataset = load_dataset("mp_mini")
    small = dataset.crystals.mask.sum(-1) <= 8
    picked = np.concatenate(
        [
            np.flatnonzero(small & (dataset.split == split))[:count]
            for split, count in ((0, train), (1, validation))
        ]
    )
    index = np.arange(len(picked), dtype=np.float32)
    labels = {
        "band_gap": np.where(index % 3 == 0, index, np.nan).astype(np.float32),
        "formation_energy": index / 10,
    }
    return dataclasses.replace(dataset.subset(picked), labels=labels)


# ---------------------------------------------------------------------- validation


def test_a_validation_is_a_mean_over_labelled_crystals():
    """Of 11 crystals with up to 4 atoms, and 2 with 8, in batches of 8."""
    dataset = few_crystals()
    num_atoms = dataset.crystals.mask.sum(-1)
    narrow, wide = np.flatnonzero(num_atoms <= 4), np.flatnonzero(num_atoms > 4)
    dataset = dataset.subset(np.r_[narrow[:11], wide[:2]])
    errors = np.arange(13, dtype=np.float32)
    labels = {"a": errors, "b": np.where(np.isin(errors, [3, 12]), errors, np.nan)}
    batches = BucketedBatches(dataclasses.replace(dataset, labels=labels), 32)
    assert batches.batches_per_epoch == 2  # 3 of the 16 are there a second time
    assert sorted(int(batches.counted(i).sum()) for i in range(2)) == [5, 8]

    def loss(params, frozen, crystals, labels, key, train):
        error = jnp.stack([labels["a"], labels["b"]], -1)
        known = ~jnp.isnan(error)
        error = jnp.where(known, error, 0.0)
        both, b = PerCrystal(error, known), PerCrystal(error[:, 1], known[:, 1])
        return jnp.array(0.0), {"loss": both, "b": b}

    stage = Stage({}, {}, loss, {})
    # The mean of 0 .. 12 is 6, that of 3 and 12 is 7.5, and that of both 6.75.
    scores = make_validate(stage, batches, {}, make_mesh())({})
    assert scores == {"loss": 6.75, "b": 7.5}


def test_a_batch_without_a_label_has_no_error_rather_than_none():
    value = jnp.array([[1.0, 0.0], [3.0, 0.0]])
    known = jnp.array([[True, False], [True, False]])
    assert np.isnan(PerCrystal(value, known).mean)
    assert PerCrystal(value[:, 0], known[:, 0]).mean == 2.0
    total, count = PerCrystal(value, known).sums(jnp.array([False, True]))
    assert total.tolist() == [3.0, 0.0] and count.tolist() == [1, 0]


def test_the_errors_of_a_predictor_are_those_of_its_predictions(tmp_path):
    store.save_model(tmp_path / "vae", *tiny.vae_checkpoint())
    dataset = few_crystals()
    save_npz(tmp_path / "few.npz", dataset)
    config = parsed("--config.num_steps=1", config="configs/predictor.py")
    config.targets = TARGETS
    config.data.dataset = str(tmp_path / "few.npz")
    config.data.atoms_per_batch = 64
    config.vae_ckpt_path = str(tmp_path / "vae")
    pretrain(config, str(tmp_path))
    found = load_checkpoint(tmp_path)
    vae, params = tiny.make_vae(tiny.VAE), tiny.vae_checkpoint().params["vae"]
    predictor = make_predictor(found.config["predictor"])
    crystals = jax.tree.map(jnp.asarray, dataset.select("validation").crystals)
    features, posterior = vae.apply({"params": params}, crystals, method="encode")
    inputs = features, posterior.mean, crystals.mask
    predicted = predictor.apply({"params": found.params["predictor"]}, *inputs)
    scores = found.config["training"]["validation"]
    squares = []
    for i, name in enumerate(TARGETS):
        wanted = dataset.select("validation").labels[name]
        scale = predictor.std[i] + 1e-5
        error = np.asarray(predicted)[:, i] - (wanted - predictor.mean[i]) / scale
        mae = np.nanmean(np.abs(error)) * scale
        np.testing.assert_allclose(scores[f"mae_{name}"], mae, rtol=1e-4)
        squares.append(np.nanmean(error**2))
    np.testing.assert_allclose(scores["loss"], np.mean(squares), rtol=1e-4)


@pytest.mark.parametrize(
    ("loss", "best", "since"), [(0.05, 0.05, 0), (0.1, 0.1, 3), (np.nan, 0.1, 3)]
)
def test_what_is_best_is_kept_as_it_is(loss, best, since):
    """In float32, where 0.1 is more: it would be better than itself for ever."""
    state = PretrainState(0, {}, {}, {}, jnp.array(0.1), jnp.array(2))
    state, improved = after_validation(state, loss)
    assert state.best == np.float32(best) and state.since_best == since
    assert improved == (since == 0)


# -------------------------------------------------------------------------- checks


def error_of(*arguments, config):
    with pytest.raises(UserError) as error:
        pretrain(parsed(*arguments, config=config), "never-written")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "name",
    ["vae", "vae:decoder", "ldm", "ldm:deepest", "ldm:means", "predictor"],
)
def test_every_preset_is_a_training(name):
    check_pretrain(parsed(config=name))


@pytest.mark.parametrize(
    ("config", "field", "value", "rule"),
    [
        ("vae", "num_steps", "0", "at least 1"),
        ("vae", "validate_every", "0", "at least 1: what is kept is the model"),
        ("ldm", "log_every", "0", "at least 1"),
        ("ldm", "patience", "0", "at least 1"),
        ("predictor", "data.atoms_per_batch", "0", "at least 1"),
        ("predictor", "data.crystals_per_batch", "-8", "at least 1"),
        ("vae", "seed", "-1", "from 0 to 2^32 - 1"),
        ("vae", "optimizer.warmup_steps", "-1", "0 or more"),
        ("vae", "optimizer.weight_decay", "nan", "0 or more"),
        ("vae", "optimizer.lr", "0", "above 0"),
        ("vae", "optimizer.max_grad_norm", "-1", "above 0"),
        ("vae", "ema_decay", "1", "from 0 to below 1"),
        ("vae", "vae.latent_channels", "0", "at least 1"),
        ("vae", "vae.encoder.heads", "0", "at least 1"),
        ("vae", "vae.decoder.width", "130", "a multiple of 4: even, and of config."),
        ("vae", "corrupt.type_rate", "1.5", "from 0 to 1"),
        ("vae", "loss_weights.kl", "-1", "0 or more"),
        ("ldm", "dit.width", "165", "a multiple of 10: even, and of config.dit.heads"),
        ("ldm", "dit.depth", "-1", "0 or more"),
        ("ldm", "drop_prob", "2", "from 0 to 1"),
        ("ldm", "timestep_std", "0", "above 0"),
    ],
)
def test_a_value_out_of_range_is_named(config, field, value, rule):
    message = error_of(f"--config.{field}={value}", config=config)
    assert message.startswith(f"config.{field} = ")
    assert rule in message


def test_an_unknown_stage_is_named():
    config = parsed(config="vae")
    config.stage = "VAE"
    with pytest.raises(UserError, match="config.stage: 'VAE', but there are vae, ldm"):
        pretrain(config, "never-written")


# ---------------------------------------------------------------------------- data


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_split_without_crystals_is_named(tmp_path, split):
    dataset = few_crystals()
    rest = dataset.subset(dataset.split == (split == "train"))
    save_npz(tmp_path / "few.npz", rest)
    path = f"--config.data.dataset={tmp_path / 'few.npz'}"
    message = error_of(path, config="vae")
    assert f"none of the {len(rest)} crystals of {tmp_path}" in message
    assert f"in the split '{split}'" in message and "a column 'split'" in message


def test_the_splits_of_a_stage_have_its_labels(tmp_path):
    save_npz(tmp_path / "few.npz", few_crystals())
    config = parsed(config="predictor")
    config.data.dataset = str(tmp_path / "few.npz")
    config.targets = ("band_gap",)
    # Crystals 0, 3, .., 15 of 0 .. 15, and 18, 21, .., 36 of 16 .. 36.
    assert [len(part) for part in load_splits(config)] == [6, 7]


def test_targets_that_nobody_could_learn_are_named():
    assert "config.targets: empty" in error_of(
        "--config.targets=()", config="predictor"
    )
    dataset = few_crystals()
    gaps = dataset.labels["band_gap"]
    gaps[dataset.split == 1] = np.nan
    with pytest.raises(UserError, match="'validation' has a label 'band_gap'"):
        labelled_crystals(dataset, TARGETS)
    with pytest.raises(UserError, match="config.targets: empty"):
        labelled_crystals(dataset, ())

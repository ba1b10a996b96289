import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from chemeleon_jax.data.dataset import load_dataset, save_npz
from chemeleon_jax.errors import UserError
from chemeleon_jax.models import store
from chemeleon_jax.models.diffusion import TIMESTEP_QUANTILES
from chemeleon_jax.models.loading import load_checkpoint
from chemeleon_jax.models.optimizer import learning_rate
from chemeleon_jax.pretrain import STAGES, pretrain
from chemeleon_jax.pretraining.ldm import ldm_stage, measure_latent_std
from chemeleon_jax.pretraining.stage import Stage, start_from
from chemeleon_jax.runs.states import RunCheckpoints, read_subtree
from chemeleon_jax.runs.tracking import read_scalars

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small data set and a VAE."""
    folder = tmp_path_factory.mktemp("pretrain")
    dataset = load_dataset("mp_mini")
    small = dataset.crystals.mask.sum(-1) <= 4
    labelled = ~np.isnan(dataset.labels["band_gap"])
    picked = np.concatenate(
        [
            np.flatnonzero(small & labelled & (dataset.split == s))[:count]
            for s, count in ((0, 60), (1, 8))
        ]
    )
    save_npz(folder / "few.npz", dataset.subset(picked))
    store.save_model(folder / "vae", *tiny.vae_checkpoint())
    return folder


def config(folder, stage, **changes):
    base = ConfigDict(
        {
            "stage": stage,
            "seed": 0,
            "init_from": "",
            "precision": "default",
            "num_steps": 4,
            "validate_every": 2,
            "patience": 6,
            "log_every": 1,
            "ema_decay": 0.9,
            "tracking": {"wandb": False},
            "vae_ckpt_path": str(folder / "vae"),
            "data": {
                "dataset": str(folder / "few.npz"),
                "atoms_per_batch": 64,
                "crystals_per_batch": 512,
            },
            "vae": tiny.VAE,
            "augment": {"translate": True, "rotate": True},
            "corrupt": {"type_rate": 0.1, "jitter": 0.05},
            "latent_noise": 0.1,
            "encoder_ckpt_path": "",
            "error": "squared",
            "loss_weights": {
                "atom_types": 1.0,
                "lengths": 1.0,
                "angles": 10.0,
                "frac_coords": 10.0,
                "kl": 1e-5,
            },
            "dit": {"depth": 1, "width": 16, "heads": 2, "learn_sigma": True},
            "conditions": {},
            "drop_prob": 0.1,
            "timesteps": "uniform",
            "timestep_mean": 0.0,
            "timestep_std": 1.0,
            "latents": "sample",
            "targets": ("band_gap",),
            "optimizer": {
                "lr": 1e-3,
                "warmup_steps": 1,
                "weight_decay": 0.0,
                "max_grad_norm": 1.0,
            },
        }
    )
    base.update(changes)
    return base


@pytest.mark.parametrize(
    ("stage", "then"),
    [
        ("vae", "chemeleon_jax.pretrain --config=ldm --config.vae_ckpt_path={}"),
        ("ldm", "chemeleon_jax.train --config=rl_dng --config.ldm_ckpt_path={} "),
        ("predictor", "chemeleon_jax.train --config=rl_bandgap "),
    ],
)
def test_a_stage_leaves_a_model_that_loads(folder, tmp_path, capsys, stage, then):
    pretrain(config(folder, stage), str(tmp_path))
    said = capsys.readouterr().out
    assert f"{stage}, " in said and " crystals to train on, " in said
    assert f"{tmp_path}, steps: 4" in said and "compiling" in said
    assert f"  python -m {then.format(tmp_path)}" in said
    model = load_checkpoint(tmp_path)
    assert model.config["kind"] == stage
    assert np.isfinite(model.config["training"]["validation"]["loss"])
    curves = read_scalars(tmp_path / "training")
    np.testing.assert_array_equal(curves["train/loss"][0], [0, 1, 2, 3])
    np.testing.assert_array_equal(curves["val/loss"][0], [1, 3])


def test_a_decoder_is_trained_on_the_latents_of_a_kept_encoder(folder, tmp_path):
    deeper = config(folder, "vae", encoder_ckpt_path=str(folder / "vae"))
    deeper.vae.decoder = ConfigDict({**tiny.TRANSFORMER, "layers": 2})
    deeper.error = "absolute"
    pretrain(deeper, str(tmp_path))
    old = load_checkpoint(folder / "vae").params["vae"]
    new = load_checkpoint(tmp_path).params["vae"]
    assert store.encoder_digest(new) == store.encoder_digest(old)
    dataset = load_dataset(folder / "few.npz")
    before = STAGES["vae"](deeper, dataset, KEY).params["vae"]
    assert before.keys() == {"decode_atoms"}
    moved = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), before["decode_atoms"], new["decode_atoms"]
    )
    assert min(jax.tree.leaves(moved)) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vae.latent_channels": 8}, r"config.vae.latent_channels: 8, but"),
        ({"vae.encoder.layers": 3}, r"config.vae.encoder: .*which is to be kept"),
    ],
)
def test_an_encoder_that_cannot_be_kept_is_refused(folder, tmp_path, change, message):
    wanted = config(folder, "vae", encoder_ckpt_path=str(folder / "vae"))
    wanted.update_from_flattened_dict(change)
    with pytest.raises(UserError, match=message):
        pretrain(wanted, str(tmp_path))


@pytest.mark.parametrize(
    ("stage", "field", "message"),
    [
        ("vae", "error", "config.error: 'means', but there are squared, absolute"),
        ("ldm", "latents", "config.latents: 'means', but there are sample, mean"),
        ("ldm", "timesteps", "'means', but there are uniform, logit_normal"),
    ],
)
def test_a_name_that_is_no_option_is_said(folder, tmp_path, stage, field, message):
    with pytest.raises(UserError, match=message):
        pretrain(config(folder, stage, **{field: "means"}), str(tmp_path))


def test_a_denoiser_of_means_does_not_see_the_posterior_s_noise(folder):
    """Only the spread of the posterior differs; samples of it would tell."""
    dataset = load_dataset(folder / "few.npz")

    def loss(latents, logvar):
        stage = ldm_stage(config(folder, "ldm", latents=latents), dataset, KEY)
        frozen = jax.tree.map(jnp.copy, stage.frozen)
        kernel = frozen["vae"]["moments"]["kernel"]
        channels = kernel.shape[1] // 2
        frozen["vae"]["moments"]["kernel"] = kernel.at[:, channels:].set(logvar)
        params = tiny.stir(stage.params)  # untrained, it says 0 to everything
        return stage.loss(params, frozen, dataset.crystals, {}, KEY, False)[0]

    assert loss("mean", 0.0) == loss("mean", 0.1)
    assert loss("sample", 0.0) != loss("sample", 0.1)


def test_steps_that_are_not_finite_are_skipped_and_end_the_run(
    folder, tmp_path, monkeypatch
):
    def downhill(params, *_):  # NaN below 1, where its gradient is finite
        return jnp.log(params["w"] - 1), {}

    stage = Stage({"w": jnp.array(3.0)}, {}, downhill, {"kind": "none"})
    monkeypatch.setitem(STAGES, "vae", lambda *_: stage)
    steep = config(folder, "vae", num_steps=40, validate_every=40)
    steep.optimizer.lr = 0.5
    with pytest.raises(UserError, match="in 10 steps in a row .loss nan"):
        pretrain(steep, str(tmp_path))
    curves = read_scalars(tmp_path / "training")
    skipped = np.isnan(curves["train/loss"][1])
    assert 1 < np.argmax(skipped) == len(skipped) - 10  # the first, and all after it
    np.testing.assert_array_equal(
        curves["train/skipped_updates"][1], np.cumsum(skipped)
    )
    last = read_subtree(tmp_path / "training" / "checkpoints", "params")["w"]
    assert 0.5 <= last < 1  # where the first step led that was too large


def test_a_conditional_ldm_trains_its_encoders(folder, tmp_path):
    conditions = {
        "gap": {"name": "band_gap", "kind": "float"},
        "formula": {"name": "formula", "kind": "composition"},
    }
    pretrain(config(folder, "ldm", conditions=conditions), str(tmp_path))
    model = load_checkpoint(tmp_path)
    assert set(model.params["condition"]) >= {"band_gap", "formula", "band_gap_null"}
    specs = {spec["name"]: spec for spec in model.config["condition"]["specs"]}
    assert specs["band_gap"]["std"] > 0


def test_a_denoiser_goes_on_deeper_where_another_ended(folder, tmp_path):
    shallow, deeper = config(folder, "ldm"), config(folder, "ldm")
    deeper.dit.depth = 2
    pretrain(shallow, str(tmp_path))
    dataset = load_dataset(folder / "few.npz")

    def loss(config, name):
        stage = start_from(name, ldm_stage(config, dataset, jax.random.key(1)))
        batch = stage.frozen, dataset.crystals, {}, jax.random.key(2), False
        return stage.loss(stage.params, *batch)[0]

    trained = loss(shallow, str(tmp_path))
    assert abs(trained - loss(shallow, "")) > 1e-3
    # The block more is the identity until it is trained.
    np.testing.assert_allclose(trained, loss(deeper, str(tmp_path)), rtol=1e-6)


def test_a_denoiser_goes_on_with_a_condition_more(folder, tmp_path):
    formula = {"formula": {"name": "formula", "kind": "composition"}}
    group = {"group": {"name": "group", "kind": "space_group"}}
    few = config(folder, "ldm", conditions=formula)
    more = config(folder, "ldm", conditions=formula | group)
    pretrain(few, str(tmp_path))
    dataset = load_dataset(folder / "few.npz")
    labels = {"group": np.arange(len(dataset), dtype=np.float32)}

    def loss(config):
        stage = start_from(str(tmp_path), ldm_stage(config, dataset, jax.random.key(1)))
        batch = stage.frozen, dataset.crystals, labels, jax.random.key(2), False
        return stage.loss(stage.params, *batch)[0]

    np.testing.assert_allclose(loss(few), loss(more), rtol=1e-6)


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        ("predictor", {}, "is of kind 'ldm'"),
        ("ldm", {"width": 32}, r"block_0.* of .* has the shape"),
        ("ldm", {"depth": 0}, "has parameters that this model lacks.*block_0"),
    ],
)
def test_what_cannot_be_the_start_is_said(folder, tmp_path, stage, changes, message):
    save_ldm(folder, tmp_path, config(folder, "ldm"))
    wanted = config(folder, stage, init_from=str(tmp_path))
    wanted.dit.update(changes)
    with pytest.raises(UserError, match=message):
        pretrain(wanted, str(tmp_path / "next"))


def test_a_start_on_another_vae_is_refused(folder, tmp_path):
    model = save_ldm(folder, tmp_path, config(folder, "ldm"))
    other = {**model.config, "encoder_sha256": "0" * 64}
    store.save_model(tmp_path, model.params, other)
    with pytest.raises(UserError, match="latents of another encoder"):
        pretrain(config(folder, "ldm", init_from=str(tmp_path)), str(tmp_path / "next"))


def save_ldm(folder, directory, config):
    """An untrained denoiser, as `pretrain` would leave it."""
    stage = ldm_stage(config, load_dataset(folder / "few.npz"), jax.random.key(0))
    store.save_model(directory, stage.params, stage.config)
    return load_checkpoint(directory)


class CutOffError(Exception):
    pass


def test_a_training_cut_off_ends_where_it_would_have_ended(
    folder, tmp_path, monkeypatch
):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    pretrain(config(folder, "vae"), str(whole))
    save = RunCheckpoints.save

    def save_and_die(self, step, state, **kwargs):
        save(self, step, state, **kwargs)
        raise CutOffError

    with monkeypatch.context() as patch, pytest.raises(CutOffError):
        patch.setattr(RunCheckpoints, "save", save_and_die)
        pretrain(config(folder, "vae"), str(halves))
    assert json.loads((halves / "config.json").read_text())["training"]["step"] == 2
    pretrain(config(folder, "vae"), str(halves))
    chex.assert_trees_all_equal(
        load_checkpoint(whole).params, load_checkpoint(halves).params
    )


def test_early_stopping(folder, tmp_path):
    stuck = config(folder, "vae", num_steps=20, patience=1)
    stuck.optimizer.lr = 1e-30  # never better than the first validation
    stuck.ema_decay = 0.0
    pretrain(stuck, str(tmp_path))
    assert read_scalars(tmp_path / "training")["train/loss"][0][-1] == 3


def test_unknown_label_is_named(folder, tmp_path):
    with pytest.raises(UserError, match="no label 'hardness'.*band_gap"):
        pretrain(config(folder, "predictor", targets=("hardness",)), str(tmp_path))


def test_scaled_latents_have_unit_variance(folder):
    dataset = load_dataset(folder / "few.npz")
    module = tiny.make_vae(tiny.VAE)
    params = tiny.vae_checkpoint().params["vae"]
    std = measure_latent_std(module, params, dataset, batch=50)
    encode = jax.jit(lambda c: module.apply({"params": params}, c, method="encode")[1])
    posterior = encode(dataset.crystals)
    noise = jax.random.normal(jax.random.key(0), (200, *posterior.mean.shape))
    z = np.asarray(posterior.mean[None] + posterior.std[None] * noise)
    sampled = z[:, dataset.crystals.mask].std()
    np.testing.assert_allclose(std, sampled, rtol=0.02)


def test_densities_of_timesteps():
    u = (np.arange(20000) + 0.5) / 20000
    uniform, logit_normal = (
        np.asarray(TIMESTEP_QUANTILES[name](u, -0.6, 1.0))
        for name in ("uniform", "logit_normal")
    )
    np.testing.assert_allclose(uniform, u)
    assert (np.diff(logit_normal) >= 0).all()
    # sigmoid(-0.6 + {-1, 0, 1}) at the quantiles of one standard deviation
    quantiles = np.interp([0.158655, 0.5, 0.841345], u, logit_normal)
    np.testing.assert_allclose(quantiles, [0.167982, 0.354344, 0.598688], atol=1e-4)


@pytest.mark.parametrize("num_steps", [1, 2, 9, 100, 200])
def test_a_warm_up_longer_than_the_training_is_cut(caplog, num_steps):
    """`--config.num_steps=100` is a usual first try; the default warms up for 200."""
    rate = learning_rate(1.0, warmup_steps=200, num_steps=num_steps)
    rates = [float(rate(step)) for step in range(num_steps + 1)]
    assert max(rates) == 1.0 and rates.index(1.0) == num_steps // 10
    assert rates[-1] == pytest.approx(0.0, abs=1e-6)
    assert f"config.num_steps = {num_steps}: the learning rate" in caplog.text


def test_products_are_asked_for_in_a_precision(folder, tmp_path, monkeypatch):
    def make_train_step(stage, optimizer, ema_decay):
        def train_step(*_):
            product = jax.jit(jnp.matmul).lower(jnp.eye(2), jnp.eye(2))
            raise UserError(product.as_text())

        return train_step

    def any_stage(config, dataset, key):
        return Stage({"w": jnp.ones(2)}, {}, lambda *_, train: None, {"kind": "vae"})

    monkeypatch.setattr("chemeleon_jax.pretrain.make_train_step", make_train_step)
    monkeypatch.setitem(STAGES, "vae", any_stage)
    with pytest.raises(UserError, match="lhs_precision_type = bf16"):
        pretrain(config(folder, "vae", precision="bfloat16"), str(tmp_path))
    with pytest.raises(UserError, match="config.precision: 'half', but there are"):
        pretrain(config(folder, "vae", precision="half"), str(tmp_path))

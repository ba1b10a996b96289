"""What the config of a model of others says is checked before it is believed."""

import json

import jax.numpy as jnp
import pytest
import tiny

from chemeleon_jax.errors import UserError
from chemeleon_jax.interface import load, model
from chemeleon_jax.interface.request import Request
from chemeleon_jax.models.condition import input_width, make_condition_encoder
from chemeleon_jax.models.store import Checkpoint, save_model

SPECS = [
    {"name": "gap", "kind": "float", "mean": 1.0, "std": 2.0},
    {"name": "group", "kind": "categorical", "num_classes": 3},
]
ABSENT = object()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A model directory."""
    folder = tmp_path_factory.mktemp("theirs")
    ldm, vae = tiny.ldm_checkpoint(), tiny.vae_checkpoint()
    condition = {"specs": SPECS, "width": tiny.DIT["width"]}
    vectors = {s["name"]: jnp.ones((1, input_width(s))) for s in SPECS}
    encoder = make_condition_encoder(condition)
    encoder = tiny.random_params(encoder, vectors, jnp.ones(1, bool))
    config = ldm.config | {"vae": tiny.VAE, "condition": condition}
    save_model(folder, ldm.params | vae.params | {"condition": encoder}, config)
    return folder


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("kind", "gan", "kind: 'gan', but must be one of vae, ldm, predictor"),
        ("kind", [], "kind: "),
        ("latent_std", ABSENT, "latent_std: missing, but must be a number above 0"),
        ("latent_std", float("nan"), "latent_std: nan"),
        ("latent_std", -1.0, "latent_std: -1.0"),
        ("latent_std", 10**400, "latent_std: 1000"),
        ("dit", ABSENT, "dit: missing, but must be a section"),
        ("dit", [1], r"dit: \[1\]"),
        ("dit.width", "16", "dit.width: '16', but must be an even number"),
        ("dit.width", 15, "dit.width: 15"),
        ("dit.width", 32, "dit.width: makes 32 where params.safetensors has 16"),
        ("dit.width", ABSENT, "dit.width: makes 768"),
        ("dit.depth", -2, "dit.depth: -2"),
        ("dit.depth", 1, "dit.depth: makes 1 where"),  # would sample, and wrongly
        ("dit.heads", 3, "dit.heads: 3, but must divide the width 16"),
        ("dit.mlp_ratio", 2.5, "dit.mlp_ratio: 2.5"),
        ("dit.learn_sigma", 1, "dit.learn_sigma: 1, but must be true or false"),
        ("dit.learn_sigma", True, "learn_sigma: makes 8 where"),
        ("dit.wings", 2, "dit: has no 'wings', but depth, width"),
        ("vae", None, "vae: None, but must be a section"),
        ("vae.latent_channels", 8, "vae.latent_channels: makes 16 where"),
        ("vae.encoder", "a\nb", "vae.encoder: "),
        ("vae.encoder.activation", "relu", "vae.encoder.activation: 'relu'"),
        ("vae.decoder.layers", 2, "vae.decoder.layers: makes 2 where"),
        ("vae.decoder.mlp_width", 0, "vae.decoder.mlp_width: 0"),
        ("condition", None, "condition: None, but must be a section"),
        ("condition.specs", [], r"condition.specs: \[\]"),
        ("condition.specs", SPECS[:1], "condition.specs: makes 1 where"),
        ("condition.specs", [3], "condition.specs.0: 3, but must be a section"),
        ("condition.specs", SPECS[:1] * 2, "two have the same name"),
        ("condition.specs.0", SPECS[0] | {"std": 0}, "specs.0.std: 0"),
        ("condition.specs.0", SPECS[0] | {"name": "x"}, "specs.0: makes 1 where"),
        ("condition.specs.1", SPECS[1] | {"num_classes": -1}, "num_classes: -1"),
        ("condition.specs.1", {"name": "group"}, "specs.1.kind: missing"),
    ],
)
def test_what_builds_no_model_is_one_line(theirs, tmp_path, field, value, message):
    config = json.loads((theirs / "config.json").read_text())
    *sections, last = (int(x) if x.isdigit() else x for x in field.split("."))
    place = config
    for name in sections:
        place = place[name]
    if value is ABSENT:
        del place[last]
    else:
        place[last] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "params.safetensors").symlink_to(theirs / "params.safetensors")
    with pytest.raises(UserError, match=rf"config\.json: .*{message}") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_predictor_s_numbers_belong_to_its_targets(tmp_path):
    params = {"predictor": {"out": {"bias": jnp.zeros(2)}}}
    about = {"targets": ["a", "b"], "mean": [0.0, 1.0], "std": [1.0, 1.0]}
    for wrong, message in (
        ({"mean": [0.0]}, "differ in number"),
        ({"std": [1.0, "x"]}, "predictor.std: .* a list of numbers"),
        ({"targets": "ab"}, "predictor.targets: 'ab', but must be a list of names"),
        ({name: x[:1] for name, x in about.items()}, "predictor.targets: makes 1"),
        ({}, "vae_ckpt_path: missing"),
    ):
        config = {"kind": "predictor", "predictor": about | wrong}
        config |= {"vae_ckpt_path": "mini:vae"} if wrong else {}
        save_model(tmp_path, params, config)
        with pytest.raises(UserError, match=rf"config\.json: .*{message}"):
            load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sampling": [3]}, "sampling"),
        ({"sampling": {"sampling_steps": "ten"}}, "sampling"),
        ({"sampling": {"eta": 5}}, "--eta=5"),
        ({"sampling": {"sampler": "euler"}}, "config.json: sampling: .*'euler'"),
        ({"sampling": {"precision": []}}, "config.json: sampling: precision"),
        ({"atom_counts": "abc"}, "atom_counts"),
        ({"atom_counts": [0.0, 0.0]}, "atom_counts"),
        ({"atom_counts": [0.5, float("nan")]}, "atom_counts"),
        ({"atom_counts": [10**400]}, "atom_counts"),
        ({"atom_counts": [-1.0, 2.0]}, "atom_counts"),
        ({"atom_counts": [0.0] * 20 + [1.0]}, "atom_counts"),  # all too large
    ],
)
def test_wrong_values_are_named(monkeypatch, changes, words):
    ldm, vae = tiny.ldm_checkpoint(), tiny.vae_checkpoint()
    config = ldm.config | {"vae": tiny.VAE} | changes
    both = Checkpoint(ldm.params | vae.params, config)
    monkeypatch.setattr(model, "load_checkpoint", lambda *_, **__: both)
    with pytest.raises(UserError, match=words):
        load("theirs").plan(Request(num_samples=2))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"seed": 2**32}, "--seed"),  # its key would be that of 0
        ({"num_samples": 2.5}, "whole number"),
        ({"num_atoms": [2.5]}, "whole number"),
        ({"num_atoms": []}, "names no count"),
    ],
)
def test_numbers_that_would_mean_another_request(asked, words):
    with pytest.raises(UserError, match=words):
        Request(**{"num_samples": 1} | asked)

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from small_state import assert_identical, small_params, trained_state

from chemeleon_jax.errors import UserError
from chemeleon_jax.models import hub
from chemeleon_jax.models.loading import load_checkpoint
from chemeleon_jax.models.store import Checkpoint, params_digest, save_model
from chemeleon_jax.runs.states import RunCheckpoints
from convert_checkpoints import conversion

CONFIG = {"kind": "ldm", "dit": {"width": 4, "heads": 2}, "vae": {}}
CONFIG |= {"condition": None, "latent_std": 0.1}


def small_vae():
    return {"vae": {"quant_conv": {"kernel": np.ones((2, 2), np.float32)}}}


# ------------------------------------------------------------------ model directories


def test_the_embedded_models_are_one_denoiser_but_for_a_bias():
    asked, unasked = (
        load_checkpoint("mini:ldm_conditional"),
        load_checkpoint("mini:ldm"),
    )
    assert set(unasked.params) == {"dit"} and unasked.config["condition"] is None
    one, other = (flatten_dict(m.params["dit"], sep="/") for m in (asked, unasked))
    changed = {name for name in one if not np.array_equal(one[name], other[name])}
    assert changed == {"timestep/out/bias"}


def test_a_model_comes_back_as_it_was(tmp_path):
    params = small_params() | small_vae()
    save_model(tmp_path / "m", params, CONFIG)
    loaded = load_checkpoint(tmp_path / "m")
    assert_identical(loaded.params, params)
    assert loaded.config == CONFIG
    assert sorted(f.name for f in (tmp_path / "m").iterdir()) == [
        "config.json",
        "params.safetensors",
    ]


def test_half_precision_is_storage_only(tmp_path):
    save_model(tmp_path, small_params(), CONFIG, dtype=np.float16)
    kernel = load_checkpoint(tmp_path).params["dit"]["x_embedder"]["kernel"]
    expected = small_params()["dit"]["x_embedder"]["kernel"]
    assert kernel.dtype == np.float32
    assert np.array_equal(kernel, expected.astype(np.float16).astype(np.float32))


def test_saving_again_replaces(tmp_path):
    save_model(tmp_path, small_params(0), CONFIG)
    save_model(tmp_path, small_params(1), CONFIG)
    assert_identical(load_checkpoint(tmp_path).params, small_params(1))


def test_others_may_read_a_model(tmp_path):
    """As the umask has it; safetensors would write it for its owner only."""
    before = os.umask(0o027)
    try:
        save_model(tmp_path, small_params(), CONFIG)
    finally:
        os.umask(before)
    modes = {oct(file.stat().st_mode & 0o777) for file in tmp_path.iterdir()}
    assert modes == {"0o640"}


def test_a_failed_save_leaves_the_old_model(tmp_path, monkeypatch):
    save_model(tmp_path, small_params(0), CONFIG)

    def full_disk(path, content):
        path.write_text("half a file")
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_model(tmp_path, small_params(1), CONFIG)
    assert_identical(load_checkpoint(tmp_path).params, small_params(0))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "other"])
def test_damaged_parameters_are_named(tmp_path, damage):
    save_model(tmp_path, small_params(), CONFIG)
    file = tmp_path / "params.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "flipped":
        data[-3] ^= 1
    file.write_bytes(
        {"truncated": data[:-5], "flipped": data, "empty": b"", "other": b"x" * 99}[
            damage
        ]
    )
    with pytest.raises(UserError, match=r"params\.safetensors.*again"):
        load_checkpoint(tmp_path)


def test_damage_is_found_without_a_checksum_too(tmp_path):
    save_model(tmp_path, small_params(), CONFIG)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert load_checkpoint(tmp_path).config == CONFIG
    file = tmp_path / "params.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"params\.safetensors: damaged"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"kind', "[" * 10**5])
def test_a_damaged_config_is_named(tmp_path, text):
    save_model(tmp_path, small_params(), CONFIG)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json: not the config of a model"):
        load_checkpoint(tmp_path)


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.*no such file.*hub:NAME"):
        load_checkpoint(tmp_path / "nowhere")
    save_model(tmp_path, small_params(), CONFIG)
    (tmp_path / "params.safetensors").unlink()
    with pytest.raises(UserError, match=r"params\.safetensors: no such file"):
        load_checkpoint(tmp_path)


def test_a_torch_checkpoint_is_sent_to_the_converter():
    with pytest.raises(UserError, match="python -m convert_checkpoints some/ldm.ckpt"):
        load_checkpoint("some/ldm.ckpt")


def test_digest_sees_values_names_and_shapes():
    params = small_params()
    digest = params_digest(params)
    assert digest == params_digest(jax.tree.map(jnp.asarray, params))
    assert digest != params_digest(small_params(1))
    assert digest != params_digest({"vae": params["dit"]})
    reshaped = jax.tree.map(lambda x: x.reshape(1, -1), params)
    assert digest != params_digest(reshaped)


# ------------------------------------------------------------------- names of models


def test_wrong_names_list_the_right_ones():
    with pytest.raises(UserError, match="mini:ldm, mini:vae, mini:ldm_cond"):
        load_checkpoint("mini:ldn")
    with pytest.raises(UserError, match="mp_20_ldm_base") as error:
        load_checkpoint("hub:mp_20_ldm")
    assert all(name in str(error.value) for name in hub.FILES)


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    # Port 9 of this machine: refused at once, whatever network there is.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path


def test_hub_out_of_reach_is_said_at_once(empty_cache):
    with pytest.raises(UserError, match="hub:mp_20_vae: cannot fetch") as error:
        load_checkpoint("hub:mp_20_vae")
    assert "convert_checkpoints FILE" in str(error.value)
    assert not (empty_cache / "chemeleon_jax").exists()


def test_hub_models_are_converted_once(empty_cache, monkeypatch):
    """An LDM is converted beside its VAE, whose head counts only the VAE's file has."""
    converted = []

    def convert_files(paths, weights, heads):
        converted.append([str(path) for path in paths])
        return {path: Checkpoint(small_params(), CONFIG) for path in paths}

    monkeypatch.setattr(hub, "_download", lambda name: Path(Path(hub.FILES[name]).name))
    monkeypatch.setattr(conversion, "convert_files", convert_files)
    for _ in range(2):
        assert_identical(
            load_checkpoint("hub:alex_mp_20_ldm_rl").params, small_params()
        )
    load_checkpoint("hub:alex_mp_20_vae")
    load_checkpoint("hub:mp_20_vae")
    assert converted == [
        ["ldm_rl_dng_tuor5vgd.ckpt", "dng_j1jgz9t0_v1.ckpt"],
        ["dng_m4owq4i5_v0.ckpt"],
    ]


# -------------------------------------------------------------------- run directories


def test_a_run_directory_loads_as_its_latest_or_best_policy(tmp_path):
    start = Checkpoint(small_params() | small_vae(), CONFIG)
    save_model(tmp_path / "model", start.params, CONFIG)
    with RunCheckpoints(tmp_path) as run:
        assert_identical(load_checkpoint(tmp_path).params, start.params)
        with pytest.raises(UserError, match="no state of this run was validated"):
            load_checkpoint(f"{tmp_path}@best")
        run.save(1, trained_state(1), score=0.5)
        run.save(2, trained_state(2), score=0.4)
        run.save(3, trained_state(3))
    for name, options, policy in (
        (tmp_path, {}, trained_state(3).ema_params),
        (tmp_path, {"weights": "raw"}, trained_state(3).params),
        (tmp_path, {"step": "best"}, trained_state(1).ema_params),
        (f"{tmp_path}@best", {"weights": "raw"}, trained_state(1).params),
    ):
        loaded = load_checkpoint(name, **options)
        assert loaded.config == CONFIG
        assert_identical(loaded.params, jax.tree.map(np.asarray, policy) | small_vae())

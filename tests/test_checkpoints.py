import json
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from chemeleon_jax import checkpoints, hub
from chemeleon_jax.checkpoints import (
    RunCheckpoints,
    load,
    params_digest,
    save_model,
    write_run_info,
)
from chemeleon_jax.errors import UserError
from chemeleon_jax.sharding import make_mesh, replicate
from chemeleon_jax.types import TrainState

CONFIG = {"kind": "ldm", "dit": {"width": 4}, "condition": None, "latent_std": 0.1}
TX = optax.adamw(1e-3)


def small_params(seed=0):
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(3, 2)).astype(np.float32)
    return {"dit": {"x_embedder": {"kernel": kernel, "bias": np.zeros(2, np.float32)}}}


def small_vae():
    return {"vae": {"quant_conv": {"kernel": np.ones((2, 2), np.float32)}}}


def trained_state(steps=3):
    params = jax.tree.map(jnp.asarray, small_params())
    opt_state, ema = TX.init(params), params
    for i in range(steps):
        grads = jax.tree.map(lambda x, i=i: x + jnp.float32(i), params)
        updates, opt_state = TX.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        ema = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, ema, params)
    return TrainState(jnp.array(steps), params, opt_state, ema)


def blank_state():
    return jax.tree.map(jnp.zeros_like, trained_state(0))


def assert_identical(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.array_equal(np.asarray(x), np.asarray(y))


# ------------------------------------------------------------------ model directories


def test_a_model_comes_back_as_it_was(tmp_path):
    params = small_params() | small_vae()
    save_model(tmp_path / "m", params, CONFIG)
    loaded = load(tmp_path / "m")
    assert_identical(loaded.params, params)
    assert loaded.config == CONFIG
    assert sorted(f.name for f in (tmp_path / "m").iterdir()) == [
        "config.json",
        "params.safetensors",
    ]


def test_half_precision_is_storage_only(tmp_path):
    save_model(tmp_path, small_params(), CONFIG, dtype=np.float16)
    kernel = load(tmp_path).params["dit"]["x_embedder"]["kernel"]
    expected = small_params()["dit"]["x_embedder"]["kernel"]
    assert kernel.dtype == np.float32
    assert np.array_equal(kernel, expected.astype(np.float16).astype(np.float32))


def test_saving_again_replaces(tmp_path):
    save_model(tmp_path, small_params(0), CONFIG)
    save_model(tmp_path, small_params(1), CONFIG)
    assert_identical(load(tmp_path).params, small_params(1))


def test_a_failed_save_leaves_the_old_model(tmp_path, monkeypatch):
    save_model(tmp_path, small_params(0), CONFIG)

    def full_disk(flat, path):
        path.write_bytes(b"half a file")
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_model(tmp_path, small_params(1), CONFIG)
    assert_identical(load(tmp_path).params, small_params(0))
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
        load(tmp_path)


def test_damage_is_found_without_a_checksum_too(tmp_path):
    save_model(tmp_path, small_params(), CONFIG)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert load(tmp_path).config == CONFIG
    file = tmp_path / "params.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"params\.safetensors: damaged"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"kind'])
def test_a_damaged_config_is_named(tmp_path, text):
    save_model(tmp_path, small_params(), CONFIG)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json: not the config of a model"):
        load(tmp_path)


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.*no such file.*hub:NAME"):
        load(tmp_path / "nowhere")
    save_model(tmp_path, small_params(), CONFIG)
    (tmp_path / "params.safetensors").unlink()
    with pytest.raises(UserError, match=r"params\.safetensors: no such file"):
        load(tmp_path)


def test_a_torch_checkpoint_is_sent_to_the_converter():
    with pytest.raises(UserError, match="python -m convert_checkpoints some/ldm.ckpt"):
        load("some/ldm.ckpt")


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
    with pytest.raises(UserError, match="mini:vae, mini:ldm, mini:ldm_cond"):
        load("mini:ldn")
    with pytest.raises(UserError, match="mp_20_ldm_base") as error:
        load("hub:mp_20_ldm")
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
        load("hub:mp_20_vae")
    assert "convert_checkpoints FILE" in str(error.value)
    assert not (empty_cache / "chemeleon_jax").exists()


def test_hub_models_are_converted_once(empty_cache, monkeypatch):
    """An LDM is converted beside its VAE, whose head counts only the VAE's file has."""
    converted = []

    def convert(paths, out_dir):
        converted.append([str(path) for path in paths])
        for path in paths:
            folder = out_dir / path.stem if len(paths) > 1 else out_dir
            save_model(folder, small_params(), CONFIG)

    monkeypatch.setattr(hub, "_download", lambda name: Path(Path(hub.FILES[name]).name))
    monkeypatch.setitem(
        sys.modules, "convert_checkpoints", types.SimpleNamespace(convert=convert)
    )
    for _ in range(2):
        assert_identical(load("hub:alex_mp_20_ldm_rl").params, small_params())
    load("hub:alex_mp_20_vae")
    load("hub:mp_20_vae")
    assert converted == [
        ["ldm_rl_dng_tuor5vgd.ckpt", "dng_j1jgz9t0_v1.ckpt"],
        ["dng_m4owq4i5_v0.ckpt"],
    ]


# -------------------------------------------------------------------- run directories


def test_a_resumed_state_is_bit_identical(tmp_path):
    state = trained_state()
    with RunCheckpoints(tmp_path) as run:
        assert run.restore_latest(blank_state()) is None
        run.save(3, state)
    with RunCheckpoints(tmp_path) as run:
        assert run.latest_step == 3
        assert_identical(run.restore_latest(blank_state()), state)


def test_a_state_moves_between_numbers_of_devices(tmp_path):
    state = trained_state()
    with RunCheckpoints(tmp_path) as run:
        run.save(3, replicate(state, make_mesh(4)))
        for devices in (1, 2, 4):
            target = replicate(blank_state(), make_mesh(devices))
            restored = run.restore_latest(target)
            assert_identical(restored, state)
            assert len(restored.params["dit"]["x_embedder"]["kernel"].devices()) == (
                devices
            )


def test_latest_and_best_are_kept(tmp_path):
    """Guards against Orbax's best_fn with max_to_keep, which deletes the newest."""
    scores = {1: 0.1, 2: 0.9, 3: 0.3, 4: float("nan"), 5: None, 6: 0.2}
    with RunCheckpoints(tmp_path) as run:
        for step, score in scores.items():
            run.save(step, {"x": jnp.full(2, step)}, score=score)
        assert run.latest_step == 6
        assert run.best_step == 2
    kept = sorted(int(d.name) for d in (tmp_path / "checkpoints").iterdir())
    assert kept == [2, 5, 6]
    with RunCheckpoints(tmp_path) as run:
        target = {"x": jnp.zeros(2, int)}
        assert run.restore_best(target)["x"].tolist() == [2, 2]
        assert run.restore_latest(target)["x"].tolist() == [6, 6]


def test_a_state_of_another_shape_is_refused(tmp_path):
    with RunCheckpoints(tmp_path) as run:
        run.save(1, {"x": jnp.zeros(2)})
        with pytest.raises(UserError, match="checkpoints/1.*--workdir"):
            run.restore_latest({"x": jnp.zeros(3)})
        with pytest.raises(UserError, match="checkpoints/1"):
            run.restore_latest({"y": jnp.zeros(2)})


def test_a_run_directory_loads_as_its_latest_policy(tmp_path):
    state = trained_state()
    start = checkpoints.Checkpoint(small_params() | small_vae(), CONFIG)
    write_run_info(tmp_path, {"seed": 0}, start)
    with RunCheckpoints(tmp_path) as run:
        assert_identical(load(tmp_path).params, start.params)
        run.save(2, trained_state(2))
        run.save(3, state)
    for weights, policy in (("raw", state.params), ("ema", state.ema_params)):
        loaded = load(tmp_path, weights=weights)
        assert loaded.config == CONFIG
        assert_identical(loaded.params, jax.tree.map(np.asarray, policy) | small_vae())


def test_the_best_policy_of_a_run(tmp_path):
    start = checkpoints.Checkpoint(small_params() | small_vae(), CONFIG)
    write_run_info(tmp_path, {"seed": 0}, start)
    with RunCheckpoints(tmp_path) as run:
        run.save(1, trained_state(1))
        with pytest.raises(UserError, match="no state of this run was validated"):
            load(tmp_path, step="best")
        run.save(2, best := trained_state(2), score=0.5)
        run.save(3, trained_state(3), score=-0.5)
    policy = jax.tree.map(np.asarray, best.params)
    assert_identical(load(tmp_path, step="best").params, policy | small_vae())


def test_run_info_says_how_the_run_was_started(tmp_path):
    start = checkpoints.Checkpoint(small_params(), CONFIG)
    write_run_info(tmp_path, {"seed": 7, "rl": {"clip_ratio": 0.1}}, start)
    config = json.loads((tmp_path / "config.json").read_text())
    info = json.loads((tmp_path / "run.json").read_text())
    assert config == {"seed": 7, "rl": {"clip_ratio": 0.1}}
    assert info["reference_sha256"] == params_digest(start.params)
    assert info["packages"]["jax"] == jax.__version__
    write_run_info(tmp_path, {"seed": 8}, start)  # continuing is fine
    other = checkpoints.Checkpoint(small_params(1), CONFIG)
    with pytest.raises(UserError, match="started from another model"):
        write_run_info(tmp_path, {"seed": 8}, other)


def test_a_damaged_state_is_named(tmp_path):
    write_run_info(tmp_path, {}, checkpoints.Checkpoint(small_params(), CONFIG))
    with RunCheckpoints(tmp_path) as run:
        run.save(3, trained_state())
    for file in (tmp_path / "checkpoints" / "3" / "default").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(UserError, match="checkpoints/3"):
        load(tmp_path)
    with (
        RunCheckpoints(tmp_path) as run,
        pytest.raises(UserError, match="checkpoints/3"),
    ):
        run.restore_latest(blank_state())

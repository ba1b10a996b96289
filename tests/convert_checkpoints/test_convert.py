"""The converter: recorded files, other sizes, bad files."""

import json

import numpy as np
import paths
import pytest
from chemeleon2_files import (
    dit_shapes,
    random,
    vae_shapes,
    write_ldm,
    write_vae,
)
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file
from torch_files import write

from chemeleon_jax.devices.sharding import make_mesh, replicate
from chemeleon_jax.models.layers import Attention
from chemeleon_jax.models.loading import load_checkpoint
from convert_checkpoints import CheckpointError, convert, read_checkpoint
from convert_checkpoints.__main__ import main
from convert_checkpoints.tables import ATTENTION, convert_tensor

FIXTURES = paths.FIXTURES / "chemeleon2"
VAE_SIZES = {"width": 12, "decoder_width": 18, "mlp": 20, "layers": 1, "latent": 4}


@pytest.fixture
def vae():
    return random(vae_shapes(**VAE_SIZES))


@pytest.fixture
def dit():
    return random(dit_shapes(width=10, depth=1, latent=4), "denoiser.")


def ldm_state(dit, vae):
    return dit | {f"vae.{name}": value for name, value in vae.items()}


# ----------------------------------------------------------------------- recorded files


def test_recorded_files(tmp_path, capsys):
    """Sizes as in meta.json; kinds and conditions as the README of the files says."""
    names = ("vae", "ldm_null", "ldm_fixed_sigma", "ldm_cond", "predictor")
    files = [f"{FIXTURES}/{name}.ckpt" for name in names]
    assert main([*files, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "LDM; DiT 2 x 48, 4 heads, learned sigma; unconditional" in said
    assert "fixed sigma" in said
    assert "targets dft_band_gap, bulk_modulus" in said
    configs = {
        name: json.loads((tmp_path / name / "config.json").read_text())
        for name in names
    }
    assert configs["vae"]["vae"]["encoder"]["width"] == 32
    assert configs["vae"]["vae"]["decoder"]["width"] == 40
    assert configs["vae"]["vae"]["decoder"]["activation"] == "gelu_exact"
    assert configs["ldm_null"]["dit"]["learn_sigma"]
    assert not configs["ldm_fixed_sigma"]["dit"]["learn_sigma"]
    assert configs["ldm_null"]["latent_std"] == pytest.approx(1.37)
    specs = configs["ldm_cond"]["condition"]["specs"]
    assert [s["kind"] for s in specs] == ["float", "composition", "chemical_system"]
    assert specs[0] == {
        "name": "dft_band_gap",
        "kind": "float",
        "mean": 0.797,
        "std": 1.408,
    }
    assert all(config["source"]["sha256"] for config in configs.values())


def test_saved_restored_and_placed_bit_for_bit(tmp_path):
    (result,) = convert([f"{FIXTURES}/ldm_cond.ckpt"], tmp_path).values()
    loaded = load_checkpoint(tmp_path).params
    flat = flatten_dict(loaded, sep="/")
    converted = flatten_dict(result.params, sep="/")
    assert flat.keys() == converted.keys()
    for devices in (1, 4):
        placed = flatten_dict(replicate(loaded, make_mesh(devices)), sep="/")
        for name, value in converted.items():
            np.testing.assert_array_equal(flat[name], value)
            np.testing.assert_array_equal(placed[name], value)


def test_the_same_weights_land_where_they_belong(tmp_path):
    """A kernel is a transpose; q, k, v are thirds of the packed projection."""
    convert([f"{FIXTURES}/vae.ckpt"], tmp_path)
    params = flatten_dict(load_checkpoint(tmp_path).params, sep="/")
    state = read_checkpoint(f"{FIXTURES}/vae.ckpt")["state_dict"]
    np.testing.assert_array_equal(
        params["vae/moments/kernel"], state["quant_conv.weight"].T
    )
    packed = state["decoder.transformer.layers.1.self_attn.in_proj_weight"]
    np.testing.assert_array_equal(
        params["vae/decode_atoms/transformer/attention_1/key/kernel"], packed[40:80].T
    )


# ------------------------------------------------------------------------- other sizes


def test_other_sizes(tmp_path, vae, dit):
    write_vae(tmp_path / "vae.ckpt", vae)
    write_ldm(tmp_path / "ldm.ckpt", ldm_state(dit, vae), rl=True)
    results = convert([tmp_path / "ldm.ckpt", tmp_path / "vae.ckpt"], tmp_path / "out")
    ldm = results[tmp_path / "out" / "ldm"].config
    # Of three heads torch has no fused encoder layer, whose GELU is the exact one.
    part = {"layers": 1, "heads": 3, "mlp_width": 20, "activation": "gelu"}
    assert ldm["vae"] == {
        "latent_channels": 4,
        "encoder": {"width": 12, **part},
        "decoder": {"width": 18, **part},
    }
    assert ldm["dit"] == {
        "depth": 1,
        "width": 10,
        "heads": 5,
        "mlp_ratio": 4,
        "latent_channels": 4,
        "learn_sigma": True,
    }
    assert ldm["latent_std"] == 0.5
    assert (tmp_path / "out" / "vae" / "params.safetensors").is_file()


def test_packed_attention_computes_the_same(vae):
    """One attention layer by NumPy from the packed tensors, as torch documents it."""
    width, heads, name = 12, 3, "encoder.transformer.layers.0.self_attn"
    weights = {k.removeprefix(name + "."): v for k, v in vae.items() if name in k}
    params = {}
    for key, value in weights.items():
        params |= convert_tensor({"a": ("a", ATTENTION)}, f"a.{key}", value)
    tree = {}
    for path, value in params.items():
        tree.setdefault(path.split("/")[1], {})[path.split("/")[2]] = value

    x = np.random.default_rng(1).normal(size=(5, width)).astype(np.float32)
    q, k, v = np.split(x @ weights["in_proj_weight"].T + weights["in_proj_bias"], 3, -1)
    q, k, v = (y.reshape(5, heads, -1).swapaxes(0, 1) for y in (q, k, v))
    scores = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(width / heads))
    mixed = (
        (scores / scores.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(5, width)
    )
    expected = mixed @ weights["out_proj.weight"].T + weights["out_proj.bias"]
    mask = np.ones((1, 5), bool)
    actual = Attention(heads).apply({"params": tree}, x[None], mask)[0]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_moving_average(tmp_path, vae, dit):
    """A bare list in parameters() order, of all of them or without the frozen VAE."""
    write_vae(tmp_path / "vae.ckpt", vae)
    state = ldm_state(dit, vae)
    for averaged in (state, dit):
        shadow = [value + 1 for value in averaged.values()]
        path = write_ldm(
            tmp_path / "ldm.ckpt", state, ema_state={"shadow_params": shadow}
        )
        convert([path], tmp_path / "raw")
        convert([path], tmp_path / "ema", weights="ema")
        raw, ema = (
            flatten_dict(load_checkpoint(tmp_path / w).params, sep="/")
            for w in ("raw", "ema")
        )
        np.testing.assert_array_equal(
            ema["dit/final/kernel"], raw["dit/final/kernel"] + 1
        )
        moved = ema["vae/moments/kernel"] - raw["vae/moments/kernel"]
        assert np.allclose(moved, 1 if averaged is state else 0, atol=1e-6)


def test_a_conversion_replaces_no_other_model_and_no_run(tmp_path, vae):
    path, out = write_vae(tmp_path / "vae.ckpt", vae), tmp_path / "out"
    convert([path], out)
    convert([path], out)  # an earlier one
    (out / "config.json").write_text('{"kind": "vae"}')
    with pytest.raises(CheckpointError, match="a model that was not converted"):
        convert([path], out)
    (out / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="is a run"):
        convert([path], out)
    assert (out / "config.json").read_text() == '{"kind": "vae"}'


def test_moving_average_that_is_not_there(tmp_path, vae):
    path = write_vae(tmp_path / "vae.ckpt", vae)
    with pytest.raises(CheckpointError, match="no moving average"):
        convert([path], tmp_path / "out", weights="ema")


def test_plain_state_dict_and_safetensors(tmp_path, vae):
    """Without hyper-parameters the head counts have to be given, and are asked for."""
    write(tmp_path / "vae.pt", vae)
    save_file(vae, tmp_path / "vae.safetensors")
    heads = {"encoder": 2, "decoder": 3}
    for name in ("vae.pt", "vae.safetensors"):
        with pytest.raises(CheckpointError, match="--heads encoder=NUMBER"):
            convert([tmp_path / name], tmp_path / "out")
        (result,) = convert([tmp_path / name], tmp_path / "out", heads=heads).values()
        assert result.config["vae"]["encoder"]["heads"] == 2
        assert result.config["vae"]["decoder"]["heads"] == 3


# ---------------------------------------------------------------- where head counts are


def test_head_counts_of_an_ldm_come_from_its_own_vae_only(tmp_path, vae, dit):
    """A VAE file of the same shapes and other weights may have other heads."""
    path = write_ldm(tmp_path / "ldm.ckpt", ldm_state(dit, vae))
    with pytest.raises(CheckpointError, match="convert it together with the VAE"):
        convert([path], tmp_path / "out")
    other = random(vae_shapes(**VAE_SIZES))
    write_vae(tmp_path / "other.ckpt", other)
    with pytest.raises(CheckpointError, match="convert it together with the VAE"):
        convert([path, tmp_path / "other.ckpt"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    write_vae(tmp_path / "vae.ckpt", vae)  # beside it, under the name in the LDM file
    (result,) = convert([path], tmp_path / "out").values()
    assert result.config["vae"]["encoder"]["heads"] == 3


def test_contradicting_or_impossible_head_counts(tmp_path, vae):
    path = write_vae(tmp_path / "vae.ckpt", vae)
    with pytest.raises(CheckpointError, match="encoder has 3 heads by the file, not 4"):
        convert([path], tmp_path / "out", heads={"encoder": 4})
    path = write(tmp_path / "plain.pt", vae)
    with pytest.raises(CheckpointError, match="width of 12 does not fit 5 heads"):
        convert([path], tmp_path / "out", heads={"encoder": 5, "decoder": 3})
    assert main([str(path), "--out", str(tmp_path), "--heads", "encoder=3"]) == 2


# --------------------------------------------------------------------------- bad files


def refused(tmp_path, state, match, **options):
    path = write_vae(tmp_path / "bad.ckpt", state, **options)
    with pytest.raises(CheckpointError, match=match) as error:
        convert([path], tmp_path / "out")
    assert str(path) in str(error.value)
    assert not (tmp_path / "out").exists()


def test_missing_and_superfluous_tensors_are_named(tmp_path, vae):
    short = {k: v for k, v in vae.items() if k != "encoder.transformer.norm.bias"}
    refused(
        tmp_path, short, "no source tensor fills: vae/encode_atoms/transformer/norm/b"
    )
    refused(tmp_path, vae | random({"encoder.extra": (3,)}), "encoder.extra")
    refused(
        tmp_path,
        vae | random(dict.fromkeys(["decoder.lattice_head.bias"], (6,))),
        "model does not have: vae/decode_atoms/lattice_head/bias",
    )


def test_wrong_shapes_are_named(tmp_path, vae):
    wrong = vae | random({"decoder.atom_types_head.bias": (99,)})
    refused(tmp_path, wrong, r"atom_types_head/bias has shape \(99,\), not \(100,\)")
    wrong = vae | random({"quant_conv.weight": (8,)})
    refused(tmp_path, wrong, "quant_conv.weight")


def test_values_that_no_model_has(tmp_path, vae):
    name = "quant_conv.weight"
    refused(tmp_path, vae | {name: np.full((8, 12), np.nan, np.float32)}, "not finite")
    refused(tmp_path, vae | {name: np.ones((8, 12), np.int64)}, "int64")
    refused(tmp_path, vae | {name: 3}, "not a plain tensor")


def test_settings_that_the_models_here_do_not_have(tmp_path, vae, dit):
    refused(tmp_path, vae, "tanh-GELU", activation="none")
    write_vae(tmp_path / "vae.ckpt", vae)
    path = write_ldm(
        tmp_path / "ldm.ckpt", ldm_state(dit, vae), diffusion={"diffusion_steps": 500}
    )
    with pytest.raises(CheckpointError, match="diffusion_steps=500"):
        convert([path], tmp_path / "out")


def test_other_kinds_of_files(tmp_path):
    path = write(tmp_path / "a.pt", random({"layer.weight": (2, 2)}))
    with pytest.raises(CheckpointError, match="no Chemeleon2 VAE, LDM or predictor"):
        convert([path], tmp_path / "out")
    path = write(tmp_path / "a.pt", random({"denoiser.lora_A.weight": (2, 2)}))
    with pytest.raises(CheckpointError, match="LoRA"):
        convert([path], tmp_path / "out")


def test_two_files_of_one_name(tmp_path, vae):
    (tmp_path / "b").mkdir()
    paths = [
        write_vae(folder / "vae.ckpt", vae) for folder in (tmp_path, tmp_path / "b")
    ]
    with pytest.raises(CheckpointError, match="same name"):
        convert(paths, tmp_path / "out")


def test_reading_needs_no_jax():
    """Workers and tools that only read a file must not start JAX."""
    import subprocess
    import sys

    code = (
        "import sys; from convert_checkpoints import read_checkpoint\n"
        f"read_checkpoint('{FIXTURES}/vae.ckpt'); print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr

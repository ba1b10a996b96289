"""Verification against the recorded numbers, and of the verification itself."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import optax
import paths
import pytest

from chemeleon_jax.models.optimizer import make_optimizer
from convert_checkpoints import CheckpointError
from convert_checkpoints.comparison import Recording
from convert_checkpoints.verify import main, verify

FIXTURES = paths.FIXTURES / "chemeleon2"


def keys_of_a_short_verification(key: str) -> bool:
    """All but two LDMs, of the third its inputs and one run, which has gradients."""
    ldm, _, rest = key.partition("/")
    return not ldm.startswith("ldm_") or (
        ldm == "ldm_cond" and not rest.startswith(("ddim10", "ddpm8"))
    )


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A recording that takes seconds: models, losses, rewards and one guided run."""
    folder = tmp_path_factory.mktemp("short")
    for name in ("vae.ckpt", "ldm_cond.ckpt", "predictor.ckpt", "meta.json"):
        shutil.copy(FIXTURES / name, folder)
    with np.load(FIXTURES / "golden.npz") as golden:
        arrays = {k: golden[k] for k in golden.files if keys_of_a_short_verification(k)}
    np.savez(folder / "golden.npz", **arrays)
    return folder, arrays


def test_a_short_recording_agrees(short):
    folder, arrays = short
    rows = verify(folder)
    assert [row.key for row in rows] == list(arrays)
    assert not [str(row) for row in rows if not row.ok]


def test_changes_show_where_they_should(short, tmp_path, capsys):
    """One array of each kind changed by 1 %: outputs fail alone, inputs do not pass."""
    folder, arrays = short
    run = "ldm_cond/ddim5_eta0.3"
    outputs = [
        "batch/lengths",
        "vae/encoder_x",
        "vae/rec_atom_types",
        "vae/loss/loss_kl",
        "predictor/bulk_modulus",
        "ldm_cond/denoise_cfg",
        "ldm_cond/train_t0/vb",
        f"{run}/timestep_map",
        f"{run}/gen_angles",
        f"{run}/loss/kl_div",
        f"{run}/grad/blocks.1.mlp.fc2.bias",
        f"{run}/grad_norm",
        f"{run}/after_adamw/x_embedder.weight",
        "reward/std",
        "reward/mmd_r_indiv",
    ]
    changed = arrays | {key: arrays[key] * 1.01 for key in outputs}
    changed["ldm_cond/unheard_of"] = np.zeros(3)
    for file in folder.iterdir():
        shutil.copy(file, tmp_path)
    np.savez(tmp_path / "golden.npz", **changed)
    assert main([str(tmp_path)]) == 1
    printed = capsys.readouterr()
    failed = [line.removeprefix("failed: ") for line in printed.err.splitlines()]
    assert sorted(failed) == sorted([*outputs, "ldm_cond/unheard_of"])
    assert "not compared" in printed.out


@pytest.mark.slow
def test_the_whole_recording_agrees():
    assert main([str(FIXTURES)]) == 0


def test_optimiser_steps_as_torch_takes_them():
    """Clip to norm 1, then AdamW: numbers by torch 2.13 (the recording has none).

    First gradient (3, 4), which is clipped; then (0.3, -0.1), which is not.
    """
    weights = jnp.array([1.0, -2.0])
    optimizer = make_optimizer(1e-2)
    state = optimizer.init(weights)
    for gradient, expected in (
        ((3.0, 4.0), (0.99000001, -2.00999999)),
        ((0.3, -0.1), (0.980678201, -2.015725374)),
    ):
        updates, state = optimizer.update(jnp.array(gradient), state, weights)
        weights = optax.apply_updates(weights, updates)
        np.testing.assert_allclose(weights, expected, rtol=1e-6)


# ------------------------------------------------------------------------ the recording


def recording(tmp_path, **arrays) -> Recording:
    np.savez(tmp_path / "golden.npz", **arrays)
    return Recording(tmp_path / "golden.npz")


def test_tolerance_is_relative_to_the_largest_magnitude(tmp_path):
    rec = recording(tmp_path, x=np.array([100.0, 0.0]))
    rec.compare("x", [100.0, 0.0009], 1e-5)
    assert rec.rows["x"].ok and rec.rows["x"].max_rel == pytest.approx(9e-6)
    rec.compare("x", [100.0, 0.0011], 1e-5)
    assert not rec.rows["x"].ok


def test_a_wider_tolerance_says_why(tmp_path):
    rec = recording(tmp_path, x=np.ones(2))
    rec.compare("x", [1.0, 1.001], 1e-5, wider=(1e-2, "because"))
    assert rec.rows["x"].ok and rec.rows["x"].note == "because"
    rec.compare("x", [1.0, 1.1], 1e-5, wider=(1e-2, "because"))
    assert not rec.rows["x"].ok


def test_what_is_not_finite_must_be_so_in_both(tmp_path):
    rec = recording(tmp_path, x=np.array([1.0, np.nan]))
    rec.compare("x", [1.0, np.inf])
    assert rec.rows["x"].ok
    rec.compare("x", [1.0, 2.0])
    assert not rec.rows["x"].ok


def test_shapes_types_and_missing_keys(tmp_path):
    rec = recording(tmp_path, x=np.ones(3), t=np.array([3.03, 5.05]))
    rec.compare("x", np.ones((3, 1)))
    assert "shape (3, 1)" in rec.rows["x"].note
    rec.integers("t")
    assert not rec.rows["t"].ok  # a cast would have hidden the change
    with pytest.raises(CheckpointError, match="lacks 'y'"):
        rec.input("y")


def test_every_array_has_a_row(tmp_path):
    rec = recording(tmp_path, a=np.ones(2), b=np.ones(2), c=np.array([np.nan]))
    rec.input("a")
    rec.input("c")
    ok = {row.key: row.ok for row in rec.table()}
    assert ok == {"a": True, "b": False, "c": False}


def test_bad_directories(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "golden.npz" in capsys.readouterr().err
    np.savez(tmp_path / "golden.npz", x=np.array([{}], dtype=object))  # a pickle
    (tmp_path / "meta.json").write_text(json.dumps({}))
    assert main([str(tmp_path)]) == 2

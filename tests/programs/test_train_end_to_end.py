"""The main job on tiny models: few crystals, few steps, all the parts."""

import contextlib
import importlib
import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from pymatgen.core import Structure

from chemeleon_jax.errors import UserError
from chemeleon_jax.models import buckets, store
from chemeleon_jax.models.loading import load_checkpoint
from chemeleon_jax.models.optimizer import moving_average
from chemeleon_jax.potentials import loading
from chemeleon_jax.potentials.hull import Hull
from chemeleon_jax.potentials.types import Potential
from chemeleon_jax.rewards import judges
from chemeleon_jax.rewards.audit import Audit
from chemeleon_jax.rewards.recent import load_recent
from chemeleon_jax.runs.states import RunCheckpoints
from chemeleon_jax.runs.tracking import read_scalars
from chemeleon_jax.train import train


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Where a VAE and a denoiser are, as config fields."""
    folder = tmp_path_factory.mktemp("models")
    store.save_model(folder / "vae", *tiny.vae_of_valid_cells())
    store.save_model(folder / "ldm", *tiny.ldm_checkpoint())
    return {f"{kind}_ckpt_path": str(folder / kind) for kind in ("vae", "ldm")}


def config(name, models, preset="unrelaxed", **changes):
    small = importlib.import_module(f"configs.{name}").get_config(preset)
    small.update(
        {
            "num_iterations": 3,
            "checkpoint_every": 1,
            "validate_every": 2,
            "validation_samples": 8,
            "rl": {"num_group_samples": 4, "num_inner_batch": 1},
            "data": {"batch_size": 2},
            "sampling": {"sampling_steps": 5},
            "reward": {"workers": 1},
        }
    )
    small.update(models | changes)
    return small


@pytest.fixture(scope="module")
def compiled():
    """The names of the programs that the run below compiles, in order."""
    return []


@pytest.fixture(scope="module")
def said():
    """What the run below prints."""
    return io.StringIO()


@pytest.fixture(scope="module")
def run(tmp_path_factory, models, compiled, said):
    """A finished run of the main job, its crystals at two widths, 12 and 20."""
    workdir = tmp_path_factory.mktemp("dng")

    def listen(event, _, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(about["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            patch.setattr(buckets, "WIDTH_STEP", 12)
            train(config("rl_dng", models), str(workdir))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return workdir


def test_the_promised_tags_are_written(run):
    curves = read_scalars(run)
    for tag in (
        "reward kl_div kl_old clip_fraction loss grad_norm ratio_first ratio_max "
        "creativity energy structure_diversity composition_diversity "
        "valid unique novel metastable msun "
        "elements_effective prototypes_effective frechet_base frechet_reference "
        "element_growth element_grown_most diluted alarm/element_growth alarm/diluted"
    ).split():
        steps, values = curves[f"train/{tag}"]
        np.testing.assert_array_equal(steps, [0, 1, 2], err_msg=tag)
        assert np.isfinite(values).all(), tag
    np.testing.assert_array_equal(curves["val/msun"][0], [1, 2])
    assert {"time/sample", "time/reward", "time/update", "time/pictures"} <= set(curves)
    np.testing.assert_allclose(curves["train/ratio_first"][1], 1.0, atol=1e-6)
    # The policy moves away from the original, from nothing.
    kl = curves["train/kl_div"][1]
    assert kl[0] < 1e-7 < kl[-1]


def test_the_run_says_what_it_is_how_it_goes_and_what_comes_next(run, said, models):
    lines = said.getvalue().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("iteration 1/3"))
    about = "\n".join(lines[:first])
    for words in (
        models["ldm_ckpt_path"],
        "8 per iteration: 2 groups of 4, 5 ddim steps",
        "3 energy + 2 creativity",
        f"{run}, iterations: 3",
        f"tensorboard --logdir {run.parent}",
        "compiling; the first iteration takes",
    ):
        assert words in about
    assert re.search("reward.* valid.* unique.* metastable.* MSUN.* KL", lines[first])
    assert "left" in said.getvalue()
    assert lines[-4:] == [
        f"{run} holds the policy. Next:",
        f"  python -m chemeleon_jax.sample --checkpoint={run} --base "
        f"--out={run}/samples",
        f"  python -m chemeleon_jax.evaluate {run}/samples",
        f"  python -m chemeleon_jax.report {run}",
    ]


def test_the_large_programs_compile_once(run, compiled):
    """The update too, which compiles before there is anything to learn from."""
    assert compiled.count("jit(sample_on_mesh)") == 1
    assert compiled.count("jit(train_step)") == 1


def test_a_run_holds_what_it_was_and_what_it_made(run):
    base, tuned = load_checkpoint(run / "model"), load_checkpoint(run)
    assert tuned.config["kind"] == "ldm" and "vae" in tuned.params
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()), base.params["dit"], tuned.params["dit"]
    )
    assert max(jax.tree.leaves(moved)) > 1e-6
    with np.load(run / "crystals" / "iteration_000002.npz") as crystals:
        assert crystals["atom_types"].shape == (8, 20)
        assert np.isfinite(crystals["component_energy"]).all()


def test_the_main_job_relaxes_and_asks_two_potentials(models, tmp_path):
    """With few steps of relaxation."""
    steps = {"components": {"energy": {"relax_steps": 2}}, "workers": 1}
    small = config("rl_dng", models, "mini", reward=steps, validate_every=0)
    small.num_iterations = 2
    train(small, str(tmp_path))
    curves = read_scalars(tmp_path)
    for tag in (
        "metastable/chgnet",
        "metastable/sevennet-l3i5:uncorrected",
        "disagreement",
        "rmsd",
    ):
        np.testing.assert_array_equal(curves[f"train/{tag}"][0], [0, 1], err_msg=tag)
    assert "train/failures/energy/disputed" in curves
    with np.load(tmp_path / "crystals" / "iteration_000001.npz") as arrays:
        valid, opinions = (
            arrays["valid"],
            arrays["e_above_hull_sevennet-l3i5:uncorrected"],
        )
        assert np.isfinite(opinions[valid]).any()
        assert (arrays["relaxed_lengths"] != arrays["lengths"])[valid].any()


def test_recent_iterations_that_are_missing_are_named(run, tmp_path):
    size = {"start": 3, "batch_size": 8, "max_atoms": 20}
    found = load_recent(run, 2, **size).crystals
    assert found.mask.shape == (16, 20) and found.mask.any()
    with pytest.raises(UserError, match=r"iteration_000001\.npz cannot be read.*= 2"):
        load_recent(tmp_path, 2, **size)
    assert load_recent(tmp_path, 0, **size).crystals is None
    (tmp_path / "crystals").mkdir()
    whole = (run / "crystals" / "iteration_000001.npz").read_bytes()
    (tmp_path / "crystals" / "iteration_000001.npz").write_bytes(whole[:-200])
    with pytest.raises(UserError, match=r"iteration_000001\.npz cannot be read"):
        load_recent(tmp_path, 2, **size)


def test_the_average_starts_short():
    """By hand: policies 3, 6, 9 after a base of 0; decays 1/2, 3/5 and 3/5."""
    ema = jnp.zeros(1)
    for iteration, by_hand in enumerate((1.5, 3.3, 5.58)):
        policy = jnp.full(1, 3.0 * iteration + 3)
        ema = moving_average(ema, policy, jnp.array(iteration), 0.6, 2)
        np.testing.assert_allclose(ema, by_hand, rtol=1e-6)
    none = moving_average(ema, policy, jnp.array(50), 0.0, 2)
    np.testing.assert_array_equal(none, policy)


def test_a_faulty_custom_reward_ends_the_run_after_ten_crystals(
    tmp_path, models, caplog
):
    """The first eight crystals do not end it."""
    faulty = config("rl_custom_reward", models, validate_every=0)
    faulty.reward.components.custom.function = "custom_rewards:raises"
    faulty.checkpoint_every = 20
    cif = tmp_path / "fault_custom.cif"
    with pytest.raises(UserError, match=f"10 crystals in a row.*{cif}.*no such phonon"):
        train(faulty, str(tmp_path))
    assert len(Structure.from_file(cif)) <= 20
    assert 'raise RuntimeError("no such phonon")' in caplog.text
    curves = read_scalars(tmp_path)
    valid = 8 * curves["train/valid"][1]
    np.testing.assert_allclose(curves["train/failures/custom/raised"][1], valid)
    assert 0 < valid[0] < 10  # of the first iteration, and none after the second
    assert np.isfinite(curves["train/custom"][1]).all()
    # What was done until then is kept.
    with RunCheckpoints(tmp_path) as saved:
        assert saved.latest_step == 1


@pytest.fixture
def judge(monkeypatch):
    """A judge for whom all lies on the hull; after the original model, so far above.

    The reward's potential is always content.
    """
    mood = {"now": 0.0, "later": 0.0}

    def content(crystals):
        zero = jnp.zeros(len(crystals.mask))
        return zero, zero.astype(jnp.int32)

    def moody(crystals):
        zero, ok = content(crystals)
        return jax.pure_callback(lambda x: x + np.float32(mood["now"]), zero, zero), ok

    for name, energies in {"content": content, "moody": moody}.items():
        potential = Potential(name, name, energies)
        monkeypatch.setitem(loading.LOADERS, name, lambda *_, p=potential: p)
    elements = Hull(np.eye(118, dtype=int), np.zeros(118))
    monkeypatch.setattr(judges, "load_hull", lambda *_: elements)
    start = Audit.start

    def start_and_turn(self, validate):
        mood["now"] = 0.0
        found = start(self, validate)
        mood["now"] = mood["later"]
        return found

    monkeypatch.setattr(Audit, "start", start_and_turn)
    return mood


def test_a_judge_that_sees_more_and_more_less_ends_the_run(
    tmp_path, models, judge, caplog, capfd
):
    """After two iterations all valid crystals are stable by the reward, none by it.

    Continued with a judge that is content again, the run ends by itself.
    """
    audited = config("rl_dng", models)
    audited.reward.potential = "content"
    audited.judge.update({"potential": "moody", "relax_steps": 0, "max_gap": 0.3})
    judge["later"] = 1.0
    with pytest.raises(UserError, match="iteration 2: the gap .*max_gap = 0.3") as end:
        train(audited, str(tmp_path))
    assert f"{tmp_path}@best the one that the judge likes best" in str(end.value)
    assert re.search("judge_gap is .*and 0.0% by moody; of the original", caplog.text)
    assert re.search(
        r"the original model's crystals .* by moody", capfd.readouterr().out
    )
    curves = read_scalars(tmp_path)
    valid = curves["val/valid"][1]
    assert valid[0] > 0.3
    np.testing.assert_allclose(curves["val/judge/gap"][1], valid)
    np.testing.assert_array_equal(curves["val/judge/metastable"][1], [0.0])
    np.testing.assert_array_equal(curves["val/alarm/judge_gap"][1], [1.0])
    with RunCheckpoints(tmp_path) as saved:
        assert saved.latest_step == saved.best_step == 2
    judge["later"] = 0.0
    train(audited, str(tmp_path))
    curves = read_scalars(tmp_path)
    np.testing.assert_array_equal(curves["val/judge/gap"][0], [1, 2])
    assert curves["val/judge/gap"][1][1] == 0.0
    with RunCheckpoints(tmp_path) as saved:  # whatever the reward says
        assert saved.best_step == 3
    assert load_checkpoint(f"{tmp_path}@best").config["kind"] == "ldm"

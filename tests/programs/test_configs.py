import json
import math
from inspect import signature

import numpy as np
import paths
import pytest
from command_lines import parsed
from pymatgen.core import Lattice, Structure

from chemeleon_jax.cli import parse
from chemeleon_jax.errors import UserError
from chemeleon_jax.models import hub
from chemeleon_jax.rewards.components import COMPONENTS
from chemeleon_jax.rewards.config import NORMALIZE_FNS, active_components
from chemeleon_jax.rewards.judges import FIELDS as JUDGING
from chemeleon_jax.rewards.loading import load_reward
from chemeleon_jax.rewards.normalize import NORMALIZATIONS
from chemeleon_jax.rl.checks import check_divisible, check_rl
from chemeleon_jax.rl.config import describe
from chemeleon_jax.workers.custom import load_function

ROOT = paths.ROOT
CONFIGS = ("rl_dng", "rl_bandgap", "rl_atomic_density", "rl_custom_reward")
PRESETS = ("mini", "mp_20", "alex_mp_20", "compat")


@pytest.fixture(autouse=True)
def clone_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT)


def error_of(*arguments, config="configs/rl_dng.py"):
    with pytest.raises(UserError) as error:
        check_rl(parsed(*arguments, config=config), num_devices=1)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_readme_s_figures_are_of_the_preset_s_length():
    config = parsed()
    page = (paths.ROOT / "README.md").read_text()
    assert f"*{config.num_iterations} iterations of `rl_dng`" in page


def test_a_conditional_run_is_guided_and_learns_without_its_steps():
    config = parsed("--config.data.compositions=LiMnO2", config="rl_composition")
    check_rl(config, num_devices=2)
    assert config.data.compositions == "LiMnO2"
    assert active_components(config).keys() == {
        "energy",
        "displacement",
        "uniqueness",
        "asked_composition",
    }
    config.rl.objective = "grpo"
    with pytest.raises(UserError, match="sampling.decoder_guidance = 6.0.*grpo"):
        check_rl(config, num_devices=2)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_preset_is_a_run(name, preset):
    config = parsed(config=f"configs/{name}.py:{preset}")
    check_rl(config, num_devices=1)
    strict = preset != "compat"  # whose max_amd is infinite
    json.dumps(config.to_dict(), allow_nan=not strict)  # what a run directory keeps
    if preset in ("mini", "unrelaxed"):
        assert config.ldm_ckpt_path == "mini:ldm"
        default = config == parsed(config=f"configs/{name}.py")
        assert default == (preset == "mini" or name == "rl_custom_reward")
        for devices in (2, 4):
            check_rl(config, devices)
    else:
        for path in (config.ldm_ckpt_path, config.vae_ckpt_path):
            assert path.removeprefix("hub:") in hub.FILES
            assert path.startswith(f"hub:{preset.replace('compat', 'mp_20')}_")


def test_the_paper_s_setting():
    """Sections 5 and 6 of the reference: what Chemeleon2 trains with."""
    config = parsed(config="configs/rl_dng.py:mp_20")
    expected = {
        "num_group_samples": 64,
        "group_reward_norm": True,
        "num_inner_batch": 2,
        "grad_accum": 0,
        "memory_budget": 8.0,
        "num_train_steps": 0,
        "window": 0,
        "window_iterations": 25,
        "step_weight": "none",
        "clip_ratio": 1e-3,
        "kl_weight": 1.0,
        "kl_target": "old",
        "entropy_weight": 1e-5,
        "ema_decay": 0.0,
        "objective": "grpo",
        "sample_average": False,
    }
    found = config.rl.to_dict()
    assert found | expected == found and not found["replay"]["crystals"]
    assert config.data.batch_size == 5
    assert config.optimizer.to_dict() == {
        "lr": 1e-5,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "warmup_steps": 0,
    }
    assert config.sampling.to_dict() == {
        "sampler": "ddim",
        "sampling_steps": 50,
        "eta": 1.0,
        "cfg_scale": 2.0,
        "decoder_guidance": None,
    }
    assert (config.reward.normalize_fn, config.reward.eps) == ("std", 1e-4)
    weights = {
        name: (component["weight"], component["normalize_fn"])
        for name, component in active_components(config).items()
    }
    assert weights == {
        "creativity": (1.0, "none"),
        "energy": (1.0, "norm"),
        "structure_diversity": (0.1, "norm"),
        "composition_diversity": (1.0, "norm"),
        "element_kl": (1.0, "none"),
        "displacement": (0.3, "none"),
    }
    bandgap = parsed(config="configs/rl_bandgap.py:alex_mp_20")
    assert bandgap.rl.clip_ratio == 1e-4
    components = active_components(bandgap)
    assert components["composition_diversity"]["weight"] == 0.5
    predictor = components["predictor"]
    assert (predictor["target"], predictor["clip_min"]) == (3.0, 0.0)
    assert predictor["clip_max"] is None


def test_nft_is_the_preset_by_another_objective_in_a_third_of_the_crystals():
    mini, nft = (parsed(config=f"configs/rl_dng.py{x}") for x in ("", ":nft"))
    check_rl(nft, num_devices=1)
    assert (mini.rl.objective, nft.rl.objective) == ("grpo", "nft")
    crystals = [x.data.batch_size * x.rl.num_group_samples for x in (mini, nft)]
    assert 3 * nft.num_iterations * crystals[1] < mini.num_iterations * crystals[0]
    assert active_components(nft).keys() == active_components(mini).keys()
    assert nft.reward.components.energy.new_only


def test_compat_is_the_paper_s_setting_without_guards():
    guarded, compat = (
        parsed(config=f"configs/rl_dng.py:{preset}").to_dict()
        for preset in ("mp_20", "compat")
    )
    components = compat_components = compat["reward"]["components"]
    off = {"max_amd": math.inf, "min_elements": 1}
    assert {k: components["creativity"].pop(k) for k in off} == off
    off = {"min_elements": 1, "min_hull_entries": 0, "min_e_above_hull": None}
    off |= {"charge_balanced": False, "max_fraction": 1.0}
    assert {k: components["energy"].pop(k) for k in off} == off
    components = guarded["reward"]["components"]
    on = {"max_amd": 1.0, "min_elements": 2}
    assert {k: components["creativity"].pop(k) for k in on} == on
    on = {"min_elements": 2, "min_hull_entries": 2, "min_e_above_hull": -0.2}
    on |= {"charge_balanced": True, "max_fraction": 0.75}
    assert {k: components["energy"].pop(k) for k in on} == on
    # And the paper judges crystals as they are, by one potential.
    assert guarded["reward"].pop("relaxed") and not compat["reward"].pop("relaxed")
    for name in ("element_kl", "displacement"):
        assert components[name].pop("weight") > compat_components[name].pop("weight")
    judged = {"relax_steps": 0, "relax_with": "", "potentials": "", "decay": 0.0}
    judged["max_disagreement"] = None
    assert {k: compat_components["energy"].pop(k) for k in judged} == judged
    for field in judged:
        assert components["energy"].pop(field), field
    assert guarded == compat


def test_components_and_their_fields_are_those_of_the_rewards():
    components = parsed().reward.components.to_dict()
    assert set(components) == set(COMPONENTS)
    for name, own in components.items():
        known = {"weight", "normalize_fn", *signature(COMPONENTS[name]).parameters}
        known |= set(JUDGING) if name == "energy" else set()
        assert set(own) <= known, name
    assert tuple(NORMALIZATIONS) == NORMALIZE_FNS


def test_the_example_reward_is_minus_the_distance_to_5():
    name = parsed(config="rl_custom_reward").reward.components.custom.function
    reward = load_function(name)  # as a worker does
    nacl = Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0, 0]]
    )  # 4 * 58.443 u / (5.64 Å)^3 * 1.66054 = 2.1637 g/cm^3
    np.testing.assert_allclose(reward([nacl, nacl]), [-2.8363] * 2, atol=1e-3)


def test_a_run_is_described_in_four_lines():
    relaxed = describe(parsed(config="rl_dng"))
    assert relaxed["judges"] == (
        "chgnet,sevennet-l3i5:uncorrected, of crystals relaxed 16 steps by chgnet"
    )
    assert describe(parsed(config="rl_dng:unrelaxed")) == {
        "model": "mini:ldm, decoded by mini:vae",
        "crystals": "192 per iteration: 8 groups of 24, 10 ddim steps",
        "reward": "3 energy + 2 creativity + 0.6 composition_diversity + "
        "0.1 structure_diversity",
        "judges": "chgnet, of crystals as they are",
    }


def test_overrides_reach_their_field():
    config = parsed(
        "--config.rl.clip_ratio=1",  # an integer for a float
        "--config.rl.num_group_samples=128",
        "--config.reward.components.energy.weight=2",
        "--config.reward.components.predictor.target=1.5",
        "--config.rl.group_reward_norm=False",
        "--config.seed",
        "7",
    )
    assert isinstance(config.rl.clip_ratio, float)
    assert config.rl.num_group_samples == 128
    assert config.reward.components.energy.weight == 2.0
    assert config.reward.components.predictor.target == 1.5
    assert config.rl.group_reward_norm is False
    assert config.seed == 7


def test_the_run_directory_has_the_name_of_the_config():
    command = ["train", "--config=configs/rl_dng.py:mp_20"]
    assert parse(command)[1] == "runs/rl_dng_mp_20"
    assert parse(["train", "--config=configs/rl_dng.py"])[1] == "runs/rl_dng"
    assert parse([*command, "--workdir=elsewhere"])[1] == "elsewhere"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.rl.clip_ration=1", "the nearest is config.rl.clip_ratio"),
        ("--config.clip_ratio=1", "the nearest is config.rl.clip_ratio"),
        ("--config.rl.clip_ration.x=1", "the nearest is config.rl.clip_ratio"),
        ("--config.data.batchsize=8", "the nearest is config.data.batch_size"),
        (
            "--config.reward.components.energi.weight=2",
            "the nearest is config.reward.components.energy.weight",
        ),
        ("--config.rl=3", "config.rl: has fields of its own"),
        ("--config.rl.clip_ratio=abc", "config.rl.clip_ratio=abc: could not convert"),
        ("--config.rl.num_inner_batch=1.5", "config.rl.num_inner_batch=1.5: invalid"),
        (
            "--config.rl.group_reward_norm=maybe",
            "config.rl.group_reward_norm=maybe: neither True nor False",
        ),
        ("--confg=x", "--confg: no such flag"),
        ("leftover", "'leftover': every argument is --name=value"),
    ],
)
def test_a_wrong_argument_is_named(argument, message):
    assert message in error_of(argument)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("sampling.sampler", "dim", "one of ('ddim', 'ddpm')"),
        ("rl.kl_target", "new", "one of ('old', 'reference')"),
        ("reward.normalize_fn", "mean", "one of ('norm'"),
        ("reward.components.energy.normalize_fn", "mean", "one of ('norm'"),
        ("rl.num_group_samples", "1", "at least 2"),
        ("rl.num_inner_batch", "0", "at least 1"),
        ("rl.clip_ratio", "0", "above 0"),
        ("rl.clip_ratio", "nan", "above 0"),
        ("rl.ema_decay", "1", "from 0 to below 1"),
        ("rl.kl_weight", "-1", "0 or more"),
        ("sampling.eta", "0", "above 0"),
        ("sampling.sampling_steps", "1", "from 2"),
        ("seed", "-1", "from 0 to 2^32 - 3"),
        ("seed", "4294967295", "from 0 to 2^32 - 3"),
        ("optimizer.lr", "inf", "a finite number"),
        ("reward.components.predictor.target", "nan", "a number, or left out"),
        ("reward.components.energy.min_e_above_hull", "nan", "a number, or left out"),
        ("rl.num_train_steps", "900", "the steps that have a density"),
        ("rl.window", "900", "the steps that have a density"),
        ("alarms.judge_gap", "0", "above 0"),
        ("judge.relax_steps", "-1", "0 or more"),
        ("judge.potential", "chgnet", "does not ask; it asks chgnet"),
        ("judge.potential", " chgnet", "does not ask; it asks chgnet"),
        ("judge.potential", "sevennet-0,chgnet", "does not ask; it asks chgnet"),
        ("judge.potential", "sevennet-l3i5", "does not ask; it asks chgnet"),
        ("optimizer.warmup_steps", "-1", "0 or more"),
        ("reward.components.energy.decay", "-0.3", "0 or more"),
        ("reward.components.energy.clip_max", "0", "above 0"),
        ("reward.components.displacement.clip_max", "-1", "above 0"),
        ("reward.components.creativity.max_amd", "-1", "0 or more"),
        ("reward.components.symmetry.tolerance", "0", "above 0"),
        ("reward.components.custom.time_limit", "0", "above 0"),
    ],
)
def test_a_value_out_of_range_is_named(field, value, rule):
    message = error_of(f"--config.{field}={value}")
    assert message.startswith(f"config.{field} = ")
    assert rule in message


def test_a_potential_that_would_not_be_asked_is_refused():
    other = "--config.reward.potential=sevennet-0"
    assert "which takes its place" in error_of(other)
    alone = "--config.reward.components.energy.potentials="
    judge = "--config.judge.potential="
    check_rl(parsed(other, alone, judge), num_devices=1)


def test_a_judge_is_asked_at_validations():
    judge = "--config.judge.potential=sevennet-0"
    check_rl(parsed(judge, "--config.judge.max_gap=0.3"), num_devices=1)
    check_rl(parsed(judge, "--config.validate_every=0"), num_devices=1)
    limited = judge, "--config.judge.max_gap=0.3"
    assert "validate_every = 0" in error_of(*limited, "--config.validate_every=0")
    without = "--config.judge.potential="
    rule = "none where config.judge.potential is empty"
    assert rule in error_of(without, "--config.judge.max_gap=0.2")
    assert "judge.max_gap = -1" in error_of(judge, "--config.judge.max_gap=-1")
    both = "--config.reward.components.energy.potentials=chgnet, sevennet-0"
    assert "it asks chgnet, sevennet-0" in error_of(judge, both)


def test_a_batch_that_cannot_be_split_names_every_field():
    message = error_of("--config.rl.num_inner_batch=5", "--config.rl.grad_accum=2")
    for name in ("data.batch_size", "rl.num_group_samples", "rl.num_inner_batch"):
        assert f"config.{name}" in message
    assert "5 * 2 * 1 = 10" in message
    with pytest.raises(UserError, match="devices = 2 \\* 1 \\* 5 = 10"):
        check_rl(parsed(), num_devices=5)


def test_divisibility_names_the_fields():
    check_divisible(5, 16, 2, 1, 4)  # 80 crystals, 8 parts of 10
    with pytest.raises(UserError) as error:
        check_divisible(5, 16, 2, 3, 4)
    for name in ("batch_size", "num_group_samples", "num_inner_batch", "grad_accum"):
        assert name in str(error.value)
    assert "2 * 3 * 4 = 24" in str(error.value)


def test_a_custom_reward_joins_any_config():
    function = "--config.reward.components.custom.function=my.module:reward"
    config = parsed(function)
    check_rl(config, num_devices=1)
    assert active_components(config)["custom"]["weight"] == 1.0
    assert "custom" not in active_components(parsed())


def test_a_model_that_is_no_predictor_is_named():
    field = "reward.components.predictor.ckpt_path"
    config = parsed(f"--config.{field}=mini:vae", config="configs/rl_bandgap.py")
    with pytest.raises(UserError, match=f"{field}: mini:vae holds no predictor but va"):
        load_reward(config, model=None)


def test_a_reward_of_nothing_is_refused():
    density = "configs/rl_atomic_density.py:unrelaxed"
    off = "--config.reward.components.custom.weight=0"
    assert "nothing to learn" in error_of(off, config=density)
    unnamed = "--config.reward.components.custom.function="
    assert "nothing to learn" in error_of(unnamed, config=density)
    path = "--config.reward.components.custom.function=my/reward.py"
    assert "as Python imports it" in error_of(path, config=density)
    endless = "--config.reward.components.custom.weight=inf"
    assert "a finite number" in error_of(endless, config=density)
    back = "--config.reward.recent_iterations=5"
    assert "creativity has no weight" in error_of(back, config=density)

"""The command line of `train` and `pretrain`, and the config files it names."""

import re
import sys
from importlib import import_module
from pathlib import Path

import jax
import paths
import pytest
from command_lines import parsed

from chemeleon_jax.cli import fields, keep_compiled_programs, parse, run
from chemeleon_jax.errors import UserError

ROOT = paths.ROOT
CONFIGS = ("rl_dng", "rl_bandgap", "rl_atomic_density", "rl_custom_reward")
CONFIGS += ("rl_composition",)


@pytest.fixture(autouse=True)
def clone_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT)


def test_a_missing_config_lists_those_there_are():
    for command in (["train"], ["train", "--config=configs/rl_dgn.py"]):
        with pytest.raises(UserError, match=r"one of rl_atomic.*, rl_dng, or the path"):
            parse(command, "train")
    with pytest.raises(UserError, match="no preset .mp20.: there are .*compat, nft"):
        parsed(config="configs/rl_dng.py:mp20")


def test_errors_are_one_line_and_status_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", "--config=nowhere.py"])
    with pytest.raises(SystemExit) as end:
        run(lambda config, workdir: None)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: 'nowhere.py': no such config")

    def main(config, workdir):
        raise UserError(f"{workdir} is full")

    monkeypatch.setattr(sys, "argv", ["train", "--config=configs/rl_dng.py"])
    with pytest.raises(SystemExit):
        run(main)
    assert capsys.readouterr().err == "error: runs/rl_dng is full\n"


@pytest.mark.parametrize(
    ("program", "own", "other"),
    [("train", "rl_dng", "vae"), ("pretrain", "vae", "rl_dng")],
)
def test_help_lists_the_program_s_configs(program, own, other, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [program, "--help"])
    monkeypatch.setattr(sys.modules["__main__"], "__doc__", "Trains.")
    run(lambda config, workdir: None, program=program)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Trains."
    assert f"    {own}" in lines and f"    {other}" not in lines
    assert lines[lines.index(f"    {own}") + 2].startswith("        Presets: ")


@pytest.mark.parametrize(
    ("program", "configs"),
    [("train", ["rl_dng"]), ("pretrain", ["vae", "ldm", "predictor"])],
)
def test_help_names_fields_that_there_are(program, configs):
    about = import_module(f"chemeleon_jax.{program}").__doc__
    lines = about.split("--config.FIELD=VALUE:\n\n")[1].splitlines()
    named = {name for line in lines for name in line[4:].split("  ")[0].split(", ")}
    known = {f for c in configs for f in fields(parse([program, f"--config={c}"])[0])}
    assert len(named) > 5 and named <= known


# ------------------------------------------------------------------------ config files


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Another directory to start from, from which nothing of the clone is found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if Path(p) != ROOT])
    return tmp_path


def test_a_name_is_a_config_of_the_package_from_any_directory(elsewhere):
    config, workdir = parse(["train", "--config=rl_dng:mp_20"], "train")
    assert config == parsed(config=f"{ROOT}/configs/rl_dng.py:mp_20")
    assert workdir == "runs/rl_dng_mp_20"
    config, workdir = parse(["pretrain", "--config", "vae", "--config.seed=3"])
    assert (config.stage, config.seed, workdir) == ("vae", 3, "runs/vae")


@pytest.mark.parametrize("name", [*CONFIGS, "vae", "ldm", "predictor"])
def test_a_copied_config_needs_only_the_package(name, elsewhere):
    source = (ROOT / "configs" / f"{name}.py").read_text()
    (elsewhere / "mine.py").write_text(source)
    config, workdir = parse(["train", "--config=mine.py"])
    original = parse(["train", f"--config={name}"])[0]
    assert workdir == "runs/mine"
    if name == "rl_custom_reward":  # the copy's own function, not the package's
        of_copy, of_original = (c.reward.components.custom for c in (config, original))
        assert of_copy.function == f"{elsewhere}/mine.py:reward"
        of_copy.function = of_original.function
    assert config == original


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1", "mine.py: has no function get_config"),
        ("import math\ndef get_config(:", "mine.py, line 2: SyntaxError: "),
        ("\n\nfrom configs.base import rl_config", "mine.py, line 3: ModuleNotFound"),
        ("def get_config():\n  return 1 / 0", "mine.py, line 2: ZeroDivisionError"),
        ("def get_config():\n  return 1", "returned no ConfigDict: 1"),
        ("x = '\0'", "Error: source code string cannot"),
        (
            "from ml_collections import ConfigDict as get_config",
            "no config of train, it lacks config.rl",
        ),
    ],
)
def test_a_config_file_with_a_fault_is_one_line(source, message, elsewhere):
    (elsewhere / "mine.py").write_text(source)
    with pytest.raises(UserError) as error:
        parse(["train", "--config=mine.py"], "train")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_preset_of_a_config_without_presets_is_refused():
    with pytest.raises(UserError, match="takes no preset, so no 'mini'"):
        parse(["pretrain", "--config=predictor:mini"])


@pytest.mark.parametrize(
    ("program", "name", "command"),
    [
        ("train", "configs/vae.py", "chemeleon_jax.pretrain --config=configs/vae.py"),
        ("train", "ldm:means", "chemeleon_jax.pretrain --config=ldm:means"),
        ("pretrain", "rl_dng", "chemeleon_jax.train --config=rl_dng"),
    ],
)
def test_a_config_of_the_other_program_names_it(program, name, command):
    with pytest.raises(UserError, match=re.escape(command)):
        parse([program, f"--config={name}", "--config.no_such_field=1"], program)


def test_compiled_programs_are_kept_where_the_user_says(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        keep_compiled_programs()
        kept = str(tmp_path / "chemeleon_jax" / "compiled")
        assert jax.config.jax_compilation_cache_dir == kept
        jax.config.update("jax_compilation_cache_dir", "mine")
        keep_compiled_programs()
        assert jax.config.jax_compilation_cache_dir == "mine"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)

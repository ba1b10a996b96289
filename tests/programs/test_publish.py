"""A policy published to a hub on this machine, and loaded from there."""

import json

import hub_server
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from chemeleon_jax.data.types import TrainState
from chemeleon_jax.errors import UserError
from chemeleon_jax.interface import load
from chemeleon_jax.interface.request import Request
from chemeleon_jax.models import store
from chemeleon_jax.models.store import Checkpoint
from chemeleon_jax.publish import FILES, main
from chemeleon_jax.rl.config import rl_config
from chemeleon_jax.runs.directory import work_directory, write_run_info
from chemeleon_jax.runs.states import RunCheckpoints


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one iteration, whose crystals were evaluated."""
    workdir = tmp_path_factory.mktemp("runs") / "rl"
    vae, ldm = tiny.vae_checkpoint(), tiny.ldm_checkpoint()
    start = Checkpoint(ldm.params | vae.params, ldm.config | vae.config | ldm.config)
    config = rl_config("mini")
    config.ldm_ckpt_path = "/home/somebody/secret/base"
    config.reward.components.custom.function = "/home/somebody/mine.py:lightness"
    config.sampling.sampling_steps = 7
    config.precision = "float32"
    policy = {"dit": tiny.stir(start.params["dit"], 0.3)}
    state = TrainState(jnp.array(1), policy, {}, policy, jnp.array(0))
    with work_directory(workdir), RunCheckpoints(workdir) as saved:
        digest = store.params_digest(start.params)
        write_run_info(workdir, config.to_dict(), start.config, digest)
        store.save_start(workdir, start)
        saved.save(1, state, score=1.0)
    for place, msun in (("samples", 0.625), ("samples/base", 0.25)):
        folder = workdir / place / "evaluation"
        folder.mkdir(parents=True)
        (folder / "crystals.csv").write_text("index,valid\n0,True\n1,True\n")
        (folder / "structures.jsonl").write_text("")
        score = {"value": msun, "low": 0.125, "high": 0.75}
        protocol = {"reference": {"name": "mp_mini"}, "potential": "chgnet"}
        protocol |= {"relaxed_with": "chgnet", "metastable": 0.1, "stable": 0.0}
        summary = {"scores": {"msun": score}, "protocol": protocol}
        (folder / "summary.json").write_text(json.dumps(summary))
    return workdir


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server.running(monkeypatch, tmp_path) as hub:
        yield hub


def test_a_published_policy_samples_as_its_run_does(trained, hub, capsys, tmp_path):
    command = [str(trained), "--repo=me/crystals"]
    assert main(command) == 0
    assert hub.repos == {}  # nothing is sent unasked
    card = trained / "published" / "README.md"
    card.write_text(card.read_text() + "\nEdited.\n")
    assert main([*command, "--upload"]) == 0
    assert f"{hub.address}/me/crystals" in capsys.readouterr().out
    assert sorted(hub.repos["me/crystals"]) == FILES
    assert hub.repos["me/crystals"]["README.md"].endswith(b"\nEdited.\n")
    hub.repos["me/crystals"] |= {"setup.py": b"", "weights.pkl": b""}
    there, here = load("hub:me/crystals"), load(trained)
    digests = [store.params_digest(m.checkpoint.params) for m in (there, here)]
    assert digests[0] == digests[1]
    plans = [m.plan(Request(num_samples=50, seed=4)) for m in (there, here)]
    np.testing.assert_array_equal(plans[0].num_atoms, plans[1].num_atoms)
    assert plans[0].settings == plans[1].settings
    assert plans[0].settings["sampling_steps"] == 7
    assert not [path for _, path in hub.asked if "setup.py" in path or "pkl" in path]
    # The hub is gone; what was fetched is there.
    hub.repos.clear()
    hub.server_close()
    again = load("hub:me/crystals")
    assert store.params_digest(again.checkpoint.params) == digests[0]
    with pytest.raises(UserError, match="hub:me/other: cannot fetch.*URLError"):
        load("hub:me/other")


def test_the_card_says_where_a_policy_comes_from(trained, tmp_path):
    out = tmp_path / "out"
    assert main([str(trained), "--repo=me/crystals", f"--out={out}"]) == 0
    text = (out / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: chemeleon_jax\nlicense: unknown\n")
    for words in (
        'load("hub:me/crystals")',
        "| base model | base (a local file), decoded by mini:vae |",
        "| its function | mine.py:lightness (a local file) |",
        "| reward | 1 custom |",
        "| its hull | of mp_mini |",
        "| iterations | 1 (latest) |",
        "| | base | this model |",
        "25.0 % (12.5 to 75.0) | 62.5 % (12.5 to 75.0) |",
        "reference mp_mini, energies chgnet",
        "Materials Project (CC-BY-4.0)",
        "No licence is stated",
    ):
        assert words in text, words
    assert "somebody" not in text + (out / "config.json").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--repo=crystals"], "write it like OWNER/NAME"),
        (["--repo=me/crystals", "--license=MIT licence"], "write it like mit"),
        (["--repo=me/crystals", "--out={other}"], "holds another model"),
        (["--repo=me/crystals", "--out={kept}", "--license=mit"], "as you edited it"),
        (["--repo=me/crystal", "--out={kept}"], "is not of me/crystal;"),
    ],
)
def test_what_cannot_be_published_is_refused(trained, tmp_path, capsys, flags, message):
    store.save_model(tmp_path / "other", *tiny.ldm_checkpoint())
    kept = tmp_path / "kept"
    assert main([str(trained), "--repo=me/crystals", f"--out={kept}"]) == 0
    capsys.readouterr()
    flags = [flag.format(other=tmp_path / "other", kept=kept) for flag in flags]
    assert main([str(trained), *flags]) == 2
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1


def test_the_hub_refuses_and_the_folder_stays(trained, hub, tmp_path, capsys):
    hub.token = "another"
    flags = ["--repo=me/crystals", f"--out={tmp_path / 'out'}", "--upload"]
    assert main([str(trained), *flags]) == 2
    shown = capsys.readouterr().err
    assert "me/crystals was not written" in shown and "hf auth login" in shown
    assert shown.count("\n") == 1
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == FILES


def test_parameters_that_are_not_what_the_hub_said_are_refused(trained, hub, tmp_path):
    flags = ["--repo=me/crystals", f"--out={tmp_path / 'out'}", "--upload"]
    assert main([str(trained), *flags]) == 0
    load("hub:me/crystals")
    (weights,) = (tmp_path / "hub").rglob("snapshots/*/params.safetensors")
    content = weights.read_bytes()
    weights.resolve().write_bytes(content[:-9] + b"\x01" + content[-8:])
    with pytest.raises(UserError, match="not the file that is known"):
        load("hub:me/crystals")

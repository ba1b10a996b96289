import json
import shutil

import jax.numpy as jnp
import pytest
import tiny
from pymatgen.core import Lattice, Structure

from chemeleon_jax.data.types import TrainState
from chemeleon_jax.errors import UserError
from chemeleon_jax.interface import load, model
from chemeleon_jax.interface.request import DEFAULTS
from chemeleon_jax.models import store
from chemeleon_jax.models.condition import input_width, make_condition_encoder
from chemeleon_jax.models.dit import DiT
from chemeleon_jax.models.loading import load_checkpoint
from chemeleon_jax.models.store import Checkpoint
from chemeleon_jax.rl.bulk import compile_sampling
from chemeleon_jax.runs.directory import work_directory, write_run_info
from chemeleon_jax.runs.states import RunCheckpoints
from chemeleon_jax.sample import main

SPECS = (
    {"name": "formula", "kind": "composition"},
    {"name": "system", "kind": "chemical_system"},
    {"name": "gap", "kind": "float", "mean": 1.0, "std": 2.0},
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """An unconditional and a conditional model with their VAE."""
    folder = tmp_path_factory.mktemp("models")
    vae = load_checkpoint("mini:vae")  # decodes crystals, where a random one does not
    dit = tiny.DIT | {"latent_channels": vae.config["vae"]["latent_channels"]}
    dit |= {"learn_sigma": False}
    mask = jnp.ones((1, 4), bool)
    z = jnp.zeros((1, 4, dit["latent_channels"]))
    params = {"dit": tiny.random_params(DiT(**dit), z, jnp.zeros(1), mask)}
    ldm = Checkpoint(
        params, {"kind": "ldm", "dit": dit, "condition": None, "latent_std": 1.0}
    )
    config = ldm.config | {"vae": vae.config["vae"]}
    config["atom_counts"] = [0.0, 0.5, 0.0, 0.5]
    params = params | vae.params
    store.save_model(folder / "plain", params, config)
    condition = {"specs": SPECS, "width": tiny.DIT["width"]}
    vectors = {s["name"]: jnp.ones((1, input_width(s))) for s in SPECS}
    encoder = tiny.random_params(
        make_condition_encoder(condition), vectors, jnp.ones(1, bool), seed=3
    )
    store.save_model(
        folder / "conditional",
        params | {"condition": encoder},
        config | {"condition": condition},
    )
    store.save_model(folder / "vae", *vae)
    store.save_model(folder / "bare", *ldm)
    return folder


@pytest.fixture(autouse=True)
def small_crystals(monkeypatch):
    """One width to compile."""
    monkeypatch.setattr(model, "MAX_ATOMS", 4)


def run(checkpoint, out, *flags, count=4):
    return main(
        [f"--checkpoint={checkpoint}", f"--out={out}", f"--num_samples={count}"]
        + ["--num_steps=2", *flags]
    )


def lines(out):
    text = (out / "crystals.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_files_hold_every_crystal_and_how_it_was_made(models, tmp_path):
    assert run(models / "plain", tmp_path, "--cif", "--seed=3") == 0
    found = lines(tmp_path)
    assert [line["index"] for line in found] == [0, 1, 2, 3]
    assert {line["num_atoms"] for line in found} <= {2, 4}  # the model's own histogram
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["seed"] == 3 and manifest["settings"]["sampling_steps"] == 2
    assert manifest["validity"] == [line["reason"] for line in found]
    assert manifest["checkpoint_sha256"] == store.params_digest(
        load_checkpoint(models / "plain").params
    )
    for line in found:
        assert line["valid"] == (line["reason"] == "valid")
        if line["structure"] is not None:
            structure = Structure.from_dict(line["structure"])
            (cif,) = tmp_path.glob(f"cif/{line['index']:06d}_*.cif")
            assert len(structure) == len(Structure.from_file(cif)) == line["num_atoms"]


def test_a_seed_repeats_itself(models, tmp_path):
    for name, flags in (("a", ()), ("b", ()), ("c", ("--seed=1",))):
        assert run(models / "plain", tmp_path / name, *flags) == 0
    texts = {d.name: (d / "crystals.jsonl").read_text() for d in tmp_path.iterdir()}
    assert texts["a"] == texts["b"] != texts["c"]


def test_python_gives_the_crystals_of_the_program(models, tmp_path, monkeypatch):
    """And a second call of the same settings compiles nothing."""
    flags = ("--condition=gap=2.5", "--num_atoms=2,4", "--seed=3")
    assert run(models / "conditional", tmp_path, *flags) == 0
    compiled = []

    def compile_and_count(*args):
        compiled.append(args)
        return compile_sampling(*args)

    monkeypatch.setattr(model, "compile_sampling", compile_and_count)
    loaded = load(models / "conditional")
    asked = {"conditions": {"gap": 2.5}, "num_atoms": [2, 4], "sampling_steps": 2}
    found, written = loaded.sample(4, seed=3, **asked), lines(tmp_path)
    structures = [s and s.as_dict(verbosity=0) for s in found.structures]
    expected = [line.pop("structure") for line in written]
    assert json.loads(json.dumps(structures)) == expected
    assert found.table.to_dict("records") == written
    other = loaded.sample(4, seed=4, **asked)
    assert other.structures != found.structures and len(compiled) == 1


def test_python_says_what_the_program_says(models):
    for wrong, message in (
        ({"num_atoms": 5}, "--num_atoms=5: must be from 1 to 4"),
        ({"composition": "NaCl"}, "does not take one; it takes none at all"),
        ({"conditions": {"gap": 1}}, "--condition gap: the model has no such"),
        ({"sampler": "euler"}, "euler"),
        ({"seed": -1}, "--seed=-1: must be from 0"),
    ):
        with pytest.raises(UserError, match=message):
            load(models / "plain").sample(4, **wrong)
    with pytest.raises(UserError, match="--base: .* is no directory of an RL run"):
        load(models / "plain", base=True)
    with pytest.raises(UserError, match="--weights=newest"):
        load(models / "plain", weights="newest")


def test_crystals_are_not_overwritten_unasked(models, tmp_path, capsys):
    assert run(models / "plain", tmp_path, "--cif") == 0
    before = (tmp_path / "crystals.jsonl").read_text()
    assert run(models / "plain", tmp_path, "--seed=1") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "crystals.jsonl").read_text() == before
    assert run(models / "plain", tmp_path, "--seed=1", "--overwrite") == 0
    assert (tmp_path / "crystals.jsonl").read_text() != before
    assert not (tmp_path / "cif").exists()  # of the crystals that are gone


def test_conditions_change_the_crystals(models, tmp_path):
    asked = {
        "none": (),
        "formula": ("--composition=NaCl", "--num_atoms=4"),
        "system": ("--chemical_system=Na-Cl", "--num_atoms=4"),
        "gap": ("--condition", "gap=3.0", "--num_atoms=4"),
    }
    for name, flags in asked.items():
        assert run(models / "conditional", tmp_path / name, *flags, count=2) == 0
    texts = {(d / "crystals.jsonl").read_text() for d in tmp_path.iterdir()}
    assert len(texts) == len(asked)
    manifest = json.loads((tmp_path / "formula" / "manifest.json").read_text())
    assert manifest["settings"]["conditions"]["composition"] == "Na1Cl1"
    assert manifest["settings"]["cfg_scale"] == 2.0
    assert manifest["settings"]["decoder_guidance"] == DEFAULTS["decoder_guidance"]
    manifest = json.loads((tmp_path / "gap" / "manifest.json").read_text())
    assert manifest["settings"]["decoder_guidance"] is None  # no elements in it
    assert {line["num_atoms"] for line in lines(tmp_path / "formula")} == {4}


def test_guided_by_the_decoder_crystals_have_the_composition(tmp_path):
    asked = ("--composition=LiMnO2", "--num_steps=10")
    guided, free = tmp_path / "guided", tmp_path / "free"
    assert run("mini:ldm_conditional", guided, *asked, count=16) == 0
    flags = (*asked, "--decoder_guidance=0", "--guidance_scale=0")
    assert run("mini:ldm_conditional", free, *flags, count=16) == 0
    right = {
        out: sum(
            Structure.from_dict(line["structure"]).reduced_formula == "LiMnO2"
            for line in lines(out)
            if line["structure"]
        )
        for out in (guided, free)
    }
    assert right[guided] >= 14 and right[free] <= 2


@pytest.mark.parametrize(
    ("checkpoint", "flags", "message"),
    [
        ("plain", ["--composition=NaCl"], "does not take one; it takes none at all"),
        ("plain", ["--condition", "gap=1"], "no such condition"),
        ("plain", ["--condition", "gap"], "write it like"),
        ("conditional", ["--composition=NaXx"], "existing elements"),
        ("conditional", ["--chemical_system=Na-Q"], "'Q' is no element"),
        ("plain", ["--guidance_scale=2"], "nothing to guide to"),
        (
            "conditional",
            ["--condition", "gap=1", "--decoder_guidance=3"],
            "no elements to guide to",
        ),
        (
            "conditional",
            ["--composition=NaCl", "--space_group=225", "--decoder_guidance=3"],
            "have the elements asked for anyway",
        ),
        ("plain", ["--space_group=Fm3m3"], "international symbol"),
        ("plain", ["--crystal_system=round"], "the systems are"),
        ("plain", ["--num_atoms=four"], "write it like"),
        ("plain", ["--num_steps=2000"], "1 .. 1000"),
        ("plain", ["--num_samples=0"], "num_samples=0"),
        ("plain", ["--base"], "no directory of an RL run"),
        ("vae", [], "generates nothing"),
        ("bare", [], "--vae"),
        ("plain", ["--dataset=nowhere.csv"], "nowhere.csv"),
    ],
)
def test_errors_come_before_any_sampling(
    models, tmp_path, capsys, checkpoint, flags, message
):
    assert run(models / checkpoint, tmp_path / "out", *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_crystals_have_the_symmetry_that_is_asked_for(models, tmp_path):
    salt = Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    ).get_primitive_structure()
    other = Structure(Lattice.cubic(3), ["Cs", "I"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    rows = [f'{i},train,"{s.to(fmt="cif")}"' for i, s in enumerate([salt, other])]
    data = tmp_path / "known.csv"
    data.write_text("\n".join(["material_id,split,cif", *rows]))
    flags = [f"--dataset={data}", "--space_group=225"]
    asked = tmp_path / "asked"
    flags += ["--composition=MgO"]
    assert run(models / "conditional", asked, *flags) == 0
    symmetry = json.loads((asked / "manifest.json").read_text())["settings"]["symmetry"]
    assert symmetry == f"--space_group=225 --composition=MgO of {data}"
    for row in lines(asked):
        crystal = Structure.from_dict(row["structure"])
        assert crystal.get_space_group_info(1e-3)[1] == 225
        assert crystal.formula == "Mg1 O1"


def test_a_run_is_sampled_as_it_was_trained(models, tmp_path):
    start = load_checkpoint(models / "plain")
    policy = {"dit": tiny.stir(start.params["dit"], 0.3)}
    config = {
        "sampling": {
            "sampler": "ddim",
            "sampling_steps": 4,
            "eta": 0.5,
            "cfg_scale": 1.5,
        },
        "data": {"dataset": "mp_mini"},
    }
    workdir, out = tmp_path / "run", tmp_path / "run" / "samples"
    state = TrainState(jnp.array(1), policy, {}, policy, jnp.array(0))
    with work_directory(workdir), RunCheckpoints(workdir) as saved:
        write_run_info(workdir, config, start.config, store.params_digest(start.params))
        store.save_start(workdir, start)
        saved.save(1, state, score=1.0)
    flags = [f"--checkpoint={workdir}", f"--out={out}", "--num_samples=3"]
    assert main([*flags, "--base", "--weights=best", "--num_atoms=4"]) == 0
    tuned, base = (
        json.loads((d / "manifest.json").read_text()) for d in (out, out / "base")
    )
    assert tuned["settings"] == base["settings"]
    assert (tuned["settings"]["sampler"], tuned["settings"]["sampling_steps"]) == (
        "ddim",
        4,
    )
    assert base["checkpoint_sha256"] == store.params_digest(start.params)
    assert tuned["checkpoint_sha256"] != base["checkpoint_sha256"]
    assert lines(out) != lines(out / "base")


def test_a_run_s_precision_is_that_of_its_samples(models, tmp_path, monkeypatch):
    """bfloat16 rounds, and the manifest says so."""
    start = load_checkpoint(models / "plain")
    sampling = {"sampler": "ddim", "sampling_steps": 4, "eta": 1.0, "cfg_scale": 2.0}
    config = {"sampling": sampling, "data": {"dataset": "mp_mini"}}
    policy = {"dit": start.params["dit"]}
    state = TrainState(jnp.array(1), policy, {}, policy, jnp.array(0))
    asked = []

    def compile_and_note(sampler, mesh, precision):
        asked.append(precision)
        return compile_sampling(sampler, mesh, precision)

    monkeypatch.setattr(
        "chemeleon_jax.interface.model.compile_sampling", compile_and_note
    )
    for precision in ("float32", "bfloat16"):
        workdir = tmp_path / precision
        with work_directory(workdir), RunCheckpoints(workdir) as saved:
            digest = store.params_digest(start.params)
            write_run_info(
                workdir, config | {"precision": precision}, start.config, digest
            )
            store.save_start(workdir, start)
            saved.save(1, state, score=1.0)
        out = workdir / "samples"
        flags = [f"--checkpoint={workdir}", f"--out={out}", "--num_samples=3"]
        assert main([*flags, "--num_atoms=4"]) == 0
        manifest = json.loads((out / "manifest.json").read_text())
        assert manifest["settings"]["precision"] == precision
    assert asked == ["float32", "bfloat16"]


# ------------------------------------------------------------ places and interruptions


def test_sampling_cut_off_goes_on(models, tmp_path, monkeypatch, capsys):
    """Batches that were finished are not sampled again, and change nothing."""
    flags, sampled = ["--batch_size=4", "--seed=7", "--num_atoms=4"], []

    def compile_some(*args):
        compiled = compile_sampling(*args)

        def sample(*args):
            if len(sampled) == 1:
                sampled.append(None)
                raise KeyboardInterrupt
            sampled.append(args)
            return compiled(*args)

        return sample

    monkeypatch.setattr(model, "compile_sampling", compile_some)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(models / "plain", out, *flags, count=12)
    assert len(list((out / "partial" / "policy").iterdir())) == 1
    # Another command must not mix with it, nor take it away.
    assert run(models / "plain", out, *flags, "--seed=8", count=12) == 2
    assert "holds another sampling, not finished" in capsys.readouterr().err
    assert run(models / "plain", out, *flags, count=12) == 0
    assert len([batch for batch in sampled if batch]) == 3
    assert not (out / "partial").exists()
    assert run(models / "plain", tmp_path / "whole", *flags, count=12) == 0
    assert lines(out) == lines(tmp_path / "whole")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["num_samples"] == 12 and manifest["x64"] is False


def test_a_place_that_cannot_be_written_is_named_before_sampling(
    models, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(
        "chemeleon_jax.interface.model.Model.make", None
    )  # is not called
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "out", "/proc/no/out"):
        assert run(models / "plain", out) == 2
        shown = capsys.readouterr().err
        assert "cannot be written" in shown and "--out" in shown
        assert shown.count("\n") == 1


def test_counts_of_what_was_asked_for(models, tmp_path, capsys):
    asked = ("--composition=NaCl", "--num_atoms=4")
    assert run(models / "conditional", tmp_path / "a", *asked, count=2) == 0
    assert "of composition NaCl" in capsys.readouterr().out
    asked = ("--chemical_system=Cl-Na", "--num_atoms=4")
    assert run(models / "conditional", tmp_path / "b", *asked, count=2) == 0
    assert "of chemical system Cl-Na" in capsys.readouterr().out


def test_the_vae_of_a_model_is_found_above_it(models, tmp_path, monkeypatch, capsys):
    """Its path was relative to the directory of that day."""
    project = tmp_path / "project"
    shutil.copytree(models / "bare", project / "runs" / "ldm")
    training = project / "runs" / "ldm" / "training"
    training.mkdir()
    (training / "config.json").write_text('{"vae_ckpt_path": "runs/vae"}')
    monkeypatch.chdir(tmp_path)
    assert run("project/runs/ldm", tmp_path / "a", "--num_atoms=4") == 2
    shown = capsys.readouterr().err
    assert "training/config.json: says that the VAE is 'runs/vae'" in shown
    assert "--vae" in shown
    shutil.copytree(models / "vae", project / "runs" / "vae")
    assert run("project/runs/ldm", tmp_path / "a", "--num_atoms=4") == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--composition=CuSO4.5H2O"], "a hydrate"),
        (["--composition=Fe0O3"], "none of an element"),
        (["--composition=Fm2O3"], "Fm is beyond Pu"),
        (["--composition=AmO2"], "Am is beyond Pu"),
        (["--chemical_system=Am-O"], "Am is beyond Pu"),
        (["--condition", "formula=TiO2"], "formula: give it as --composition"),
        (["--condition", "system=Ti-O"], "system: give it as --chemical_system"),
    ],
)
def test_formulas_that_no_crystal_can_have(models, tmp_path, capsys, flags, message):
    assert run(models / "conditional", tmp_path / "out", *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

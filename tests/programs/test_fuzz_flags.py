"""Random command lines end in work, or in words and status 2: no traceback, no hang."""

import json
import os
import random
import shutil

import numpy as np
import pytest
from crystal_files import FRAME, NACL, cif, written
from fuzzing import alarm

from chemeleon_jax import evaluate, sample
from chemeleon_jax.data.crystals import from_structures
from chemeleon_jax.evaluation import terms
from chemeleon_jax.interface.model import Model
from chemeleon_jax.models.loading import MINI

NUMBERS = ["0", "1", "-1", "4", "20", "21", "1e9", "1e-9", "nan", "inf", "-inf", "1,5"]
NUMBERS += ["", " ", "None", "True", "0x10", "9" * 30, "9" * 5000, "1_0", "½", "4,8,12"]
PATHS = [
    "",
    ".",
    "..",
    "/",
    "~",
    "~nobody-here/x",
    "nowhere",
    "nowhere/x.json",
    "a.cif",
]
PATHS += ["frames.extxyz", "crystals.json", "table.csv", "folder", "file", "x" * 300]
PATHS += [
    "/dev/null",
    "/dev/full",
    "/proc/self/mem",
    "link",
    "circle",
    "locked",
    "fifo",
]
PATHS += ["mini:vae", "mini:ldm", "mini:ldm_conditional", "mini:predictor", "mini:"]
PATHS += ["mini:../vae", "hub:", "hub:nothing", "mp_mini", "mp_20", "model", "run", "é"]
PATHS += ["broken", "x.zip", "x.npz", "\x1b[31m", "run@best", "a b", "--", "-x", "none"]
FORMULAS = [
    "NaCl",
    "LiMnO2",
    "CuSO4.5H2O",
    "Fe0O3",
    "Fm2O3",
    "Na-Cl",
    "Li-",
    "-",
    "(",
    "",
]
FORMULAS += [
    "gap=1",
    "formula=NaCl",
    "=",
    "x=",
    "composition=Og",
    "Na" * 200,
    "H2O" * 9,
]
FLAGS = {
    sample: {
        "--checkpoint": PATHS,
        "--vae": PATHS,
        "--weights": ["latest", "best", "raw", "none", ""],
        "--base": None,
        "--num_samples": NUMBERS,
        "--out": PATHS,
        "--overwrite": None,
        "--cif": None,
        "--seed": NUMBERS,
        "--num_atoms": NUMBERS,
        "--dataset": PATHS,
        "--composition": FORMULAS,
        "--chemical_system": FORMULAS,
        "--condition": FORMULAS,
        "--cfg_scale": NUMBERS,
        "--guidance_scale": NUMBERS,
        "--decoder_guidance": NUMBERS,
        "--sampler": ["ddim", "ddpm", "euler", ""],
        "--sampling_steps": NUMBERS,
        "--num_steps": NUMBERS,
        "--eta": NUMBERS,
        "--batch_size": NUMBERS,
        "--no-distributed": None,
        "--help": None,
        "--nonsense": NUMBERS,
    },
    evaluate: {
        "": PATHS,
        "--reference": PATHS,
        "--potential": [
            "none",
            "chgnet",
            "mace",
            "ase:",
            "ase:os:getcwd",
            "ase:x:y",
            "",
        ],
        "--hull": PATHS,
        "--relax": None,
        "--no-relax": None,
        "--relax_steps": NUMBERS,
        "--max_force": NUMBERS,
        "--relax_time_limit": NUMBERS,
        "--vae": PATHS,
        "--out": PATHS,
        "--workers": NUMBERS,
        "--no-distributed": None,
        "--help": None,
        "--nonsense": NUMBERS,
    },
}
# A command line that works, of which most of the random ones keep most.
SOUND = {
    sample: {
        "--checkpoint": "mini:ldm_conditional",
        "--out": "out",
        "--num_samples": "3",
    },
    evaluate: {"": "crystals.json", "--potential": "none", "--reference": "folder"},
}


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A folder of everything that a path may lead to."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    written(tmp_path / "a.cif", cif())
    written(tmp_path / "frames.extxyz", FRAME * 2)
    written(tmp_path / "crystals.json", json.dumps([NACL.as_dict()]))
    written(tmp_path / "table.csv", "material_id,cif\n" + f'a,"{cif()}"\n')
    written(tmp_path / "folder" / "a b" / "1.cif", cif())
    written(tmp_path / "file", "text")
    written(tmp_path / "x.zip", b"PK\x03\x04")
    written(tmp_path / "x.npz", b"PK\x03\x04")
    written(tmp_path / "broken" / "config.json", "[]")
    written(tmp_path / "broken" / "params.safetensors", "")
    written(tmp_path / "run" / "config.json", '{"sampling": {}}')
    (tmp_path / "run" / "checkpoints").mkdir()
    shutil.copytree(MINI / "predictor", tmp_path / "model")
    os.symlink(tmp_path / "nowhere", tmp_path / "link")
    os.symlink(tmp_path / "circle", tmp_path / "circle")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "locked").mkdir(mode=0)
    return tmp_path


class DoneError(BaseException):
    """All was sound: what would follow takes long."""


def done(*args, **kwargs):
    raise DoneError


def nothing_heavy(monkeypatch):
    """The programs without what takes long, and what comes after it."""
    crystals = from_structures([NACL], 20)
    take = lambda model, plan, *rest: type(crystals)(  # noqa: E731
        **{k: np.repeat(v, len(plan.num_atoms), 0) for k, v in vars(crystals).items()}
    )
    monkeypatch.setattr(Model, "make", take)
    monkeypatch.setattr(evaluate, "WorkerPool", done)
    monkeypatch.setattr(terms, "load_hull", done)


def command_line(program, rng: random.Random) -> list[str]:
    flags = dict(SOUND[program])
    for _ in range(rng.choice([0, 1, 1, 2, 3, 6])):
        name = rng.choice(list(FLAGS[program]))
        values = FLAGS[program][name]
        flags[name] = None if values is None else rng.choice(values)
    if rng.random() < 0.1:
        del flags[rng.choice(list(flags))]
    words = []
    for name, value in flags.items():
        if value is None:
            words.append(name)
        elif not name:
            words.append(value)
        else:
            words += rng.choice([[f"{name}={value}"], [name, value]])
    return words


@pytest.mark.parametrize("count", [60, pytest.param(1_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("program", [sample, evaluate], ids=["sample", "evaluate"])
def test_random_command_lines(places, monkeypatch, capfd, program, count):
    nothing_heavy(monkeypatch)
    rng, ends = random.Random(count), []
    for _ in range(count):
        argv = command_line(program, rng)
        shutil.rmtree(places / "out", ignore_errors=True)
        try:
            with alarm(60):
                status = program.main(argv)
        except SystemExit as error:  # argparse
            status = error.code
        except DoneError:
            status = 0
        except Exception as error:
            raise AssertionError(f"{program.__name__} {argv}") from error
        shown = capfd.readouterr().err
        assert status in (0, 2), argv
        if status == 2:
            assert "error: " in shown.splitlines()[-1], argv
        assert "Traceback" not in shown, argv
        ends.append(status)
    assert ends.count(0) > count / 20 and ends.count(2) > count / 5

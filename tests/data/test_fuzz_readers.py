"""Damaged files of any format end in crystals, in problems, or in one line."""

import gzip
import io
import json
import random
import resource
import zipfile

import numpy as np
import pytest
from crystal_files import FRAME, NACL, cif, written
from fuzzing import alarm, mutate
from pymatgen.core import Lattice, Structure

from chemeleon_jax.data.crystals import from_structures, validity
from chemeleon_jax.data.readers.files import READERS, read_crystals
from chemeleon_jax.errors import UserError

MEMORY_LIMIT = 2**20  # kB, for all
TOKENS = ["1e300", "-1", "0", "nan", "inf", "999999999", "null", "[]", "{}", '"', "D"]
TOKENS += ["T", "Fe3+", "Lattice=", "Properties=species:S:9", "pos:R:99999999", "2"]
TOKENS += ["\ufeff", "\u2028", "\x85", "\0", "1D5", "1,5", "data_", "loop_", ";", "{"]
TOKENS += ["'", "_JSON", "VEC1 0 0 1", '"sites"', '"lattice"', '"structure":', "0.5"]


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def sound_files() -> dict[str, bytes]:
    iron = Structure(Lattice.hexagonal(2.5, 4), ["Fe"] * 2, [[0, 0, 0], [0.3, 0.6, 0]])
    dicts = [NACL.as_dict(), iron.as_dict(), NACL.as_dict(verbosity=0)]
    table = 'material_id,cif\n"a","{0}"\nb,"{0}"\n'.format(cif())
    texts = {
        "x.cif": cif() + cif(name="second"),
        "x.extxyz": FRAME * 3,
        "x.json": json.dumps({"a": dicts[0], "b": {"structure": dicts[1]}}),
        "x.jsonl": "\n".join(json.dumps({"structure": d}) for d in dicts),
        "x.csv": table,
    }
    files = {name: text.encode() for name, text in texts.items()}
    files |= {f"{n}.gz": gzip.compress(c, mtime=0) for n, c in list(files.items())[:2]}
    return files | {"x.zip": archive(files)}


def mutate_words(content: bytes, rng: random.Random) -> bytes:
    """One to four words replaced, dropped or put in, or lines repeated."""
    lines = content.decode("utf-8", "replace").split("\n")
    for _ in range(rng.randint(1, 4)):
        row = rng.randrange(len(lines))
        words = lines[row].split(" ")
        at = rng.randrange(len(words))
        words[at : at + rng.randrange(2)] = rng.choices(TOKENS, k=rng.randrange(3))
        lines[row] = " ".join(words)
        if rng.random() < 0.3:
            lines[row:row] = [rng.choice(lines)] * rng.choice([1, 1, 50])
        if rng.random() < 0.2 and len(lines) > 1:
            del lines[row]
    return "\n".join(lines).encode(rng.choice(["utf-8", "utf-16"]), "surrogatepass")


@pytest.mark.parametrize("count", [25, pytest.param(1_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mutation", [mutate, mutate_words])
@pytest.mark.parametrize("name", sound_files())
def test_mutated_files(tmp_path, monkeypatch, mutation, name, count):
    monkeypatch.chdir(tmp_path)
    rng, sound = random.Random(count), sound_files()[name]
    assert len(read_crystals(written(tmp_path / name, sound))) > 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(count):
        path = written(tmp_path / name, mutation(sound, rng))
        check(path)
    assert list(tmp_path.iterdir()) == [path]  # nothing was written
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < MEMORY_LIMIT


def check(path):
    """Either crystals that can be worked with, or words on one line."""
    try:
        with alarm():
            items = read_crystals(path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        assert str(error).isprintable()
        return
    assert items
    for item in items:
        assert item.name.isprintable() and item.problem.isprintable()
        if item.structure is None:
            assert item.problem
        else:
            validity(from_structures([item.structure]))
            assert np.isfinite(item.structure.frac_coords).all()


@pytest.mark.parametrize("count", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_folders_of_anything(tmp_path, count):
    """Names, kinds and places of files drawn at random: each sound file is counted."""
    rng, sound = random.Random(count), sound_files()
    crystals = {
        name: len(read_crystals(written(tmp_path / name, c)))
        for name, c in sound.items()
    }
    for i in range(count):
        folder = tmp_path / f"folder {i}"
        folder.mkdir()
        expected = 0
        for j in range(rng.randrange(1, 6)):
            name = rng.choice([n for n in sound if n != "x.zip"])
            stem = rng.choice(
                ["a", "1.0", "x y", "é", "b.v2", "mp-1", "[x]", "-", "%s"]
            )
            suffix = "".join(rng.choice([c.lower(), c.upper()]) for c in name[1:])
            place = rng.choice(["", "sub", "sub/deep er", ".hidden", "._x"])
            hidden = place.startswith(".")
            junk = rng.choice(["", "", "", ".bak", "~", ".tmp"])
            content = rng.choice([sound[name]] * 3 + [b"", mutate(sound[name], rng)])
            written(folder / place / f"{stem}{j}{suffix}{junk}", content)
            if content == sound[name] and not hidden and not junk:
                expected += crystals[name]
        try:
            with alarm():
                items = read_crystals(folder)
        except UserError as error:
            assert not expected and "\n" not in str(error)
        else:
            assert sum(item.structure is not None for item in items) >= expected


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize("count", [30, pytest.param(2_000, marks=pytest.mark.slow)])
def test_noise(tmp_path, suffix, count):
    rng = random.Random(count)
    for _ in range(count):
        size = rng.choice([1, 2, 10, 300])
        noise = rng.choice([rng.randbytes(size), "".join(rng.choices(TOKENS, k=size))])
        noise = noise if isinstance(noise, bytes) else noise.encode()
        check(written(tmp_path / f"x{suffix}", noise))

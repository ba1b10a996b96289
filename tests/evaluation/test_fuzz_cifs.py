"""Mutated CIFs end in a crystal or in words; nothing else happens."""

import random
import resource

import numpy as np
import pytest
from fuzzing import alarm, mutate
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter

from chemeleon_jax.data.crystals import (
    from_structures,
    niggli_reduce,
    take,
    to_structures,
    validity,
)
from chemeleon_jax.data.csv import parse_cif
from chemeleon_jax.data.dataset import load_dataset

TOKENS = [b"1e300", b"-1", b"0", b"nan", b"inf", b"1e-300", b"999999999", b"?", b"."]
TOKENS += [b"loop_", b"'", b";", b"data_", b"-x,-y,-z+1/0", b"1(9999)", b"Fe99999"]
TOKENS += [b"_cell_length_a", b"Xx", b"D", b"0.5", b"180", b"1e5", b"\xff", b"Fe3+"]
MEMORY_LIMIT = 2**20  # kB, for all


@pytest.fixture(scope="module")
def sound():
    """CIFs with and without symmetry."""
    rows = np.random.default_rng(0).choice(13757, 20, replace=False)
    crystals = to_structures(take(load_dataset("mp_mini").crystals, rows))
    return [
        str(CifWriter(crystal, symprec=0.1 if i % 2 else None)).encode()
        for i, crystal in enumerate(crystals)
    ]


def mutate_tokens(content: bytes, rng: random.Random) -> bytes:
    """One to four words replaced, or lines repeated: what the tokeniser passes on."""
    lines = content.split(b"\n")
    for _ in range(rng.randint(1, 4)):
        row = rng.randrange(len(lines))
        words = lines[row].split()
        if words:
            words[rng.randrange(len(words))] = rng.choice(TOKENS)
            lines[row] = b" ".join(words)
        if rng.random() < 0.2:
            lines[row:row] = [rng.choice(lines)] * rng.choice([1, 50])
    return b"\n".join(lines)


@pytest.mark.parametrize("count", [250, pytest.param(5_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mutation", [mutate, mutate_tokens])
def test_mutated_files(sound, tmp_path, monkeypatch, mutation, count):
    monkeypatch.chdir(tmp_path)
    rng = random.Random(count)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read = 0
    for _ in range(count):
        text = mutation(rng.choice(sound), rng).decode("utf-8", "replace")
        with alarm():
            result = parse_cif(text, 20)
        if isinstance(result, Structure):
            assert validity(from_structures([result], 20)) == [0]
            read += 1
        else:
            assert result and "\n" not in result
    assert count / 20 < read < count / 2
    assert not list(tmp_path.iterdir())  # nothing was written
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < MEMORY_LIMIT


@pytest.mark.parametrize("length", [1e4, 1e5])
def test_an_elongated_cell_takes_no_memory(length):
    """pymatgen would list all lattice points within that length."""
    needle = Structure(Lattice.orthorhombic(3, 3, length), ["Fe"], [[0, 0, 0]])
    with pytest.raises(ValueError, match=r"a cell of 3 x 3 x .* is no crystal's"):
        niggli_reduce(needle)
    sheet = Structure(Lattice.orthorhombic(3, 3, 100), ["Fe"], [[0, 0, 0]])
    assert niggli_reduce(sheet).volume == pytest.approx(900)

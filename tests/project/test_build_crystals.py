"""The tool that made mp_mini.npz: not installed, so it is found by its folder."""

import importlib.util
import io
import os
import pickle

import numpy as np
import paths
import pytest
from pymatgen.core import Lattice, Structure

TOOL = paths.ROOT / "tools" / "build_crystals.py"
spec = importlib.util.spec_from_file_location("build_crystals", TOOL)
build_crystals = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build_crystals)


def rutile():
    lattice = Lattice.tetragonal(4.594, 2.959)
    return Structure.from_spacegroup(
        "P4_2/mnm", lattice, ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]
    )


def disguise(structure, seed):
    """The same crystal: larger cell, other axes, origin and order of atoms."""
    rng = np.random.default_rng(seed)
    other = structure.copy().make_supercell([[1, 1, 0], [0, 1, 0], [1, 0, 2]])
    coords = other.frac_coords + rng.uniform(size=3)
    order = rng.permutation(len(other))
    symbols = [other[i].specie for i in order]
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    lattice = other.lattice.matrix @ (rotation * np.linalg.det(rotation))
    return Structure(Lattice(lattice), symbols, coords[order])


@pytest.mark.parametrize("seed", range(4))
def test_equal_crystals_are_written_alike(seed):
    plain = build_crystals.canonicalise(rutile())
    again = build_crystals.canonicalise(disguise(rutile(), seed))
    assert len(again) == 6
    assert [s.specie.symbol for s in again] == ["Ti"] * 2 + ["O"] * 4
    assert again.lattice.parameters == pytest.approx(plain.lattice.parameters, abs=1e-4)
    np.testing.assert_allclose(again.frac_coords, plain.frac_coords, atol=1e-4)
    assert not again.frac_coords[0].any()


def test_mirror_images_stay_apart():
    """Right- and left-handed quartz are different crystals."""
    lattice = Lattice.hexagonal(4.91, 5.40)
    sites = [[0.470, 0, 2 / 3], [0.414, 0.267, 0.786]]
    right = Structure.from_spacegroup("P3_221", lattice, ["Si", "O"], np.array(sites))
    left = Structure(right.lattice, right.species, -right.frac_coords)
    one, other = (build_crystals.canonicalise(s) for s in (right, left))
    assert len(one) == len(other) == 9
    assert not np.allclose(one.frac_coords, other.frac_coords, atol=1e-2)


def test_pickles_run_nothing():
    class Harmful:
        def __reduce__(self):
            return os.getcwd, ()

    file = io.BytesIO(pickle.dumps(Harmful()))
    with pytest.raises(pickle.UnpicklingError, match=r"getcwd is not allowed here"):
        build_crystals._AtomsUnpickler(file).load()

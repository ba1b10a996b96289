"""Labels of symmetry, of crystals whose space groups are known."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from chemeleon_jax.data.crystals import from_structures
from chemeleon_jax.data.dataset import Dataset
from chemeleon_jax.data.symmetry import (
    CRYSTAL_SYSTEMS,
    crystal_systems,
    with_symmetry_labels,
)


@pytest.fixture
def dataset(monkeypatch, tmp_path):
    """Rock salt, close-packed magnesium, a crystal without symmetry, no crystal."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    salt = Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    ).get_primitive_structure()
    metal = Structure(
        Lattice.hexagonal(3.2, 5.2),
        ["Mg"] * 2,
        [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]],
    )
    none = Structure(
        Lattice.from_parameters(4, 5, 6, 80, 95, 101),
        ["Li", "O", "H"],
        [[0, 0, 0], [0.2, 0.4, 0.3], [0.6, 0.1, 0.7]],
    )
    crystals = from_structures([salt, metal, none, salt])
    crystals.lengths[3] = np.nan
    ids = np.array(list("abcd"))
    return Dataset(crystals, {"gap": np.ones(4)}, ids, np.zeros(4, np.int8))


def test_labels_are_found_where_a_condition_asks_for_them(dataset):
    specs = [
        {"name": "group", "kind": "space_group"},
        {"name": "system", "kind": "crystal_system"},
        {"name": "gap", "kind": "float"},
    ]
    for _ in range(2):  # computed, and cached
        labels = with_symmetry_labels(dataset, specs).labels
        np.testing.assert_array_equal(labels["group"], [224, 193, 0, np.nan])
        np.testing.assert_array_equal(labels["system"], [6, 5, 0, np.nan])
        assert labels["gap"] is dataset.labels["gap"]
    assert with_symmetry_labels(dataset, specs[2:]) is dataset


def test_where_crystal_systems_begin_and_end():
    first = np.array([1, 3, 16, 75, 143, 168, 195], np.float32)
    for numbers in (first, [*(first[1:] - 1), 230]):
        assert crystal_systems(np.array(numbers)).tolist() == [*range(7)]
    assert list(CRYSTAL_SYSTEMS)[3] == "tetragonal"

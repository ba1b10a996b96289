"""What holds of every lattice, crystal, override and file, not only of the examples."""

import math

import numpy as np
import pytest
from command_lines import parsed
from hypothesis import assume, given
from hypothesis import strategies as st
from properties import FAST
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter

from chemeleon_jax.data.crystals import from_structures, to_structures, validity
from chemeleon_jax.data.csv import parse_cif
from chemeleon_jax.data.dataset import load_csv
from chemeleon_jax.data.lattice import lattice_matrix, lattice_parameters, volume
from chemeleon_jax.errors import UserError
from convert_checkpoints import CheckpointError, read_checkpoint

unit = st.floats(0, 1, exclude_max=True, width=32)


@st.composite
def cells(draw):
    """Lengths and angles of a cell that is not too flat to be one."""
    lengths = draw(st.lists(st.floats(2, 50, width=32), min_size=3, max_size=3))
    angles = draw(st.lists(st.floats(20, 160, width=32), min_size=3, max_size=3))
    lengths, angles = np.array(lengths), np.array(angles)
    assume(volume(lattice_matrix(lengths, angles)) > 0.1 * lengths.prod())
    return lengths, angles


@st.composite
def structures(draw, max_atoms=8):
    """Elements and positions at will: valid or not."""
    lengths, angles = draw(cells())
    sites = st.lists(
        st.tuples(st.integers(1, 94), unit, unit, unit), min_size=1, max_size=max_atoms
    )
    types, *coords = zip(*draw(sites), strict=True)
    return Structure(
        Lattice(lattice_matrix(lengths, angles)), types, np.transpose(coords)
    )


@FAST
@given(cells())
def test_cell_parameters_survive_the_matrix(cell):
    lengths, angles = cell
    again = lattice_parameters(lattice_matrix(lengths, angles))
    np.testing.assert_allclose(again[0], lengths, rtol=1e-12)
    np.testing.assert_allclose(again[1], angles, rtol=1e-9)


@FAST
@given(cells(), st.integers(0, 2**32 - 1))
def test_a_rotation_changes_no_cell_parameter(cell, seed):
    matrix = lattice_matrix(*cell)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    again = lattice_parameters(matrix @ rotation)
    for before, after in zip(cell, again, strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-6)
    assert volume(matrix @ rotation) == pytest.approx(volume(matrix))


@FAST
@given(st.lists(structures(), min_size=1, max_size=3), st.integers(0, 4))
def test_structures_survive_the_batch(crystals, padding):
    width = max(map(len, crystals)) + padding
    batch = from_structures(crystals, width)
    for before, after in zip(crystals, to_structures(batch), strict=True):
        assert after.atomic_numbers == before.atomic_numbers
        for name in ("lengths", "angles"):
            np.testing.assert_allclose(
                getattr(after.lattice, name), getattr(before.lattice, name), rtol=1e-4
            )
        apart = after.frac_coords - before.frac_coords
        np.testing.assert_allclose(apart - np.round(apart), 0, atol=1e-6)
    again = from_structures(to_structures(batch), width)
    np.testing.assert_array_equal(again.frac_coords, batch.frac_coords)
    np.testing.assert_array_equal(again.mask, batch.mask)


@pytest.mark.filterwarnings("ignore:No Pauling")  # of noble gases
@FAST
@given(structures())
def test_a_cif_gives_its_crystal_or_says_why_not(crystal):
    found = parse_cif(str(CifWriter(crystal)), 20)
    if isinstance(found, str):
        assert validity(from_structures([crystal]))[0] != 0
    else:
        assert found.composition.almost_equals(crystal.composition)
        assert found.volume == pytest.approx(crystal.volume, rel=1e-4)


# --------------------------------------------------------------------- command line

SOUND = st.sampled_from(
    [
        ("rl.clip_ratio", st.floats(1e-6, 1)),
        ("rl.num_group_samples", st.integers(2, 10**6)),
        ("seed", st.integers(0, 2**31)),
        ("rl.group_reward_norm", st.booleans()),
        ("reward.components.energy.weight", st.floats(0, 1e6)),
        ("reward.components.predictor.target", st.floats(-1e3, 1e3)),
        ("data.dataset", st.text(st.characters(codec="ascii", categories="L"))),
    ]
).flatmap(lambda pair: st.tuples(st.just(pair[0]), pair[1]))


@FAST
@given(SOUND)
def test_an_override_is_what_was_typed(override):
    field, value = override
    config = parsed(f"--config.{field}={value}")
    for part in field.split("."):
        config = config[part]
    assert config == value and type(config) is type(value)


@FAST
@given(st.text(max_size=20), st.text(max_size=20))
def test_any_other_argument_is_an_error_for_people(field, value):
    with pytest.raises(UserError):
        parsed(f"--config.{field}x={value}")


@FAST
@given(st.sampled_from(["rl.clip_ratio", "seed", "rl.kl_weight"]), st.text(max_size=9))
def test_a_number_or_an_error_for_people(field, value):
    try:
        config = parsed(f"--config.{field}={value}")
    except UserError:
        return
    for part in field.split("."):
        config = config[part]
    assert math.isclose(config, float(value)) or math.isnan(float(value))


# ----------------------------------------------------------------------------- files

NACL = """data_NaCl
_cell_length_a 3.99
_cell_length_b 3.99
_cell_length_c 3.99
_cell_angle_alpha 60
_cell_angle_beta 60
_cell_angle_gamma 60
loop_
_atom_site_label
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Na 0 0 0
Cl 0.5 0.5 0.5
"""
TABLE = f'material_id,cif,split,band_gap\na,"{NACL}",train,5.0\nb,"{NACL}",val,x\n'
pieces = st.one_of(
    st.text(max_size=5),
    st.sampled_from(['"', "\n", ",", "\0", "\r", "\ud7ff", "cif", "1e400", "nan"]),
)


@FAST
@given(st.lists(st.tuples(st.integers(0, len(TABLE)), st.integers(0, 9), pieces)))
def test_a_table_gives_crystals_or_an_error_for_people(tmp_path_factory, edits):
    text = TABLE
    for at, length, piece in edits:
        text = text[:at] + piece + text[at + length :]
    path = tmp_path_factory.mktemp("tables") / "table.csv"
    path.write_bytes(text.encode())
    try:
        dataset = load_csv(path)
    except UserError as error:
        assert str(path) in str(error)
        return
    assert (validity(dataset.crystals) == 0).all()
    assert len(dataset.material_ids) == len(dataset.split) == len(dataset) >= 1
    assert all(len(column) == len(dataset) for column in dataset.labels.values())


@FAST
@given(st.sampled_from([".ckpt", ".pt", ".safetensors"]), st.binary(max_size=200))
def test_bytes_are_no_checkpoint(tmp_path_factory, suffix, content):
    path = tmp_path_factory.mktemp("bytes") / f"file{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=str(path)):
        read_checkpoint(path)

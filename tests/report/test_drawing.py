import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from chemeleon_jax.report.drawing import draw_crystal, make_scene

CSCL = Structure(Lattice.cubic(4.12), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def test_atoms_on_corners_are_drawn_on_all_of_them():
    scene = make_scene(CSCL)
    assert sorted(scene.atomic_numbers.tolist()) == [17] + 8 * [55]
    distances = np.linalg.norm(scene.positions, axis=-1)  # from the centre
    np.testing.assert_allclose(
        distances, np.where(scene.atomic_numbers == 17, 0, 4.12 * 3**0.5 / 2), atol=1e-6
    )
    lengths = np.linalg.norm(scene.edges[:, 0] - scene.edges[:, 1], axis=-1)
    np.testing.assert_allclose(lengths, 12 * [4.12])


def test_bonds_join_no_two_cations():
    # Cs-Cl 3.57 Å < 1.15 (2.44 + 1.02); Cs-Cs 4.12 Å < 1.15 (2.44 + 2.44), but metals.
    scene = make_scene(CSCL)
    counts = np.bincount(scene.half_of, minlength=9)
    np.testing.assert_array_equal(counts, np.where(scene.atomic_numbers == 17, 8, 1))
    ends = np.linalg.norm(
        scene.halves[:, 1] - scene.positions[scene.half_of], axis=-1
    )  # the middle of a bond
    np.testing.assert_allclose(ends, 4.12 * 3**0.5 / 4)


def test_half_a_bond_leaves_the_cell():
    # Two atoms 1.2 Å apart across a face, each drawn once.
    sites = [[0.5, 0.5, 0.15], [0.5, 0.5, 0.85]]
    scene = make_scene(Structure(Lattice.cubic(4), ["O", "O"], sites))
    assert scene.half_of.tolist() == [0, 1]
    middle = scene.halves[:, 1] - scene.positions
    np.testing.assert_allclose(np.linalg.norm(middle, axis=-1), 0.6)
    np.testing.assert_allclose(middle[0], -middle[1])


def test_metals_are_joined_where_there_is_nothing_else():
    iron = Structure(Lattice.cubic(2.87), ["Fe", "Fe"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    scene = make_scene(iron)  # 2.49 Å and 2.87 Å, both < 1.15 (1.32 + 1.32)
    # On a corner: the centre and three corners. In the centre: eight corners, and
    # halves to the centres of six cells around.
    assert sorted(np.bincount(scene.half_of)) == 8 * [1 + 3] + [8 + 6]


def test_the_view_is_no_mirror():
    # The wrong answer: right, up and away from the viewer, a left-handed triple.
    corner = Structure(Lattice.orthorhombic(3, 4, 5), ["C"], [[0.5, 0.5, 0.5]])
    edges = make_scene(corner).edges
    at_origin = [e for e in edges if any(np.allclose(p, edges[0, 0]) for p in e)]
    c, b, a = (e[1] - e[0] for e in at_origin)
    assert np.linalg.det([a, b, c]) == pytest.approx(60)
    assert a[0] > 2 and c[1] > 4 and b[2] < -3  # a to the right, c up, b away


def test_a_picture_shows_the_nearest_ball_and_is_clear_around_the_crystal():
    picture = draw_crystal(CSCL, 120)
    assert picture.size == (120, 120) and picture.mode == "RGBA"
    red, green, blue, alpha = picture.getpixel((60, 60))  # the ball of Cl
    assert alpha == 255 and green > 2 * red and green > 2 * blue
    assert picture.getpixel((1, 1))[3] == 0
    assert np.asarray(picture)[:, [0, -1], 3].max() == 0  # nothing is cut off

"""CHGNet against numbers recorded from its authors' package, and its batch logic."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import paths
import pytest
from pymatgen.core import Lattice, Structure

from chemeleon_jax.data.crystals import from_structures
from chemeleon_jax.data.lattice import lattice_matrix, lattice_parameters, volume
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.potentials import batches, chgnet
from chemeleon_jax.potentials.batches import GraphPotential
from chemeleon_jax.potentials.graph import Capacity, next_chunk
from chemeleon_jax.potentials.loading import load_potential
from chemeleon_jax.potentials.types import Status

FIXTURE = paths.FIXTURES / "chgnet_reference.npz"
ROWS, WIDTH = 50, 20
COPPER_CELL = Lattice([[0, 1.81, 1.81], [1.81, 0, 1.81], [1.81, 1.81, 0]])
SMALL = Capacity(crystals=16, atoms=256, edges=4096, bonds=1024, angles=8192)
TINY = Capacity(crystals=4, atoms=32, edges=256, bonds=96, angles=256)


def batch(*crystals) -> CrystalBatch:
    """Crystals given as (atomic numbers, fractional coordinates, lengths, angles).

    Padded to the shape of the recorded ones, so that all share one compilation.
    """
    atom_types = np.zeros((ROWS, WIDTH), np.int32)
    frac_coords = np.zeros((ROWS, WIDTH, 3), np.float32)
    lengths, angles = np.ones((2, ROWS, 3), np.float32)
    for row, (types, frac, *cell) in enumerate(crystals):
        atom_types[row, : len(types)] = types
        frac_coords[row, : len(types)] = frac
        lengths[row], angles[row] = cell
    return CrystalBatch(
        atom_types=jnp.array(atom_types),
        frac_coords=jnp.array(frac_coords),
        lengths=jnp.array(lengths),
        angles=jnp.array(angles),
        mask=jnp.array(atom_types != 0),
    )


def cubic(types, frac, length):
    return types, frac, [length] * 3, [90.0] * 3


def fcc(types, frac, length):
    """Primitive cell of a face-centred lattice with this cubic cell length."""
    return types, frac, [length / 2**0.5] * 3, [60.0] * 3


SALT = fcc([11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]], 5.64)
SILICON = fcc([14, 14], [[0, 0, 0], [0.25, 0.25, 0.25]], 5.431)


@pytest.fixture(scope="module")
def reference():
    with np.load(FIXTURE) as f:
        return dict(f)


@pytest.fixture(scope="module")
def crystals(reference):
    return CrystalBatch(
        atom_types=jnp.asarray(reference["atom_types"], jnp.int32),
        frac_coords=jnp.asarray(reference["frac_coords"]),
        lengths=jnp.asarray(reference["lengths"]),
        angles=jnp.asarray(reference["angles"]),
        mask=jnp.asarray(reference["atom_types"] > 0),
    )


@pytest.fixture(scope="module")
def energies():
    return jax.jit(load_potential("chgnet").energies)


def test_rock_salt_and_silicon(energies):
    energy, status = energies(batch(SALT, SILICON))
    np.testing.assert_allclose(energy[:2], [-3.666, -5.312], atol=5e-4)
    np.testing.assert_array_equal(status[:2], Status.OK)
    np.testing.assert_array_equal(status[2:], Status.NOT_FINITE)  # no atoms


def test_energies_of_50_crystals_are_those_of_the_package(
    energies, crystals, reference
):
    energy, status = energies(crystals)
    np.testing.assert_array_equal(status, Status.OK)
    np.testing.assert_allclose(energy, reference["energy"], atol=2e-5)


def total_energies(frac_coords, lengths, angles, strain, crystals):
    """Energies of the cells in eV, [B]. `strain` [B, 3, 3] deforms them.

    Their gradients come from small graphs and large ones.
    """
    lattice = lattice_matrix(lengths, angles)
    energy, _ = batches.batch_energy(
        GraphPotential(chgnet.graph_energy, SMALL, TINY),
        chgnet.load_params(),
        frac_coords,
        lattice + lattice @ strain,
        crystals.atom_types,
        crystals.mask,
    )
    return energy * crystals.num_atoms


@pytest.fixture(scope="module")
def derivatives(crystals):
    """Ten crystals, the arguments of `total_energies` for them, and its gradients."""
    some = jax.tree.map(lambda x: x[:10], crystals)
    point = some.frac_coords, some.lengths, some.angles, jnp.zeros((10, 3, 3))
    gradient = jax.grad(lambda *x: total_energies(*x, some).sum(), argnums=(0, 1, 2, 3))
    return some, point, jax.jit(gradient)(*point)


def test_forces_and_stresses_are_those_of_the_package(derivatives, reference):
    some, _, gradient = derivatives
    # x = f L, so dE/dx = dE/df L^-T.
    inverse = np.linalg.inv(np.asarray(some.lattice, np.float64))
    forces = -np.einsum("bni,bji->bnj", gradient[0], inverse)
    np.testing.assert_allclose(forces, reference["forces"][:10], atol=5e-4)  # eV/Å
    stress = gradient[3] / volume(some.lattice)[:, None, None] * 160.21766208
    np.testing.assert_allclose(stress, reference["stress"][:10], atol=5e-3)  # GPa


def test_small_graphs_and_gradients(derivatives, reference):
    """By coordinates, cell lengths, angles and strain, against finite differences."""
    some, point, gradients = derivatives
    energies = jax.jit(total_energies)
    expected = reference["energy"][:10] * some.num_atoms
    np.testing.assert_allclose(energies(*point, some), expected, rtol=5e-6)
    for which, step in enumerate((1e-3, 5e-3, 0.1, 1e-3)):
        gradient = np.asarray(gradients[which])
        direction = gradient / np.abs(gradient).max()
        ahead, behind = (
            np.asarray(
                energies(*point[:which], point[which] + s, *point[which + 1 :], some),
                np.float64,
            ).sum()
            for s in (step * direction, -step * direction)
        )
        slope = (ahead - behind) / (2 * step)
        assert abs(slope - (gradient * direction).sum()) < 0.01 * slope, which


def test_energy_ignores_translation_order_of_atoms_supercell_and_padding(energies):
    types, frac, lengths, angles = SALT
    frac = np.array(frac)
    shifted = types, frac + [0.3, -7.9, 0.77], lengths, angles
    swapped = types[::-1], frac[::-1], lengths, angles
    doubled = (
        types * 2,
        np.concatenate([frac / [2, 1, 1], frac / [2, 1, 1] + [0.5, 0, 0]]),
        np.array(lengths) * [2, 1, 1],
        angles,
    )
    energy, _ = energies(batch(SALT, shifted, swapped, doubled))
    np.testing.assert_allclose(energy[:4], energy[0], atol=2e-6)


def test_impossible_crystals_have_a_status_and_leave_the_others_alone(energies):
    nan, inf = float("nan"), float("inf")
    skewed = np.array([[5.0, 0.0, 0.0], [0.0, 5.0, 0.0], [300.0, 300.0, 1.0]])
    hopeless = {
        Status.NOT_FINITE: [
            ([], np.zeros((0, 3)), [4.0] * 3, [90.0] * 3),
            cubic([11], [[nan, 0, 0]], 4.0),
            cubic([11], [[0, 0, 0]], inf),
        ],
        Status.UNKNOWN_ELEMENT: [
            cubic([95], [[0, 0, 0]], 4.0),
            cubic([-1, 3], [[0, 0, 0]] * 2, 4.0),
        ],
        Status.ISOLATED: [cubic([11], [[0, 0, 0]], 9.0)],
        Status.TOO_DENSE: [
            cubic([11] * 20, np.zeros((20, 3)), 1.0),
            ([11], [[0, 0, 0]], [4.0] * 3, [120.0] * 3),
            ([11], [[0, 0, 0]], [4.0] * 3, [90.0, 0.0, 0.0]),
        ],
        Status.BAD_CELL: [
            ([11], [[0, 0, 0]], *lattice_parameters(skewed)),
            cubic([11, 11], [[0, 0, 0], [0.001, 0, 0]], 3000.0),
        ],
    }
    expected = [code for code, group in hopeless.items() for _ in group]
    bad = [crystal for group in hopeless.values() for crystal in group]
    energy, status = map(np.asarray, energies(batch(SALT, SILICON, *bad)))
    np.testing.assert_array_equal(status[2:][: len(bad)], expected)
    assert np.isnan(energy[2:]).all()
    np.testing.assert_allclose(energy[:2], [-3.666, -5.312], atol=5e-4)
    assert max(expected) < len(Status)


def test_coincident_atoms_give_no_energy_and_harm_nobody(energies):
    energy, status = energies(batch(cubic([8, 8], [[0, 0, 0]] * 2, 4.0), SALT))
    assert np.isnan(energy[0]) and status[0] != Status.OK
    np.testing.assert_allclose(energy[1], -3.666, atol=5e-4)


def test_graph_of_rock_salt():
    """Shells at 2.82 Å * sqrt(1, 2, 3, 4): 6 bonds, then 12, 8 and 6 neighbours."""
    crystals = batch(SALT)
    graph, status, end = next_chunk(
        0,
        crystals.atom_types,
        crystals.frac_coords,
        crystals.lattice,
        crystals.mask,
        capacity=SMALL,
    )
    assert status[0] == Status.OK and end == SMALL.crystals - 1  # with 14 empty ones
    assert (graph.atom_crystal == 0).sum() == 2
    # Of two atoms; an edge is stored once, an angle from both its bonds.
    assert (graph.edge_first < SMALL.atoms - 1).sum() == 2 * (6 + 12 + 8 + 6) / 2
    assert (graph.bond_edge < SMALL.edges - 1).sum() == 2 * 6 / 2
    assert (graph.angle_left != SMALL.bonds - 1).sum() == 2 * 6 * 5


def test_a_large_crystal_has_a_larger_graph():
    """192 atoms of copper: 192 * 78 directed edges, too many for 64 atoms' graph."""
    fcc = Structure(COPPER_CELL, ["Cu"], [[0, 0, 0]])
    large = from_structures([fcc * (4, 6, 8), fcc])
    energy, status = jax.jit(partial(chgnet.energies, chgnet.load_params()))(large)
    assert status.tolist() == [Status.OK, Status.OK]
    np.testing.assert_allclose(energy[0], energy[1], atol=1e-4)
    assert Capacity.for_width(20) == Capacity.for_width(64) == Capacity()
    assert Capacity.for_width(192).sizes == tuple(3 * n for n in Capacity().sizes)
    cell = [np.array(x[0], np.float64) for x in (large.frac_coords, large.lattice)]
    _, _, sizes = Capacity.for_width(192).find(np.full(192, 29), *cell)
    assert sizes == (192, 192 * 78 // 2, 192 * 12 // 2, 192 * 12 * 11)
    assert sizes[-1] > Capacity().angles  # so that it was too dense


def test_chunks_take_every_crystal_once():
    crystals = batch(*[SALT] * 40)
    arrays = crystals.atom_types, crystals.frac_coords, crystals.lattice, crystals.mask
    start, taken = 0, 0
    while start < ROWS:
        graph, _, end = next_chunk(start, *arrays, capacity=SMALL)
        taken += (graph.atom_slot < ROWS * WIDTH).sum() // 2
        assert start < end <= start + SMALL.crystals - 1
        start = end
    assert taken == 40


def test_a_small_graph_is_taken_where_the_first_crystal_fits():
    """The 60 angles of two atoms of salt do; the 132 of one of copper do not."""
    tiny = Capacity(crystals=4, atoms=8, edges=96, bonds=16, angles=128)
    crystals = batch(SALT, fcc([29], [[0, 0, 0]], 3.62), SALT, SALT, SALT)
    arrays = crystals.atom_types, crystals.frac_coords, crystals.lattice, crystals.mask
    ends, sizes = [0], []
    while ends[-1] < 5:
        graph, status, end = next_chunk(ends[-1], *arrays, capacity=SMALL, small=tiny)
        assert len(status) in (tiny.crystals, SMALL.crystals)
        sizes.append(len(graph.atom_types))
        ends.append(int(end))
    assert ends == [0, 1, 16] and sizes == [tiny.atoms, SMALL.atoms]


def test_weights_are_checked(monkeypatch):
    monkeypatch.setattr(chgnet, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="chgnet.safetensors was altered"):
        chgnet.load_params.__wrapped__()


def test_parameter_count():
    params = jax.tree.leaves(chgnet.load_params())
    assert sum(p.size for p in params) == 412_525

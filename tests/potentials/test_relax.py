from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from chemeleon_jax.data.crystals import empty_batch, from_structures
from chemeleon_jax.devices.sharding import make_mesh
from chemeleon_jax.evaluation.relaxation import relax_structures
from chemeleon_jax.potentials import batches, chgnet
from chemeleon_jax.potentials.graph import Capacity
from chemeleon_jax.potentials.relax import relax
from chemeleon_jax.potentials.stiffness import invert, model_hessian
from chemeleon_jax.potentials.types import Potential, Status

SMALL = Capacity(crystals=6, atoms=24, edges=512, bonds=128, angles=2048)
CHGNET = Potential(
    "chgnet",
    "",
    partial(
        batches.energies,
        batches.GraphPotential(chgnet.graph_energy, SMALL),
        chgnet.load_params(),
    ),
)
relax_by_chgnet = partial(
    relax_structures, potential=CHGNET, max_steps=60, batch_size=4
)
NACL = Structure(
    Lattice.rhombohedral(3.97, 60), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
)
LONELY = Structure(Lattice.cubic(20), ["Na"], [[0, 0, 0]])  # no neighbour, no energy


@pytest.fixture(scope="module")
def relaxed():
    pushed = NACL.copy()
    pushed.apply_strain([0.04, -0.03, 0.02])
    pushed.translate_sites([1], [0.02, -0.03, 0.01])
    rutile = Structure.from_spacegroup(
        "P4_2/mnm",
        Lattice.tetragonal(4.6, 2.96),
        ["Ti", "O"],
        [[0, 0, 0], [0.305, 0.305, 0]],
    )
    rutile.apply_strain([0.05, -0.04, 0.03])
    shifts = [0.02, 0, 0.01], [0, 0.03, -0.02], [-0.03, 0.01, 0]
    shifts += [0.01, -0.02, 0.03], [0, 0, -0.02], [0.02, 0.02, 0]
    for i, shift in enumerate(shifts):
        rutile.translate_sites([i], shift)
    return relax_by_chgnet([LONELY, pushed, NACL, rutile]), pushed


def test_a_distorted_crystal_comes_back(relaxed):
    (_, pushed, still, _), start = relaxed
    assert pushed.converged and still.converged
    assert pushed.initial_energy > pushed.energy + 0.003
    assert still.steps < pushed.steps < 60
    assert pushed.energy == pytest.approx(still.energy, abs=2e-3)
    assert pushed.structure.volume == pytest.approx(still.structure.volume, rel=0.02)
    np.testing.assert_allclose(pushed.structure.lattice.angles, 60, atol=1.0)
    # Its second atom was put off by 0.105 Å; half of that is a translation of both.
    assert pushed.rmsd == pytest.approx(0.053, abs=0.01)
    assert still.rmsd == pytest.approx(0, abs=1e-3)
    assert start.matches(NACL)  # the argument is as it was


def test_the_energy_is_that_of_the_structure_and_a_minimum(relaxed):
    structure, energy = relaxed[0][1].structure, relaxed[0][1].energy
    around = [structure.copy() for _ in range(4)]
    around[1].apply_strain(0.02)
    around[2].apply_strain(-0.02)
    around[3].translate_sites([0], [0.03, 0, 0])
    found = [r.initial_energy for r in relax_by_chgnet(around)]
    assert found[0] == pytest.approx(energy, abs=1e-4)
    assert min(found[1:]) > found[0]


def test_a_crystal_without_an_energy_stays_where_it_is(relaxed):
    lonely = relaxed[0][0]
    assert not lonely.converged and np.isnan(lonely.energy)
    assert lonely.problem == "isolated"
    assert lonely.structure.volume == pytest.approx(8000)
    assert relax_by_chgnet([]) == []


def test_minima_are_those_of_fire(relaxed):
    """Energies that FIRE came to, recorded, in 10 and 37 steps."""
    pushed, rutile = relaxed[0][1], relaxed[0][3]
    assert rutile.converged and 0 < rutile.steps <= 37 / 3
    assert rutile.initial_energy == pytest.approx(-9.29137, abs=1e-4)
    assert rutile.energy == pytest.approx(-9.38793, abs=1e-3)
    assert pushed.energy == pytest.approx(-3.66730, abs=1e-3)


# ------------------------------------------------------------- a quick potential

DEPTH, BOND = 0.5, 3.0  # eV, Å


def morse_energies(crystals):
    """A Morse potential that fades out at 5 Å; lithium has none."""
    axis = np.arange(-2, 3)
    images = np.stack(np.meshgrid(axis, axis, axis), -1).reshape(-1, 3)
    frac = crystals.frac_coords
    between = frac[:, None] - frac[:, :, None]
    between = between - jnp.round(between)
    shifts = between[:, :, :, None] + images[None, None, None]
    vector = jnp.einsum("bijsk,bkl->bijsl", shifts, crystals.lattice)
    square = (vector**2).sum(-1)
    pair = crystals.mask[:, :, None] & crystals.mask[:, None]
    pair = pair[..., None] & (square > 1e-6) & (square < 25.0)
    distance = jnp.sqrt(jnp.where(pair, square, 1.0))
    well = (1 - jnp.exp(-1.5 * (distance - BOND))) ** 2 - 1
    well = well * (1 - square / 25.0) ** 3
    total = jnp.where(pair, 0.5 * DEPTH * well, 0.0).sum((1, 2, 3))
    energy = total / jnp.maximum(crystals.mask.sum(1), 1)
    status = jnp.where(crystals.mask.any(1), Status.OK, Status.NOT_FINITE)
    status = jnp.where((crystals.atom_types == 3).any(1), Status.FAILED, status)
    return jnp.where(status == Status.OK, energy, jnp.nan), status


MORSE = Potential("morse", "", morse_energies)
relax_by_morse = jax.jit(partial(relax, potential=MORSE, steps=60, max_force=0.01))


@pytest.fixture(scope="module")
def crystals():
    """Eight distorted close packings of 1, 2 or 4 atoms; the seventh of lithium."""
    rng = np.random.default_rng(0)
    face_centred = [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    conventional = Structure(Lattice.cubic(4.2), ["Ar"] * 4, face_centred)
    half = Structure(
        Lattice.tetragonal(3.0, 4.2), ["Ar"] * 2, [[0, 0, 0], [0.5, 0.5, 0.5]]
    )
    primitive = Structure(Lattice.rhombohedral(3.0, 60), ["Ar"], [[0, 0, 0]])
    some = []
    for kind in [conventional, primitive, half, half, conventional, half] + [half] * 2:
        crystal = kind.copy()
        crystal.apply_strain(rng.normal(0, 0.03, 3))
        for i in range(len(crystal)):
            crystal.translate_sites([i], rng.normal(0, 0.06, 3), frac_coords=False)
        some.append(crystal)
    some[6].replace(0, "Li")
    return from_structures(some, 4)


@pytest.fixture(scope="module")
def found(crystals):
    return jax.device_get(relax_by_morse(crystals))


def test_crystals_reach_their_minimum(crystals, found):
    energies, status = morse_energies(jax.tree.map(jnp.asarray, found.crystals))
    ok = np.arange(8) != 6
    assert found.converged.tolist() == ok.tolist()
    assert found.status.tolist() == status.tolist()
    np.testing.assert_allclose(found.energy, energies, atol=1e-4)
    assert (found.energy[ok] < found.initial_energy[ok]).all()
    assert (found.max_force[ok] < 0.01).all()
    np.testing.assert_array_equal(found.crystals.mask, crystals.mask)
    np.testing.assert_array_equal(found.crystals.atom_types, crystals.atom_types)
    # An atom alone in its cell cannot move within it.
    assert found.rmsd[1] == pytest.approx(0, abs=1e-5) and found.rmsd[0] > 0.03
    # All are the same packing.
    np.testing.assert_allclose(found.energy[ok], found.energy[0], atol=1e-3)


def test_what_cannot_be_relaxed_is_left_as_it_was(crystals, found):
    assert found.status[6] == Status.FAILED and np.isnan(found.energy[6])
    assert found.steps[6] == 1 and np.isnan(found.rmsd[6])
    np.testing.assert_array_equal(found.crystals.lengths[6], crystals.lengths[6])
    nothing = jax.jit(partial(relax, potential=MORSE))(empty_batch(2, 4))
    assert nothing.steps.tolist() == [0, 0] and not nothing.converged.any()


def test_a_crystal_relaxes_alike_alone_in_a_batch_and_padded(crystals, found):
    alone = jax.tree.map(lambda x: x[3:4], crystals)
    alone = jax.tree.map(lambda x: np.repeat(x, 2, 0), alone)
    wider = empty_batch(3, 9)
    for name, values in vars(crystals).items():
        getattr(wider, name)[1:, :4] = values[3:5]
    for other, row in ((relax_by_morse(alone), 0), (relax_by_morse(wider), 1)):
        assert abs(int(other.steps[row]) - found.steps[3]) <= 1
        assert other.energy[row] == pytest.approx(found.energy[3], abs=1e-4)
        np.testing.assert_allclose(
            other.crystals.lengths[row], found.crystals.lengths[3], atol=1e-3
        )


def test_devices_share_a_batch(crystals, found):
    with jax.set_mesh(make_mesh()):
        shared = jax.device_get(relax_by_morse(crystals))
    assert np.abs(shared.steps - found.steps).max() <= 1
    np.testing.assert_allclose(shared.energy, found.energy, atol=1e-4)


def test_steps_are_energies_and_limited(crystals, found):
    stopped = jax.jit(partial(relax, potential=MORSE, steps=2))(crystals)
    assert stopped.steps.max() == 2 and not stopped.converged[0]
    assert (stopped.energy[:6] < stopped.initial_energy[:6]).all()
    assert (stopped.energy[:6] > found.energy[:6]).all()


def test_noise_of_energies_does_not_stop_it_short(crystals, found):
    """The last steps gain less than energies are told apart by; forces still count."""

    def coarse_energies(crystals):
        energy, status = morse_energies(crystals)
        coarse = jnp.round(energy / 8e-6) * 8e-6
        return energy + jax.lax.stop_gradient(coarse - energy), status

    coarse = Potential("coarse", "", coarse_energies)
    run = jax.jit(partial(relax, potential=coarse, steps=60, max_force=0.0005))
    relaxed = jax.device_get(run(crystals))
    assert (relaxed.converged == found.converged).all()
    assert (relaxed.max_force[found.converged] < 0.0005).all()


def test_the_hopeless_are_given_up(crystals, found, monkeypatch):
    """The third and fourth are far above what is called their hull; no hull, no end."""
    monkeypatch.setattr("chemeleon_jax.potentials.relax.PATIENCE", 3)
    hull = np.full(8, np.nan)
    hull[:4] = found.energy[:4] + np.array([0.0, -0.4, -0.6, -2.0])
    run = jax.jit(partial(relax, potential=MORSE, steps=60, max_force=0.01))
    judged = jax.device_get(run(crystals, hull_energy=hull))
    assert judged.given_up.tolist() == [False, False, True, True] + [False] * 4
    assert judged.steps[2:4].tolist() == [3, 3]
    assert (judged.converged == (found.converged & ~judged.given_up)).all()


def test_the_model_of_stiffness_is_the_curvature_of_its_springs():
    """Two atoms in a long cell: one pair of springs, along x."""
    frac, lattice = np.array([[0, 0, 0], [0.1, 0, 0]]), 30.0 * np.eye(3)
    types, mask = np.array([18, 18]), np.array([True, True])
    hessian = np.asarray(model_hessian(frac, lattice, types, mask))
    spring = 5.0 * np.exp(-7.0 * (3.0 / 2.12 - 1))  # 0.274 eV/Å^2; radius 1.06 Å
    assert hessian[0, 3] == pytest.approx(-spring, rel=1e-3)
    assert hessian[1, 4] == pytest.approx(-0.3 * spring, rel=1e-3)
    assert hessian[0, 0] == pytest.approx(spring + 0.2, rel=1e-3)  # and the anchor
    # A strain of 1 along x stretches the pair by 3 Å: it pulls the first atom along.
    assert hessian[0, 6] == pytest.approx(-3 * spring, rel=1e-3)
    assert hessian[6, 6] == pytest.approx(9 * spring + 2, rel=1e-3)
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-5)
    assert np.linalg.eigvalsh(hessian).min() > 0


def test_an_energy_that_no_crystal_has_is_a_failure():
    """A network may put atoms on top of each other at -1e6 eV/atom."""
    hole = batches.GraphPotential(lambda *x: chgnet.graph_energy(*x) - 30.0, SMALL)
    run = jax.jit(partial(batches.energies, hole, chgnet.load_params()))
    energy, status = run(from_structures([NACL] * 4, 20))
    assert np.isnan(energy).all() and (status == Status.FAILED).all()


def test_a_positive_definite_matrix_is_inverted():
    half = np.random.default_rng(0).normal(size=(3, 20, 24))
    matrices = jnp.asarray(half @ half.swapaxes(1, 2) + np.eye(20), jnp.float32)
    found = jax.jit(jax.vmap(invert))(matrices)
    np.testing.assert_allclose(
        found @ matrices, np.eye(20)[None].repeat(3, 0), atol=2e-4
    )

"""Checkpoints of Nequix with random weights, against its package's numbers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import paths
import pytest

from chemeleon_jax.data.lattice import lattice_matrix, volume
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.errors import UserError
from chemeleon_jax.potentials import batches, nequix
from chemeleon_jax.potentials.corrections import mp2020_correction
from chemeleon_jax.potentials.loading import load_potential
from chemeleon_jax.potentials.types import Status


@pytest.fixture(scope="module")
def reference():
    with np.load(paths.FIXTURES / "nequix.npz") as f:
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


def check_numbers(params, model, crystals, energy, forces, stress):
    """Energies [B] eV/atom, forces [B, N, 3] eV/Å, stresses [B, 3, 3] eV/Å^3."""
    lattice = lattice_matrix(crystals.lengths, crystals.angles)
    evaluate = partial(batches.batch_energy, model, params)

    def total_energy(frac, strain):
        at = frac, lattice + lattice @ strain
        energy, status = evaluate(*at, crystals.atom_types, crystals.mask)
        return (energy * crystals.num_atoms).sum(), (energy, status)

    strain = jnp.zeros((len(lattice), 3, 3))
    differentiate = jax.jit(jax.value_and_grad(total_energy, (0, 1), has_aux=True))
    (_, (found, status)), gradient = differentiate(crystals.frac_coords, strain)
    np.testing.assert_array_equal(status, Status.OK)
    np.testing.assert_allclose(found, energy, atol=1e-5)
    inverse = np.linalg.inv(np.asarray(lattice, np.float64))
    found = -np.einsum("bni,bji->bnj", gradient[0], inverse)
    np.testing.assert_allclose(found, forces, atol=1e-3)
    found = np.asarray(gradient[1]) / volume(lattice)[:, None, None]
    found = (found + found.swapaxes(1, 2)) / 2
    np.testing.assert_allclose(found, stress, atol=1e-3)
    # Not all alike: the numbers above could not agree by chance.
    assert np.ptp(energy) > 0.1 and np.abs(forces).max() > 0.01


# With norms, degrees to 3; and with a kernel for each species, to 2.
@pytest.mark.parametrize("name", ["norm", "indexed"])
def test_energies_forces_and_stresses_are_those_of_the_package(
    name, crystals, reference
):
    params, model = nequix.read_model(reference[f"model_{name}"].tobytes(), "model.nqx")
    capacity = model.capacity._replace(crystals=8, atoms=64, blocks=384)
    numbers = (reference[f"{key}_{name}"] for key in ("energy", "forces", "stress"))
    check_numbers(params, model._replace(capacity=capacity), crystals, *numbers)


def test_a_checkpoint_is_a_potential(reference, tmp_path, monkeypatch):
    path = tmp_path / "mine.nqx"
    path.write_bytes(reference["model_indexed"].tobytes())
    potential = load_potential(f"nequix:{path}")
    assert (potential.name, potential.scheme) == (f"nequix:{path}", "MP2020")
    monkeypatch.setattr(nequix, "CACHE", tmp_path)
    assert load_potential("nequix:mine").digest == potential.digest
    with pytest.raises(UserError, match="it has none"):
        load_potential(f"nequix:{path}", device="cpu")


def test_energies_without_corrections(reference, crystals, tmp_path):
    """Those of the package; with them a crystal of which a rule speaks has another."""
    path = tmp_path / "mine.nqx"
    path.write_bytes(reference["model_indexed"].tobytes())
    corrected = load_potential(f"nequix:{path}")
    own = load_potential(f"nequix:{path}:uncorrected")
    assert own.scheme == "uncorrected" and own.digest != corrected.digest
    energy, status = own.energies(crystals)
    np.testing.assert_array_equal(status, Status.OK)
    np.testing.assert_allclose(energy, reference["energy_indexed"], atol=1e-5)
    lattices = lattice_matrix(crystals.lengths, crystals.angles)
    rules = [
        mp2020_correction(np.asarray(z[real]), np.float64(x[real]), np.float64(cell))
        for z, x, cell, real in zip(
            crystals.atom_types,
            crystals.frac_coords,
            lattices,
            crystals.mask,
            strict=True,
        )
    ]
    assert min(rules) < -0.1
    added = corrected.energies(crystals)[0] - energy
    np.testing.assert_allclose(added, rules, atol=1e-5)


@pytest.mark.parametrize("name", ["nequix", "nequix:", "nequix:/nowhere/x.nqx"])
def test_without_a_file_a_line_says_where_to_get_one(name):
    with pytest.raises(UserError, match="no such file.*nequix-mp-1.nqx"):
        load_potential(name)


def test_what_follows_the_last_array_is_not_read(reference):
    # nequix-mp-1.nqx ends with a line break, nequix-oam-1.nqx with 209 scalars.
    content = reference["model_norm"].tobytes()
    params, _ = nequix.read_model(content, "x.nqx")
    with_more, _ = nequix.read_model(content + b"\n", "x.nqx")
    jax.tree.map(np.testing.assert_array_equal, params, with_more)


def test_damaged_checkpoints_are_lines(reference):
    content = reference["model_norm"].tobytes()
    line, _, arrays = content.partition(b"\n")
    bad = {
        b"": "cannot be read",
        b"[1, 2]\n": "cannot be read",
        line: "no array|magic|EOF",
        content[:-10]: "cut off",
        line.replace(b'"lmax": 3', b'"lmax": 2') + b"\n" + arrays: "other degrees",
        line.replace(b"8x0e", b"9x0e") + b"\n" + arrays: "an array of shape",
        line.replace(b"4x1o", b"4x1e") + b"\n" + arrays: "are not supported",
        line.replace(b'"n_layers": 4', b'"n_layers": 9') + b"\n" + arrays: "array",
    }
    for damaged, message in bad.items():
        with pytest.raises(UserError, match=f"x.nqx: .*({message})"):
            nequix.read_model(damaged, "x.nqx")

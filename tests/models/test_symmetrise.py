import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chemeleon_jax.data.types import SymmetryTemplate
from chemeleon_jax.models.symmetry import symmetrise
from chemeleon_jax.models.vae import Decoded

IDENTITY, INVERSION = np.eye(3), -np.eye(3)
FOURFOLD = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])  # about c


def template(coords, rotations, images, elements=None):
    coords, images = np.array(coords, np.float32), np.array(images, np.int8)
    return SymmetryTemplate(
        jnp.array(coords[None]),
        jnp.array(np.array(rotations, np.int8)[None]),
        jnp.array(images[None]),
        jnp.zeros((1, len(coords)), int) if elements is None else jnp.array([elements]),
    )


def decoded(coords, logits=None, lengths=(1, 1, 1), angles=(90, 90, 90)):
    logits = np.zeros((len(coords), 100)) if logits is None else logits
    return Decoded(
        atom_logits=jnp.array(logits, jnp.float32)[None],
        frac_coords=jnp.array(coords, jnp.float32)[None],
        lengths_scaled=jnp.array([lengths], jnp.float32),
        angles_radians=jnp.deg2rad(jnp.array([angles], jnp.float32)),
    )


PAIR = template([[0.2, 0, 0], [0.8, 0, 0]], [IDENTITY, INVERSION], [[0, 1], [1, 0]])


def test_atoms_move_to_the_mean_over_the_operations():
    # 0.06 and -0.02 from their sites: (0.06 + 0.02) / 2 to either side.
    found = symmetrise(decoded([[0.26, 0, 0], [0.78, 0, 0]]), PAIR).frac_coords[0]
    np.testing.assert_allclose(found, [[0.24, 0, 0], [0.76, 0, 0]], atol=1e-6)


def test_the_nearest_image_counts():
    near = decoded([[0.26, 0, 0], [0.78, 0, 0]])
    far = decoded([[1.26, -1, 0], [-0.22, 0, 3]])
    chex.assert_trees_all_close(symmetrise(near, PAIR), symmetrise(far, PAIR))


def test_an_atom_on_a_centre_stays_on_it():
    centre = template([[0.5, 0.5, 0.5]], [IDENTITY, INVERSION], [[0], [0]])
    found = symmetrise(decoded([[0.6, 0.4, 0.55]]), centre).frac_coords[0]
    np.testing.assert_allclose(found, [[0.5, 0.5, 0.5]], atol=1e-6)


def test_the_lattice_has_the_mean_metric():
    powers = [np.linalg.matrix_power(FOURFOLD, n) for n in range(4)]
    axis = template([[0, 0, 0]], powers, [[0]] * 4)
    found = symmetrise(decoded([[0, 0, 0]], None, (4, 5, 6), (80, 90, 95)), axis)
    mean = np.sqrt((16 + 25) / 2)
    np.testing.assert_allclose(found.lengths_scaled[0], [mean, mean, 6], rtol=1e-6)
    np.testing.assert_allclose(found.angles_radians[0], np.pi / 2, rtol=1e-6)


def test_equal_atoms_share_their_log_probabilities():
    logits = np.zeros((2, 100))
    logits[0, 8], logits[1, 16], logits[:, 20] = 5, 5, 3
    found = symmetrise(decoded([[0.2, 0, 0], [0.8, 0, 0]], logits), PAIR)
    # Calcium has 3 of either, oxygen and sulfur 2.5 in the mean.
    assert jnp.argmax(found.atom_logits, -1).tolist() == [[20, 20]]
    both = jax.nn.log_softmax(jnp.array(logits)).mean(0)
    np.testing.assert_allclose(found.atom_logits[0, 0], both, rtol=1e-6)


def test_the_element_asked_for_is_the_only_one():
    asked = template([[0, 0, 0], [0.5, 0, 0]], [IDENTITY], [[0, 1]], [11, 0])
    logits = np.zeros((2, 100))
    logits[:, 8] = 9
    found = symmetrise(decoded([[0, 0, 0], [0.5, 0, 0]], logits), asked)
    assert jnp.argmax(found.atom_logits, -1).tolist() == [[11, 8]]


@pytest.mark.parametrize("width", [2, 4])
def test_padding_changes_nothing(width):
    """Of operations and of atoms."""
    padded = template(
        [[0.2, 0, 0], [0.8, 0, 0], [0, 0, 0], [0, 0, 0]],
        [IDENTITY, INVERSION, np.zeros((3, 3))],
        [[0, 1, 2, 3], [1, 0, 2, 3], [0, 1, 2, 3]],
    )
    coords = [[0.26, 0, 0], [0.78, 0, 0], [7, 0, 0], [7, 0, 0]]
    plain = symmetrise(decoded(coords[:2]), PAIR)
    found = symmetrise(decoded(coords[:width]), padded.at_width(width))
    np.testing.assert_allclose(found.frac_coords[:, :2], plain.frac_coords, atol=1e-6)
    np.testing.assert_allclose(found.lengths_scaled, plain.lengths_scaled)
    np.testing.assert_allclose(found.atom_logits[:, :2], plain.atom_logits)


def test_symmetrising_twice_is_once():
    once = symmetrise(decoded([[0.3, 0.1, 0], [0.7, 0, 0.2]]), PAIR)
    chex.assert_trees_all_close(once, symmetrise(once, PAIR), atol=1e-5)

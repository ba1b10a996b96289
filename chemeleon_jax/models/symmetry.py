"""Symmetrising: what the decoder gives, moved to where a space group wants it.

A template (`data.templates`) says how a space group permutes the atoms of one known
crystal. Lattice, coordinates and elements stay free, but for what the symmetry fixes:
the means over all operations are a projection, as in DiffCSP++ (arXiv:2402.03992) for
lattices and Wyckoff positions.
"""

import chex
import jax
import jax.numpy as jnp

from chemeleon_jax.data.lattice import lattice_matrix, metric_parameters
from chemeleon_jax.data.types import SymmetryTemplate
from chemeleon_jax.models.vae import Decoded


def symmetrise(decoded: Decoded, template: SymmetryTemplate) -> Decoded:
    """The decoder's heads under the symmetry of a template.

    Coordinates become the template's sites and the mean over its operations of how far
    they are from these (nearest image); the lattice has the mean metric tensor; atoms
    that the symmetry makes equal have their mean log-probabilities of elements, or the
    element that is asked for.

    Args:
      decoded: of B crystals of N atoms.
      template: of the same.
    """
    chex.assert_equal_shape([decoded.frac_coords, template.frac_coords])
    chex.assert_equal_shape_prefix([template.rotations, template.images], 2)
    rotations = template.rotations.astype(jnp.float32)
    own = (rotations != 0).any((-1, -2))  # [B, K], not padding
    count = own.sum(-1)

    away = decoded.frac_coords - template.frac_coords
    away -= jnp.round(away)  # to the template's image: the one that encoders know
    moved = jax.vmap(lambda x, image: x[image])(away, template.images)  # [B, K, N, 3]
    away = jnp.einsum("bkij,bknj->bni", rotations, moved) / count[:, None, None]

    log_p = jax.nn.log_softmax(decoded.atom_logits)
    shared = jax.vmap(lambda x, image: x[image])(log_p, template.images)
    shared = jnp.einsum("bk,bkne->bne", own.astype(jnp.float32), shared)
    shared /= count[:, None, None]
    right = jax.nn.one_hot(template.elements, shared.shape[-1]) > 0
    right |= (template.elements == 0)[..., None]

    matrix = lattice_matrix(decoded.lengths_scaled, jnp.rad2deg(decoded.angles_radians))
    metric = matrix @ jnp.swapaxes(matrix, -1, -2)
    metric = jnp.einsum("bkij,bil,bklm->bjm", rotations, metric, rotations)
    lengths, angles = metric_parameters(metric / count[:, None, None])
    return Decoded(
        atom_logits=jnp.where(right, shared, -jnp.inf),
        frac_coords=template.frac_coords + away,
        lengths_scaled=lengths,
        angles_radians=jnp.deg2rad(angles),
    )

"""Guidance by the decoder: towards the elements that a crystal is asked for.

A denoiser that takes a composition as a condition may still settle on other elements
early on, and then makes the rest fit them. But the decoder tells at every step which
elements the predicted clean latents stand for: their log-probability is what classifier
guidance (arXiv:2105.05233) needs, and nothing has to be trained for it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from optax.assignment import hungarian_algorithm

from chemeleon_jax.models.condition import COMPOSITION_WIDTH

NEVER = 1e6  # the cost of giving an atom's place to padding


def allowed_elements(
    specs: Sequence[Mapping[str, Any]], vectors: dict[str, jax.Array], mask: jax.Array
) -> jax.Array:
    """The elements that crystals are asked for, as places that their atoms share out.

    Args:
      specs: of the conditions, see `condition.preprocess`.
      vectors: {name: [B, in]}, NaN where not asked for.
      mask: [B, N].

    Returns:
      [B, N, 100] bool: whether an atom in this place may be of this element. Places
      beyond the atoms, and those of crystals not asked for elements, take any.
    """
    chex.assert_rank(mask, 2, custom_message="mask [B, N]")
    chex.assert_equal_shape_prefix([mask, *vectors.values()], 1)
    allowed = jnp.ones((*mask.shape, COMPOSITION_WIDTH), bool)
    # In this order: a composition says more than the system that it implies.
    for kind, places in (
        ("chemical_system", _places_of_system),
        ("composition", _places_of_composition),
    ):
        for spec in specs:
            if spec["kind"] == kind:
                vector = vectors[spec["name"]][:, None]
                asked = ~jnp.isnan(vector).any(-1, keepdims=True)
                allowed = jnp.where(asked, places(vector, mask), allowed)
    return allowed | ~mask[..., None]


def _places_of_composition(fractions: jax.Array, mask: jax.Array) -> jax.Array:
    """As many places per element as it has atoms: [B, 1, 100] -> [B, N, 100]."""
    middle = jnp.arange(mask.shape[1])[None, :, None] + 0.5  # half a place to round in
    end = jnp.cumsum(fractions, -1) * mask.sum(-1)[:, None, None]
    start = jnp.pad(end, ((0, 0), (0, 0), (1, 0)))[..., :-1]
    return (start <= middle) & (middle < end)


def _places_of_system(present: jax.Array, mask: jax.Array) -> jax.Array:
    """A place for each element, the others for any: [B, 1, 100] -> [B, N, 100]."""
    place = jnp.arange(mask.shape[1])[None, :, None]
    rank = jnp.cumsum(present, -1) - 1
    return (present > 0) & ((rank == place) | (place > rank[..., -1:]))


def elements_log_prob(
    atom_logits: jax.Array, allowed: jax.Array, mask: jax.Array
) -> jax.Array:
    """Log-probability that the atoms are of the elements asked for.

    Which atom takes which place is the most likely of all ways to share them out
    (Hungarian algorithm), so that the order of atoms, which differs from one data set
    to another, plays no part.

    Args:
      atom_logits: [B, N, 100], of the decoder.
      allowed: [B, N, 100], see `allowed_elements`.
      mask: [B, N].

    Returns:
      [B], in nats, summed over atoms; 0 where nothing is asked for.
    """
    chex.assert_rank([atom_logits, mask], [3, 2], custom_message="logits [B, N, 100]")
    chex.assert_equal_shape([atom_logits, allowed])
    chex.assert_equal_shape_prefix([atom_logits, mask], 2)
    log_p = jax.nn.log_softmax(atom_logits)
    # [B, atoms, places]
    cost = -jax.nn.logsumexp(log_p[:, :, None], axis=-1, where=allowed[:, None])
    cost = jnp.where(mask[:, :, None] == mask[:, None], cost, NEVER)
    # A latent that is not finite must not keep the algorithm from ending.
    cost = jnp.nan_to_num(jax.lax.stop_gradient(cost), nan=NEVER, posinf=NEVER)
    atoms, places = jax.vmap(hungarian_algorithm)(cost)
    own = jax.vmap(lambda allowed, i, j: allowed.at[i].set(allowed[j]))(
        allowed, atoms, places
    )
    return (jax.nn.logsumexp(log_p, axis=-1, where=own) * mask).sum(-1)

"""Diversity: how each crystal moves the distance between generated and known crystals.

NumPy in float64: differences of kernel means cancel in float32.
"""

from dataclasses import dataclass
from functools import cached_property

import chex
import numpy as np

from chemeleon_jax.rewards.analysis import Component, Context
from chemeleon_jax.rewards.features import (
    NUM_ELEMENTS,
    composition_fractions,
    embedding_gram,
    encode_references,
    type_embedding,
)
from chemeleon_jax.runs.cached_arrays import cached_arrays
from chemeleon_jax.workers.outcome import Status

_BLOCK = 2_000_000  # products held at once, 16 MB


def structure_diversity_component(context: Context) -> Component:
    """`diversity` of the VAE's mean latents."""
    if context.vae is None:
        raise ValueError("structure_diversity needs a VAE: pass `vae` to make_reward")
    kernel = kernel_mean(encode_references(*context.vae, context.dataset))

    def evaluate(batch):
        return diversity(batch.computed["latent"], batch.valid, kernel)

    return Component(evaluate, "latent", of_batch=True, batch_value=True)


def composition_diversity_component(context: Context) -> Component:
    """`diversity` of the VAE's embeddings of the elements."""
    if context.vae is None:
        raise ValueError("composition_diversity needs a VAE: pass `vae` to make_reward")
    gram = embedding_gram(type_embedding(*context.vae, NUM_ELEMENTS))
    known = context.dataset.crystals

    def moments():
        return feature_moments(composition_fractions(known.atom_types, known.mask))

    found = cached_arrays("composition_moments", context.dataset.digest, moments)
    kernel = KernelMean(tuple(found), gram)

    def evaluate(batch):
        crystals = batch.crystals
        shares = composition_fractions(crystals.atom_types, crystals.mask)
        return diversity(shares, batch.valid, kernel)

    return Component(evaluate, of_batch=True, batch_value=True)


@dataclass(frozen=True, eq=False)
class KernelMean:
    """Mean over M references y of the kernel k(x, y) = (<x, y>/d + 1)^3.

    The kernel is a polynomial, so its mean is one in the references' moments: exact,
    and at a cost that does not grow with M.
    """

    moments: tuple[np.ndarray, ...]  # mean of y, y⊗y, y⊗y⊗y, flattened
    gram: np.ndarray  # [p, p], <x, y>/d = x^T gram y

    def kernel(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Kernel matrix of x [n, p] and y [m, p], [n, m]."""
        return (x @ self.gram @ y.T + 1) ** 3

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Mean kernel of each row of x [n, p] with the references, [n]."""
        p = x.shape[1]
        u = x @ self.gram
        first, second, third = self.moments
        # (1 + s)^3 = 1 + s (3 + s (3 + s)) with s = <u, y>, moment by moment.
        inner = 3 * second + u @ third.reshape(p, p * p)  # [n, p^2]
        inner = 3 * first + np.einsum("nab,na->nb", inner.reshape(-1, p, p), u)
        return 1 + np.einsum("nb,nb->n", inner, u)

    @cached_property
    def among(self) -> float:
        """Mean kernel of two references drawn at random, with replacement."""
        # Of <y, y'>^k: the k-th moment with itself, the gram matrix along each axis.
        powers, p = [], len(self.gram)
        for degree, moment in enumerate(self.moments, 1):
            moment = turned = moment.reshape((p,) * degree)
            for _ in range(degree):
                turned = np.tensordot(turned, self.gram, (0, 0))  # axes rotate by one
            powers.append((moment * turned).sum())
        return float(1 + 3 * powers[0] + 3 * powers[1] + powers[2])


def kernel_mean(references: np.ndarray, gram: np.ndarray | None = None) -> KernelMean:
    """The mean kernel with references.

    Args:
      references: features, [M, p].
      gram: [p, p] inner product divided by the dimension d; identity / p by default.
    """
    p = references.shape[1]
    gram = np.eye(p) / p if gram is None else np.asarray(gram, np.float64)
    return KernelMean(feature_moments(references), gram)


def feature_moments(references: np.ndarray) -> tuple[np.ndarray, ...]:
    """Means of y, y⊗y and y⊗y⊗y over features y of references [M, p], flattened."""
    references = np.asarray(references, np.float64)
    count, p = references.shape
    moments = [np.zeros(p**degree) for degree in (1, 2, 3)]
    rows = max(1, _BLOCK // p**2)
    for start in range(0, count, rows):
        y = references[start : start + rows]
        square = np.einsum("na,nb->nab", y, y).reshape(len(y), -1)
        moments[0] += y.sum(0)
        moments[1] += square.sum(0)
        moments[2] += (square.T @ y).ravel()
    return tuple(m / count for m in moments)


def leave_one_out_mmd(
    features: np.ndarray, references: KernelMean
) -> tuple[np.ndarray, float]:
    """MMD^2 to the references without each crystal, and of all.

    The unbiased estimator (Gretton et al., JMLR 13, 723, 2012, eq. 3), the references
    taken as the whole of what there is.

    Args:
      features: [n, p] of the generated crystals, n at least 3.
      references: of the known ones.

    Returns:
      [n] without crystal i, and one number.
    """
    chex.assert_rank(features, 2)  # [n, p]
    n = len(features)
    among = references.kernel(features, features)
    np.fill_diagonal(among, 0.0)
    rows = among.sum(1)
    cross = references(features)
    without = (rows.sum() - 2 * rows) / ((n - 1) * (n - 2))
    without -= 2 * (cross.sum() - cross) / (n - 1)
    everything = rows.sum() / (n * (n - 1)) - 2 * cross.mean()
    return without + references.among, float(everything + references.among)


def diversity(
    features: np.ndarray, valid: np.ndarray, references: KernelMean
) -> tuple[np.ndarray, np.ndarray, float]:
    """What each of B crystals contributes to the likeness of batch and references.

    MMD^2(without it) - MMD^2(all), positive where it brings the two sets together.
    Contributions are 0 on average, whatever the crystals are (the estimator is a
    U-statistic), so that the likeness itself is given too. Invalid crystals, and those
    whose features are not finite, are left out of the sums and so do not change the
    others' rewards.

    Args:
      features: [B, p].
      valid: [B] bool.
      references: of the known crystals.

    Returns:
      [B] values, 0 where the status is not OK; [B] status; -MMD^2(all). Zeros for fewer
      than three crystals, of which none can be left out.
    """
    features = np.asarray(features, np.float64)
    chex.assert_rank(features, 2)  # [B, p]
    chex.assert_shape(valid, (len(features),))  # [B]
    status = np.where(np.isfinite(features).all(-1), Status.OK, Status.BAD_VALUE)
    status = np.where(valid, status, Status.INVALID)
    values, known = np.zeros(len(features)), status == Status.OK
    if known.sum() < 3:
        return values, status, 0.0
    without, everything = leave_one_out_mmd(features[known], references)
    values[known] = without - everything
    return values, status, -everything

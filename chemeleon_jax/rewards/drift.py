"""Drift of chemistry: what a run's crystals are made of, against what they were.

A policy that is paid for the errors of a potential makes more and more crystals of the
elements that it errs on. The share of crystals that contain an element tells so before
any reward does. NumPy on the host.
"""

import logging
from pathlib import Path

import numpy as np
from scipy.stats import entropy

from chemeleon_jax.data.crystals import SYMBOLS, crystals_of, take, validity
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.errors import UserError
from chemeleon_jax.potentials.hull import composition_counts
from chemeleon_jax.rewards.analysis import Component, Context
from chemeleon_jax.rewards.features import composition_fractions
from chemeleon_jax.rewards.frechet import fit_gaussian, frechet_distance
from chemeleon_jax.rewards.stability import MAX_FRACTION
from chemeleon_jax.runs.iteration_files import iteration_file, read_iteration
from chemeleon_jax.workers.outcome import Status

logger = logging.getLogger(__name__)

# In 2,000 draws of so many crystals of an unchanged policy no element had grown by more
# than a factor of 2.04; of 192 (an iteration of rl_dng) one had by 3.6.
WINDOW_CRYSTALS, MAX_ITERATIONS = 1000, 10
MAX_CRYSTALS = 5000  # as many are sampled of the base, before a run begins
COMMON = 0.1  # elements in more of the crystals get a curve of their own
# Of the probability of an element: an element that the references lack costs a crystal
# a finite amount, and one crystal of a rare element moves nothing.
SMOOTHING = 1e-3


# --------------------------------------------------------- of counts [n, 118] of atoms


def element_shares(counts: np.ndarray) -> np.ndarray:
    """Share of crystals that contain each element, [118]; index 0 is hydrogen."""
    return (counts > 0).sum(0) / max(len(counts), 1)


def effective_elements(counts: np.ndarray) -> float:
    """How many elements, if all were equally common, are as diverse as these.

    exp of the entropy (Hill, Ecology 54, 427, 1973) of the elements of all crystals, an
    element counting once in each crystal that contains it.
    """
    return float(np.exp(entropy((counts > 0).sum(0))))


def effective_prototypes(counts: np.ndarray) -> float:
    """The same of prototypes: here the numbers of atoms of the elements, nameless.

    Crystals are of one prototype if their anonymised formula and their number of atoms
    are the same. Unlike in `evaluation.scores`, space groups do not count: those of
    crystals that are not relaxed are mostly P1, and cost more than they tell. Of 1,000
    crystals of the base on mp_mini, 79 (and 59 elements); fewer crystals have fewer.
    """
    _, how_many = np.unique(np.sort(counts, axis=1), axis=0, return_counts=True)
    return float(np.exp(entropy(how_many)))


def diluted_share(counts: np.ndarray) -> float:
    """Share of crystals with more than `MAX_FRACTION` of their atoms of one element."""
    return float((counts.max(1) > MAX_FRACTION * counts.sum(1)).mean())


def element_growth(shares: np.ndarray, base: np.ndarray, floor: float) -> np.ndarray:
    """Factors by which shares of elements have grown, [118].

    A base share below the floor counts as the floor. With floor = S / F the factor is
    above F where an element's share is above S and above F times its base.
    """
    return shares / np.maximum(base, floor)


def element_marginals(counts: np.ndarray) -> np.ndarray:
    """Probability of each element, [118], drawn from a crystal drawn at random.

    The mean over crystals of 1 / m for the m distinct elements of each.
    """
    contains = counts > 0
    return (contains / np.maximum(contains.sum(1, keepdims=True), 1)).mean(0)


# -------------------------------------------------------------------- what holds it


def element_kl_component(
    context: Context, *, recent_iterations: int | None = None
) -> Component:
    """`element_kl` of the reference data set.

    Of the recent crystals those of so many last iterations count, or all. More make `q`
    less noisy and later to answer.

    Raises:
      UserError: there are none, by `reward.recent_iterations`.
    """
    if recent_iterations and not context.recent_iterations:
        raise UserError(
            "config.reward.components.element_kl.recent_iterations = "
            f"{recent_iterations}: none are kept, since "
            "config.reward.recent_iterations is 0"
        )
    known = element_marginals(count_atoms(context.dataset.crystals))

    def evaluate(batch):
        recent = batch.recent
        if recent is not None and recent_iterations is not None:
            rows = len(recent.mask) // context.recent_iterations  # of an iteration
            oldest = len(recent.mask) - recent_iterations * rows
            recent = take(recent, slice(max(oldest, 0), None))
        return element_kl(batch.crystals, batch.valid, known, recent)

    return Component(evaluate, of_batch=True)


def element_kl(
    crystals: CrystalBatch,
    valid: np.ndarray,
    known: np.ndarray,
    recent: CrystalBatch | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Minus what each crystal adds to the divergence of elements from known ones.

    With f_z(x) = 1 / m for the m distinct elements of crystal x, the policy's marginals
    are q_z = E_x[f_z(x)], and

        grad KL(q || p) = E_x[(sum_z f_z(x) log(q_z / p_z)) grad log pi(x)],

    as sum_z f_z = 1 and E_x[grad log pi(x)] = 0. The value of a crystal, minus the sum,
    is so the mean of -log(q_z / p_z) over its distinct elements, each probability plus
    1e-3. It is the score-function estimate (Williams, Machine Learning 8, 229, 1992) of
    a marginal's KL. Without recent crystals the mean over the batch is -KL(q || p), but
    for the 1e-3.

    Args:
      crystals: B crystals, NumPy.
      valid: [B] bool; others are left out of q and have no value.
      known: p, `element_marginals` of the reference crystals.
      recent: of earlier batches, which count in q as those of this one do; of a batch
        of 200 alone, q is noisy. Rows without an atom count for nothing.

    Returns:
      [B] values, 0 where the status is not OK; [B] status.
    """
    counts = count_atoms(crystals)
    status = np.where(valid, Status.OK, Status.INVALID)
    seen = counts[valid]
    if recent is not None:
        earlier = count_atoms(recent)
        seen = np.concatenate([seen, earlier[earlier.any(1)]])
    if not len(seen):
        return np.zeros(len(counts)), status
    excess = np.log((element_marginals(seen) + SMOOTHING) / (known + SMOOTHING))
    contains = (counts > 0).astype(np.float64)
    values = -(contains @ excess) / np.maximum(contains.sum(1), 1)
    return np.where(valid, values, 0.0), status


def count_atoms(crystals: CrystalBatch) -> np.ndarray:
    """Atoms of each element, [B, 118]."""
    return composition_counts(np.where(crystals.mask, crystals.atom_types, 0))


# ------------------------------------------------------------------- what watches it


def window_iterations(batch_size: int, ema_decay: float) -> int:
    """Iterations of so many crystals whose drift is measured together.

    At least about 1,000 crystals. Where an average of policies is what is sampled in
    the end, as many iterations as it reaches back, and as 5,000 crystals are: the
    policy itself swings about it, for one element after the other.
    """
    of_crystals = min(max(round(WINDOW_CRYSTALS / batch_size), 1), MAX_ITERATIONS)
    averaged = min(round(1 / (1 - ema_decay)), MAX_CRYSTALS // batch_size)
    return max(of_crystals, averaged)


class Drift:
    """The valid crystals of a run's last iterations, against base and references.

    Before there are enough iterations, crystals of the original model fill the window:
    numbers of sets of different size do not compare.
    """

    def __init__(
        self,
        base: CrystalBatch,
        references: CrystalBatch,
        root: np.ndarray,
        *,
        iterations: int,
        floor: float,
    ):
        """A run that has not begun.

        Args:
          base: crystals of the original model, as many as `iterations` make. NumPy.
          references: the known crystals.
          root: `features.embedding_root`, of compositions in Fréchet distances.
          iterations: that are looked at together.
          floor: see `element_growth`; at least one crystal of the base.
        """
        found = _valid_types(base, validity(base) == 0)
        self._root, self._floor = root, max(floor, 1 / max(len(found), 1))
        self._window = np.array_split(found, iterations)
        self._base_shares = element_shares(composition_counts(found))
        self._base = fit_gaussian(self._features(found)) if len(found) > 1 else None
        known = np.where(references.mask, references.atom_types, 0)
        self._references = fit_gaussian(self._features(known))

    def _features(self, atom_types: np.ndarray) -> np.ndarray:
        return composition_fractions(atom_types, atom_types > 0) @ self._root

    def add(self, crystals: CrystalBatch, valid: np.ndarray) -> None:
        """Adds an iteration (NumPy), and forgets the oldest."""
        self._window = [*self._window[1:], _valid_types(crystals, valid)]

    def measure(self) -> tuple[dict[str, float], tuple[str, str]]:
        """Metrics by tag; the element that has grown most, and what it has done.

        No metric where the window or the base has fewer than two valid crystals.
        """
        found = np.concatenate(self._window)
        if len(found) < 2 or self._base is None:
            return {}, ("", "")
        counts, base = composition_counts(found), self._base_shares
        shares, features = element_shares(counts), fit_gaussian(self._features(found))
        growth = element_growth(shares, base, self._floor)
        z = int(growth.argmax())
        metrics = {
            "elements_effective": effective_elements(counts),
            "prototypes_effective": effective_prototypes(counts),
            "frechet_base": frechet_distance(features, self._base),
            "frechet_reference": frechet_distance(features, self._references),
            "diluted": diluted_share(counts),
            "element_growth": float(growth[z]),
            "element_grown_most": float(z + 1),
        }
        for common in np.flatnonzero(np.maximum(shares, base) > COMMON):
            metrics[f"element_share/{SYMBOLS[common]}"] = float(shares[common])
        what = (
            f"is in {shares[z]:.1%} of the last {len(found)} crystals, in "
            f"{base[z]:.1%} of the original model's"
        )
        return metrics, (SYMBOLS[z], what)

    def resume(self, workdir: Path, start: int) -> None:
        """Adds the last iterations before `start`, as far as the run still has them."""
        for iteration in range(max(start - len(self._window), 0), start):
            try:
                arrays = read_iteration(iteration_file(workdir, iteration))
            except UserError as error:
                logger.warning("%s; drift is measured without it", error)
                continue
            self.add(crystals_of(arrays), arrays["valid"])


def _valid_types(crystals: CrystalBatch, valid: np.ndarray) -> np.ndarray:
    """Atomic numbers of valid crystals, 0 for padding, [n, N]."""
    return np.where(crystals.mask, crystals.atom_types, 0)[valid]

"""A surrogate: what crystals that nobody scored are probably worth. NumPy on the host.

Where a reward is costly, some crystals of each group are scored, and a Gaussian process
of them and of earlier ones says what the costly components are of the others. The
scored ones are drawn from the policy like these: where it moves to please the
surrogate, that is corrected at once.
"""

import dataclasses
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular

from chemeleon_jax.data.crystals import validity
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.rewards.features import (
    composition_fractions,
    embedding_root,
    mean_latent,
)
from chemeleon_jax.rewards.normalize import NORMALIZATIONS
from chemeleon_jax.rewards.reward import Reward, RewardOutput, Term
from chemeleon_jax.runs.iteration_files import read_last

# Crystals that it learns from: the cost grows with the cube of their number.
MEMORY, TUNED_ON = 3000, 1000
LENGTHS, NOISES = (0.3, 0.45, 0.7, 1.0), (0.3, 1.0, 3.0, 10.0)  # it chooses among


class Judgement(NamedTuple):
    """What all crystals of an iteration are worth."""

    advantage: np.ndarray  # [B]
    features: np.ndarray  # [M, F]  of the scored ones
    metrics: dict[str, float]


@dataclasses.dataclass(frozen=True)
class GaussianProcess:
    """Values of features: a constant, a squared-exponential kernel, and noise.

    Of a variance of 1 the noise has `noise` / (1 + `noise`) (Rasmussen and Williams,
    Gaussian Processes for Machine Learning, algorithm 2.1).
    """

    features: np.ndarray  # [n, F]
    weights: np.ndarray  # [n]
    factor: Any  # of the covariance
    length: float
    noise: float
    mean: float
    std: float

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means [m], and their standard deviations without the noise [m]."""
        kernel = _kernel(features, self.features, self.length) / (1 + self.noise)
        mean = self.mean + self.std * (kernel @ self.weights)
        half = solve_triangular(self.factor[0], kernel.T, lower=True)
        variance = 1 / (1 + self.noise) - (half**2).sum(0)
        return mean, self.std * np.sqrt(np.maximum(variance, 0.0))


def fit_gaussian_process(features: np.ndarray, values: np.ndarray) -> GaussianProcess:
    """The process of features [n, F] and values [n], newest last.

    Length and noise are those of `LENGTHS` and `NOISES` under which the newest
    `TUNED_ON` values are most likely. Lengths are in units of the features' spread.
    """
    mean, std = float(values.mean()), max(float(values.std()), 1e-6)
    scaled = (values - mean) / std
    some = slice(-TUNED_ON, None)
    choices = [(length, noise) for length in LENGTHS for noise in NOISES]
    likelihoods = [_solve(features[some], scaled[some], *one)[2] for one in choices]
    length, noise = choices[int(np.argmax(likelihoods))]
    factor, weights, _ = _solve(features, scaled, length, noise)
    return GaussianProcess(features, weights, factor, length, noise, mean, std)


def _solve(features, values, length, noise):
    """Factor of the covariance, its solution, and the log of the likelihood."""
    covariance = _kernel(features, features, length)
    covariance[np.diag_indices(len(values))] += noise
    factor = cho_factor(covariance / (1 + noise), lower=True)
    weights = cho_solve(factor, values)
    log_determinant = 2 * np.log(np.diag(factor[0])).sum()
    return factor, weights, -0.5 * (values @ weights + log_determinant)


def _kernel(first, second, length):
    squares = (first**2).sum(1)[:, None] + (second**2).sum(1) - 2 * first @ second.T
    return np.exp(-np.maximum(squares, 0.0) / (2 * length**2))


class Surrogate:
    """What it has seen scored, and what it makes of the rest."""

    def __init__(self, vae: tuple[Any, Any], scored: int):
        """Of nothing yet; `vae` with its parameters; `scored`: M of an iteration."""
        self._vae, self._root = vae, embedding_root(*vae)
        self._seen: deque[tuple[np.ndarray, np.ndarray]] = deque(
            maxlen=max(MEMORY // scored, 1)
        )
        self._process: GaussianProcess | None = None

    def describe(self, crystals: CrystalBatch) -> np.ndarray:
        """Features [B, F]: mean latent, and elements by their embedding."""
        latent = np.asarray(mean_latent(*self._vae, crystals))
        mask = np.asarray(crystals.mask)
        elements = composition_fractions(np.asarray(crystals.atom_types), mask)
        return np.concatenate([latent, elements @ self._root], 1).astype(np.float32)

    def add(self, features: np.ndarray, values: np.ndarray, valid: np.ndarray) -> None:
        """Adds the valid of scored crystals, [M, F] and [M]; forgets the oldest."""
        self._seen.append((features[valid], np.asarray(values[valid], np.float64)))
        self._process = None

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What crystals are expected to be worth, and the standard deviation, [B].

        NaN as long as no valid crystal was scored, and where features are not finite.
        """
        if self._process is None:
            seen, values = (np.concatenate(x) for x in zip(*self._seen, strict=True))
            if not len(seen):
                return np.full(len(features), np.nan), np.full(len(features), np.nan)
            variances, latents = seen.var(0), self._vae[0].latent_channels
            self._centre, self._spread = seen.mean(0), np.ones(len(variances))
            for block in (slice(None, latents), slice(latents, None)):
                spread = np.sqrt(2 * variances[block].sum())  # as much of each
                self._spread[block] = max(spread, 1e-6)
            self._process = fit_gaussian_process(self._scaled(seen), values)
        finite = np.isfinite(features).all(1)
        mean, std = np.full((2, len(features)), np.nan)
        mean[finite], std[finite] = self._process.predict(
            self._scaled(features[finite])
        )
        return mean, std

    def _scaled(self, features: np.ndarray) -> np.ndarray:
        return ((features - self._centre) / self._spread).astype(np.float64)

    def judge(
        self,
        crystals: CrystalBatch,
        rows: np.ndarray,
        values: np.ndarray,
        rest: np.ndarray,
        *,
        group_size: int,
        normalize_fn: str,
        eps: float,
    ) -> Judgement:
        """Advantages of all crystals, of which some were scored; learns from these.

        All count as what is expected of them then, minus its standard deviation; the
        invalid ones as the worst that was scored. So do the scored ones: what cannot be
        expected of a crystal like this is mostly luck, and the noise of the gradient.

        Args:
          crystals: B, NumPy.
          rows: [M] that were scored.
          values: [M] what their costly components add up to.
          rest: [B] what the others do, which is known of all.
          group_size: crystals whose values are compared.
          normalize_fn: that makes the advantage of them.
          eps: of the normalisation.
        """
        features = self.describe(crystals)
        metrics = {"surrogate/calls": float(len(rows))}
        valid = validity(crystals) == 0
        if self._seen and valid[rows].any():  # its error, before it has seen them
            expected, _ = self.predict(features[rows][valid[rows]])
            error, truth = expected - values[valid[rows]], values[valid[rows]]
            metrics["surrogate/error"] = float(np.std(error))
            spread = max(np.std(expected) * np.std(truth), 1e-9)
            covariance = ((expected - expected.mean()) * (truth - truth.mean())).mean()
            metrics["surrogate/correlation"] = float(covariance / spread)
        self.add(features[rows], values, valid[rows])
        expected, doubt = self.predict(features)
        known = valid & np.isfinite(expected)
        completed = rest + np.where(known, expected - doubt, values.min())
        normalise = NORMALIZATIONS[normalize_fn]
        advantage = normalise(completed.reshape(-1, group_size), eps).reshape(-1)
        return Judgement(np.asarray(advantage, np.float32), features[rows], metrics)


def without_costly(reward: Reward) -> Reward:
    """The components that all crystals are scored by, as they are generated."""
    terms = tuple(term for term in reward.terms if not is_costly(term))
    context = dataclasses.replace(reward.context, relaxed=False)
    return reward.replace(terms=terms, relax=None, context=context)


def costly_values(reward: Reward, rewards: RewardOutput) -> np.ndarray:
    """What the costly components of scored crystals add up to, with their weights."""
    return sum(
        (
            term.weight * np.asarray(rewards.components[term.name], np.float64)
            for term in reward.terms
            if is_costly(term)
        ),
        np.zeros(len(rewards.total)),
    )


def is_costly(term: Term) -> bool:
    """Whether a component relaxes crystals, asks potentials or a user's function."""
    component = term.component
    return component.needs in ("energy", "relaxation") or component.custom is not None


def scored_rows(num_groups: int, group_size: int, budget: int) -> np.ndarray:
    """Rows of the crystals that are scored: the first of each group, [budget].

    Crystals of a group differ by nothing but their noise.
    """
    each = budget // num_groups
    return (np.arange(num_groups)[:, None] * group_size + np.arange(each)).ravel()


def load_surrogate(
    workdir: Path, vae: tuple[Any, Any], budget: int, start: int
) -> Surrogate | None:
    """The surrogate of a run that continues at iteration `start`; None without budget.

    Raises:
      UserError: an iteration that it learnt from is missing.
    """
    if not budget:
        return None
    surrogate = Surrogate(vae, budget)
    names, field = ("features", "costly", "valid"), "reward.budget_per_iteration"
    count = max(MEMORY // budget, 1)
    for arrays in read_last(workdir, start, count, names, f"{field} = {budget}"):
        surrogate.add(*(arrays[name] for name in names))
    return surrogate

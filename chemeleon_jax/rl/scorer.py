"""What the crystals of an iteration are worth, with what earlier ones left behind."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from chemeleon_jax.data.crystals import take
from chemeleon_jax.data.dataset import MAX_ATOMS
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.devices.compilation import on_mesh
from chemeleon_jax.devices.sharding import replicate
from chemeleon_jax.models.generator import Generator
from chemeleon_jax.rewards import Reward, RewardOutput, compute_rewards
from chemeleon_jax.rewards.config import active_components
from chemeleon_jax.rewards.faults import FaultStreak
from chemeleon_jax.rewards.recent import load_recent
from chemeleon_jax.rewards.surrogate import (
    costly_values,
    load_surrogate,
    scored_rows,
    without_costly,
)


class Scored(NamedTuple):
    """An iteration's crystals, of which M of B were scored; M is B without a budget."""

    crystals: CrystalBatch  # the M, NumPy
    rewards: RewardOutput  # of these, NumPy
    advantage: np.ndarray  # [B]
    kept: dict[str, Any]  # what a run that continues needs besides, {name: [M, ...]}


class Scorer:
    """Scores each iteration's crystals. State of a run: recent ones, surrogate, faults.

    Its state is read from the run's directory, so that a run that continues goes on as
    it would have.
    """

    def __init__(
        self, config, reward: Reward, model: Generator, mesh: Mesh, folder: Path, start
    ):
        """For iterations from `start` on.

        Raises:
          UserError: an iteration that counts is missing in `folder`.
        """
        self._config, self._reward = config, reward
        groups, self._of_each = config.data.batch_size, config.rl.num_group_samples
        budget = config.reward.budget_per_iteration
        self.num_scored = budget or groups * self._of_each
        self._rows = scored_rows(groups, self._of_each, self.num_scored)
        self._score, self.score_validation, self._score_rest = jit_scores(
            config, reward, mesh
        )
        self._faults = FaultStreak(reward, folder)
        self._recent = load_recent(
            folder,
            config.reward.recent_iterations,
            start,
            batch_size=self.num_scored,
            max_atoms=MAX_ATOMS,
            relaxed=config.reward.relaxed,
        )
        vae = model.vae, model.frozen["vae"]
        self._surrogate = load_surrogate(folder, vae, budget, start)

    def __call__(self, sampled: CrystalBatch, asked: np.ndarray | None) -> Scored:
        """Scores B crystals; see `prompts.asked_fractions` of what they were `asked`.

        Raises:
          UserError: a custom reward has failed for too many crystals in a row.
        """
        crystals = take(sampled, self._rows)
        of_rows = None if asked is None else asked[self._rows]
        rewards = jax.device_get(
            self._score(crystals, recent=self._recent.crystals, asked=of_rows)
        )
        advantage, kept = rewards.advantage, {}
        if self._surrogate:
            advantage, kept = self._complete(sampled, asked, rewards)
            rewards = rewards.replace(advantage=advantage[self._rows])
        judged = rewards.relaxed if self._config.reward.relaxed else crystals
        self._recent.add(judged)
        self._faults.add(judged, rewards)
        return Scored(crystals, rewards, advantage, kept)

    def _complete(self, sampled, asked, rewards: RewardOutput):
        """Advantages of all, by what the surrogate expects of the costly components."""
        assert self._surrogate is not None
        rest = self._score_rest(sampled, recent=self._recent.crystals, asked=asked)
        costly, all_of_them = costly_values(self._reward, rewards), len(sampled.mask)
        within_groups = self._config.rl.group_reward_norm
        judged = self._surrogate.judge(
            sampled,
            self._rows,
            costly,
            jax.device_get(rest.raw),
            group_size=self._of_each if within_groups else all_of_them,
            normalize_fn=self._config.reward.normalize_fn,
            eps=self._config.reward.eps,
        )
        rewards.metrics.update(judged.metrics)
        return judged.advantage, {"features": judged.features, "costly": costly}


def jit_scores(config, reward: Reward, mesh: Mesh) -> tuple[Callable, ...]:
    """`compute_rewards`, jitted: of scored crystals, of a validation's, and of all.

    A validation's crystals are scored as one set, their energies always; all crystals
    of an iteration by what is not costly, where a surrogate says the rest.
    """
    num_groups = config.data.batch_size
    budget = config.reward.budget_per_iteration
    group_size = budget // num_groups or config.rl.num_group_samples
    reward = reward.replace(params=replicate(reward.params, mesh))
    iteration = partial(
        compute_rewards,
        group_size=(
            group_size if config.rl.group_reward_norm else num_groups * group_size
        ),
        component_group_size=group_size if config.reward.normalize_in_group else None,
        with_energies="energy" in active_components(config),
    )
    validation = partial(
        compute_rewards, group_size=config.validation_samples, with_energies=True
    )
    rest = partial(compute_rewards, group_size=config.rl.num_group_samples)
    iteration, validation, rest = (
        partial(on_mesh(jax.jit(score), mesh), reward=scored)
        for score, scored in (
            (iteration, reward),
            (validation, reward),
            (rest, without_costly(reward)),
        )
    )
    return iteration, validation, rest

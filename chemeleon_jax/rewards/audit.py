"""A judge that the reward does not ask, at every validation.

A policy learns whatever pays: also where the potentials of its reward err. A potential
that pays for nothing scores the same crystals, and what the reward sees and the judge
does not is the gap. It is compared with that of the original model's crystals.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from scipy.stats import rankdata

from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.devices.compilation import on_mesh
from chemeleon_jax.rewards.judges import load_judges
from chemeleon_jax.rewards.reward import Reward, RewardOutput
from chemeleon_jax.rewards.scoring import compute_rewards
from chemeleon_jax.rewards.stability import is_metastable
from chemeleon_jax.runs.alarms import Alarms
from chemeleon_jax.runs.console import say


def make_judge(config: Any, reward: Reward) -> Reward:
    """The judge of `config.judge`: a reward that is worth nothing and knows energies.

    It has the references, the data set and the worker processes of `reward`, and its
    hull is of the same data set. If it relaxes, uniqueness and novelty are those of the
    crystals as they relax.

    Raises:
      UserError: there is no such potential, or it cannot relax.
    """
    fields = config.judge
    energy = {
        "weight": 1.0,
        "potentials": fields.potential,
        "relax_steps": fields.relax_steps,
        "relax_with": fields.relax_with,
    }
    settings = {
        "components": {"energy": energy},
        "reference_dataset": config.reward.reference_dataset,
    }
    judges = load_judges(settings, reward.context.dataset)
    context = dataclasses.replace(
        reward.context,
        hulls=judges.hulls,
        combine=judges.combine,
        relaxed=judges.relax is not None,
        barriers={},
    )
    return reward.replace(
        params={"energy": None},
        models=(("energy", judges.energies),),
        relax=judges.relax,
        terms=(),
        context=context,
    )


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a validation is worth."""

    score: float  # by which the best state is chosen
    metrics: dict[str, float]  # by TensorBoard tag
    fooled: str = ""  # why the run ends; empty: it goes on


class Audit:
    """The judge of a run, and how far it was from the reward at the start.

    Without a judge, `score` says what the reward says.
    """

    def __init__(self, config: Any, reward: Reward, mesh: Mesh, workdir: str):
        """Loads the judge of `config.judge`, if it names a potential."""
        self._workdir = workdir
        self._name, self._max_gap = config.judge.potential, config.judge.max_gap
        self._alarms = Alarms({"judge_gap": config.alarms.judge_gap})
        self._start: dict[str, float] | None = None
        self._judge: Callable[..., RewardOutput] | None = None
        if self._name and config.validate_every:
            judge = partial(
                compute_rewards,
                group_size=config.validation_samples,
                with_energies=True,
            )
            self._judge = partial(
                on_mesh(jax.jit(judge), mesh), reward=make_judge(config, reward)
            )

    def start(
        self, validate: Callable[[], tuple[CrystalBatch, RewardOutput]]
    ) -> dict[str, float] | None:
        """Judges the original model, each time the run starts; None without a judge.

        Args:
          validate: crystals of the original model, and what the reward says of them.
        """
        if self._judge:
            self._start = self._compare(*validate())
            shares = _shares(self._start, self._name)
            say(f"the judge: of the original model's crystals {shares}")
        return self._start

    def score(
        self, iteration: int, crystals: CrystalBatch, rewards: RewardOutput
    ) -> Verdict:
        """What a validation of B crystals is worth, and whether the run is fooled.

        Args:
          iteration: from 0, the one that the validation comes after.
          crystals: NumPy, as generated.
          rewards: what the reward says of them, NumPy.
        """
        if not self._judge:
            return Verdict(float(rewards.metrics["reward"]), {})
        assert self._start is not None, "start comes first"
        now = self._compare(crystals, rewards)
        widened = now["gap"] - self._start["gap"]
        who = f"of the last {len(crystals.mask)} crystals"
        what = (
            f"{_shares(now, self._name)}; of the original model's "
            f"{_shares(self._start, self._name)}"
        )
        alarm = self._alarms.check(
            iteration, {"judge_gap": widened}, {"judge_gap": (who, what)}
        )
        fooled = ""
        if self._max_gap is not None and widened > self._max_gap:
            fooled = (
                f"iteration {iteration + 1}: the gap between the reward and its judge "
                f"has widened by {widened:.3g}, more than config.judge.max_gap = "
                f"{self._max_gap:g}: {who} {what}. {self._workdir} holds the policy of "
                f"now, {self._workdir}@best the one that the judge likes best; the "
                "same command with a larger --config.judge.max_gap goes on"
            )
        metrics = {f"judge/{name}": value for name, value in now.items()} | alarm
        tags = {f"val/{name}": value for name, value in metrics.items()}
        return Verdict(now["msun"], tags, fooled)

    def _compare(
        self, crystals: CrystalBatch, rewards: RewardOutput
    ) -> dict[str, float]:
        """Metrics of the judge, of the crystals as the reward judged them."""
        assert self._judge
        seen = crystals if rewards.relaxed is None else rewards.relaxed
        return compare(rewards, jax.device_get(self._judge(seen)))


def compare(rewards: RewardOutput, judged: RewardOutput) -> dict[str, float]:
    """How two opinions of the same B crystals differ.

    `metastable` and `msun` are shares by the judge, `gap` the metastable share by the
    reward minus that, `rank_correlation` Spearman's, of the energies above the hull.
    What the reward has no energies for is NaN.
    """
    metastable = float(judged.metrics["metastable"])
    above = rewards.e_above_hull
    if above is None:
        above = np.full(len(rewards.valid), np.nan)
    gap = float(np.mean(is_metastable(above))) - metastable
    return {
        "metastable": metastable,
        "msun": float(judged.metrics["msun"]),
        "gap": gap if rewards.e_above_hull is not None else np.nan,
        "rank_correlation": spearman(above, judged.e_above_hull),
    }


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation of x [B] and y [B] where both are finite.

    NaN of fewer than three, or of constants.
    """
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan
    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])


def _shares(found: dict[str, float], judge: str) -> str:
    by_judge = f"{found['metastable']:.1%} by {judge}"
    if np.isnan(found["gap"]):
        return f"{by_judge} are metastable"
    by_reward = found["gap"] + found["metastable"]
    return f"{by_reward:.1%} are metastable by the reward and {by_judge}"

"""Numbers that say a run goes wrong: alarms, and updates that are not finite."""

import logging
from collections.abc import Mapping

import numpy as np

logger = logging.getLogger(__name__)


class Alarms:
    """Metrics above their limits: warned of at first, counted while it lasts."""

    def __init__(self, limits: Mapping[str, float]):
        """The limits by the metric's name; inf for none."""
        self._limits = limits
        self._ringing: set[str] = set()
        self._named: set[tuple[str, str]] = set()

    def check(
        self,
        iteration: int,
        metrics: Mapping[str, float],
        causes: Mapping[str, tuple[str, str]] | None = None,
    ) -> dict[str, float]:
        """One tag per limit: 1 while its metric is above, else 0.

        Args:
          iteration: from 0.
          metrics: by name; one that is missing or not a number is not above.
          causes: by the metric's name, who has raised it, and what there is to say of
            that one. Whoever is not yet named is another warning.
        """
        values = {name: float(metrics.get(name, np.nan)) for name in self._limits}
        above = {name for name, value in values.items() if value > self._limits[name]}
        for name in sorted(above):
            who, what = (causes or {}).get(name, ("", ""))
            if name in self._ringing and (name, who) in self._named:
                continue
            self._named.add((name, who))
            logger.warning(
                "iteration %d: %s is %.3g, above its alarm at %g%s",
                iteration + 1,
                name,
                values[name],
                self._limits[name],
                f": {who} {what}" if who else "",
            )
        self._ringing = above
        return {f"alarm/{name}": float(name in above) for name in self._limits}


def explain_skipped(iteration: int, metrics: Mapping[str, float]) -> str:
    """Why a run ends that skips its updates, one iteration after the other."""
    broken = [f"{k} {v}" for k, v in metrics.items() if not np.isfinite(v)]
    return (
        f"iteration {iteration + 1}: the {metrics['skipped_in_a_row']}th in a row with "
        f"a loss or gradient that is not finite ({', '.join(broken)}). Such updates "
        "were skipped, and the state is saved as it was before them: continue with a "
        "lower config.optimizer.lr or a higher config.rl.kl_weight, or look in "
        "crystals/ for a reward that is not finite"
    )

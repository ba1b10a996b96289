"""The terms of a screening: who judges, and what a candidate must keep to."""

import math
from dataclasses import dataclass
from typing import Any

from chemeleon_jax.data.dataset import Dataset
from chemeleon_jax.errors import UserError
from chemeleon_jax.evaluation.description import describe_judging
from chemeleon_jax.evaluation.terms import Judges, Terms
from chemeleon_jax.potentials import relax
from chemeleon_jax.potentials.loading import load_potential
from chemeleon_jax.potentials.types import Potential
from chemeleon_jax.screening import stability
from chemeleon_jax.screening.phonons import EDGE, MAX_ATOMS
from chemeleon_jax.screening.sieve import MIN_DROP, Limits
from chemeleon_jax.screening.symmetry import LOOSE, MAX_RISE, TIGHT

POTENTIALS = "chgnet,sevennet-l3i5"  # that judge, the first relaxes
STABILITY = "sevennet-l3i5"  # that vibrations and stiffness are of
MIN_FREQUENCY = -0.5  # THz
CUSPS = (
    "CHGNet's energy has cusps where bonds stand in line, so that its second "
    "derivatives call stable crystals unstable, rock salt for one: see "
    "docs/screening.md."
)


@dataclass(frozen=True, kw_only=True)
class ScreeningTerms:
    """How crystals are screened, as the flags of the program say it.

    Raises:
      UserError: a value is out of range, or at odds with another.
    """

    reference: str = "mp_mini"  # known crystals
    potential: str = POTENTIALS  # split by commas
    stability_with: str = STABILITY  # a potential, or none
    num_candidates: int = 20  # that are wanted
    max_e_above_hull: float = 0.1  # eV/atom, by every judge
    max_spread: float = 0.1  # eV/atom, between the judges
    min_frequency: float = MIN_FREQUENCY  # THz; imaginary ones are below 0
    keep_known: bool = False
    charge_balanced: bool = False  # whether charges must add up to zero (SMACT)
    max_force: float = relax.MAX_FORCE  # eV/Å, to stop at
    relax_steps: int = 2 * relax.MAX_STEPS
    workers: int | None = None  # processes; as many as CPUs

    def __post_init__(self):
        """Checks every value."""
        names = self.potential.split(",")
        if "none" in names or len({*names}) < len(names):
            raise UserError(
                f"--potential={self.potential}: name each potential once, with commas "
                "between; a screening needs one at least"
            )
        for name in ("max_e_above_hull", "max_spread"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"--{name}={getattr(self, name)}: must be 0 or more")
        for name in ("num_candidates", "max_force", "relax_steps", "workers"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"--{name}={value}: must be above 0")
        if not -math.inf < self.min_frequency <= 0:
            raise UserError(
                f"--min_frequency={self.min_frequency}: imaginary frequencies are "
                "below 0"
            )

    @property
    def judging(self) -> Terms:
        """How crystals are relaxed and judged."""
        return Terms(
            reference=self.reference,
            potential=self.potential,
            relax_steps=self.relax_steps,
            max_force=self.max_force,
            workers=self.workers,
        )

    @property
    def limits(self) -> Limits:
        """What a candidate must keep to."""
        return Limits(
            max_e_above_hull=self.max_e_above_hull,
            max_spread=self.max_spread,
            min_frequency=self.min_frequency,
            keep_known=self.keep_known,
            charge_balanced=self.charge_balanced,
        )

    def describe_inputs(self, dataset: Dataset, judges: Judges) -> dict[str, Any]:
        """What relaxed and judged crystals depend on, for a protocol."""
        return describe_judging(self.reference, dataset, judges) | {
            "relaxed_with": next(iter(judges)),
            "relax_steps": self.relax_steps,
            "max_force": self.max_force,
        }

    def describe_rest(self) -> dict[str, Any]:
        """What the candidates depend on besides."""
        return {
            "limits": vars(self.limits),
            "symmetry": {"tight": TIGHT, "loose": LOOSE, "max_rise": MAX_RISE},
            "stability": {
                "potential": self.stability_with,
                "max_force": stability.MAX_FORCE,
                "max_steps": stability.MAX_STEPS,
                "supercell_edge": EDGE,
                "supercell_atoms": MAX_ATOMS,
                "push": stability.PUSH,
                "strain": stability.STRAIN,
                "min_drop": MIN_DROP,
            },
            "num_candidates": self.num_candidates,
        }


def load_stability(name: str) -> tuple[Potential | None, str]:
    """The potential of vibrations and stiffness, if any, and what to say of it."""
    unchecked = "dynamical and elastic stability were not checked"
    if name == "none":
        return None, f"--stability_with=none: {unchecked}."
    potential = load_potential(name)
    if potential.network is None:
        return None, f"{name} has no second derivatives here: {unchecked}."
    return potential, CUSPS if name == "chgnet" else ""

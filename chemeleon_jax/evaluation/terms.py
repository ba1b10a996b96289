"""The terms of an evaluation: who judges, against what, after which relaxation."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chemeleon_jax.data.dataset import Dataset
from chemeleon_jax.data.readers.item import Item
from chemeleon_jax.errors import UserError
from chemeleon_jax.evaluation.judge import EvaluationContext
from chemeleon_jax.evaluation.protocols import choice
from chemeleon_jax.evaluation.relaxation import make_relaxation
from chemeleon_jax.models.loading import load_checkpoint
from chemeleon_jax.models.vae import VAE, make_vae
from chemeleon_jax.potentials.hull import Hull, load_hull
from chemeleon_jax.potentials.hull_file import read_hull_file
from chemeleon_jax.potentials.loading import load_potential
from chemeleon_jax.potentials.relax import MAX_FORCE, MAX_STEPS
from chemeleon_jax.potentials.types import Potential
from chemeleon_jax.rewards.matches import index_references
from chemeleon_jax.workers import calculators
from chemeleon_jax.workers.pool import WorkerPool

# That judge; the first relaxes. The second is one that no preset's reward asks.
POTENTIALS = "chgnet,sevennet-0:uncorrected"
CHUNK = 256  # crystals judged, and kept on disk, at once
TIME_LIMIT = 30.0  # s, for one crystal in a worker

Judges = dict[str, tuple[Potential, Hull]]  # by name


@dataclass(kw_only=True)
class Terms:
    """How crystals are judged, as the flags of the program say it; None: see there.

    Raises:
      UserError: a value is out of range, or at odds with another.
    """

    reference: str = "mp_mini"  # known crystals
    potential: str | None = None  # several are split by commas, the main one first
    hull: Path | None = None  # entries of the same potential
    relax: bool | None = None
    relax_with: str | None = None  # a potential
    relax_steps: int | None = None
    max_force: float = MAX_FORCE  # eV/Å
    relax_time_limit: float = calculators.TIME_LIMIT  # s, of a crystal, by ASE
    vae: str = "mini:vae"  # whose features are compared
    workers: int | None = None  # processes
    protocol: str = "own"  # of others, whose metrics are added, see `protocols.choice`

    def __post_init__(self):
        """Fills in what is not said, and checks the whole."""
        if self.protocol not in choice.NAMES:
            raise UserError(
                f"--protocol={self.protocol}: must be one of {', '.join(choice.NAMES)}"
            )
        if self.potential is None:
            self.potential = POTENTIALS.partition(",")[0] if self.hull else POTENTIALS
        names = self.potential.split(",")
        if self.relax is None:
            relaxes_first = choice.relaxes_first(self.protocol)
            self.relax = self.potential != "none" and relaxes_first
        if self.relax_with and not self.relax:
            why = "--no-relax" if self.potential != "none" else "--potential=none"
            raise UserError(f"--relax_with: at odds with {why}")
        self.relax_with = self.relax_with or names[0]
        several = len(names) > 1
        if several and ("none" in names or self.hull or len({*names}) < len(names)):
            raise UserError(
                f"--potential={self.potential}: several must differ, none of them "
                "'none', and their hulls are of the --reference: no --hull"
            )
        if self.relax_steps is None:
            by_ase = self.relax_with.startswith("ase:")
            self.relax_steps = calculators.MAX_STEPS if by_ase else MAX_STEPS
        if (self.relax or self.hull) and self.potential == "none":
            raise UserError("--relax and --hull: need a --potential")
        for name in ("relax_steps", "max_force", "relax_time_limit", "workers"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"--{name}={value}: must be above 0")


# ------------------------------------------------------------------ what they load


def load_vae(terms: Terms) -> tuple[VAE, Any]:
    """The VAE whose features are compared, and its parameters.

    Raises:
      UserError: there is none.
    """
    checkpoint = load_checkpoint(terms.vae)
    if "vae" not in checkpoint.params:
        raise UserError(f"--vae={terms.vae}: holds no VAE")
    return make_vae(checkpoint.config["vae"]), checkpoint.params["vae"]


def load_judges(terms: Terms, dataset: Dataset) -> Judges:
    """The potentials, each with its hull, by name; none of them for "none"."""
    assert terms.potential is not None, "__post_init__ sets it"
    if terms.potential == "none":
        return {}
    known = None if terms.reference == "mp_mini" else dataset
    judges = {}
    for name in terms.potential.split(","):
        potential = choice.with_corrections(load_potential(name), terms.protocol)
        hull = (
            read_hull_file(terms.hull, potential)
            if terms.hull
            else load_hull(potential, known)
        )
        judges[name] = potential, hull
    return judges


def load_relaxation(terms: Terms, judges: Judges, pool: WorkerPool) -> Callable:
    """What relaxes lists of structures with the potential that is to do it."""
    judge = judges.get(terms.relax_with)
    potential = judge[0] if judge else load_potential(terms.relax_with)
    return make_relaxation(
        potential,
        pool,
        max_steps=terms.relax_steps,
        max_force=terms.max_force,
        time_limit=terms.relax_time_limit,
    )


def make_context(
    terms: Terms,
    dataset: Dataset,
    vae: tuple[VAE, Any] | None,
    judges: Judges,
    pool: WorkerPool,
    items: Iterable[Item],
) -> EvaluationContext:
    """What crystals are judged by, in batches that the largest of them fits into."""
    sizes = (len(item.structure) for item in items if item.structure)
    width = max(-(-max(sizes, default=1) // 4) * 4, 20)
    return EvaluationContext(
        references=index_references(dataset.crystals),
        pool=pool,
        vae=vae,
        judges=judges,
        relax=load_relaxation(terms, judges, pool) if terms.relax else None,
        relaxer=terms.relax_with,
        width=width,
        chunk=max(CHUNK * 20 // width, 1),
        protocol=choice.load_protocol(
            terms.protocol, dataset, judges, pool, terms.relax_time_limit
        ),
    )

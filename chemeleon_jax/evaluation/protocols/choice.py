"""The protocol that a user names, and what it changes of a command."""

import hashlib
from dataclasses import replace
from functools import partial

from chemeleon_jax.data.dataset import Dataset
from chemeleon_jax.evaluation.protocols import lemat
from chemeleon_jax.evaluation.protocols.lemat import LeMat
from chemeleon_jax.evaluation.protocols.mattergen import MatterGen
from chemeleon_jax.evaluation.relaxation import make_relaxation
from chemeleon_jax.potentials.corrections import SCHEME, corrected
from chemeleon_jax.potentials.hull import Hull
from chemeleon_jax.potentials.loading import load_potential
from chemeleon_jax.potentials.types import Potential
from chemeleon_jax.workers.pool import Pool

PROTOCOLS = {"lemat": LeMat, "mattergen": MatterGen}
NAMES = ("own", *PROTOCOLS)
UNCORRECTED = ":uncorrected"


def relaxes_first(name: str) -> bool:
    """Whether crystals are relaxed before they are judged, by default.

    LeMat-GenBench judges them as they come, and relaxes to see how far they move.
    """
    return name != "lemat"


def with_corrections(potential: Potential, name: str) -> Potential:
    """The potential as a protocol wants it: MatterGen's energies have MP2020's."""
    if name != "mattergen" or potential.scheme == SCHEME:
        return potential
    if potential.name.endswith(UNCORRECTED):
        return load_potential(potential.name.removesuffix(UNCORRECTED))
    digest = hashlib.sha256(f"{potential.digest} {SCHEME}".encode()).hexdigest()
    energies = corrected(potential.energies)
    return replace(potential, digest=digest, energies=energies, scheme=SCHEME)


def load_protocol(
    name: str,
    dataset: Dataset,
    judges: dict[str, tuple[Potential, Hull]],
    pool: Pool,
    time_limit: float,
) -> LeMat | MatterGen | None:
    """The protocol of a name; None for "own".

    Args:
      name: one of `NAMES`.
      dataset: of the reference.
      judges: the potentials, each with its hull, by name.
      pool: worker processes.
      time_limit: s, for a crystal that an ASE potential relaxes.
    """
    if name == "mattergen":
        return MatterGen(dataset, bool(judges))
    if name == "lemat":
        limits = {"max_steps": lemat.STEPS, "max_force": lemat.MAX_FORCE}
        relax = partial(make_relaxation, pool=pool, time_limit=time_limit, **limits)
        return LeMat(
            dataset, {k: relax(potential) for k, (potential, _) in judges.items()}
        )
    return None

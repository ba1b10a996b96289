"""A batch of crystals as the components of a reward see it.

Runs on the host, inside one callback per batch: NumPy, pymatgen and worker processes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from threading import Barrier
from typing import Any

import numpy as np

from chemeleon_jax.data.crystals import formula_key, validity
from chemeleon_jax.data.dataset import Dataset
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.models.predictor import Predictor
from chemeleon_jax.models.vae import VAE
from chemeleon_jax.potentials.hull import Hull
from chemeleon_jax.rewards.matches import (
    Matches,
    ReferenceMatches,
    References,
    index_recent,
    match_crystals,
    match_references,
    to_cells,
)
from chemeleon_jax.rewards.stability import combine_opinions, judge_energies
from chemeleon_jax.workers.composition import smact_valid
from chemeleon_jax.workers.custom import CustomReward
from chemeleon_jax.workers.matching import Cell
from chemeleon_jax.workers.outcome import Outcome, Status
from chemeleon_jax.workers.pool import Pool


@dataclass(frozen=True, eq=False)
class Context:
    """What components score against, made once at start-up."""

    dataset: Dataset  # the known crystals
    references: References  # the same, by formula
    pool: Pool
    hulls: dict[str, Hull] = field(default_factory=dict)  # of each potential
    combine: str = "max"  # of what the potentials say, see `combine_opinions`
    relaxed: bool = False  # components see the crystals as they relax
    vae: tuple[VAE, Any] | None = None  # with its parameters
    predictor: tuple[VAE, Predictor, Any] | None = None  # see features.py
    recent_iterations: int = 0  # whose crystals `BatchAnalysis.recent` holds
    # Reduced cells of recent crystals, by content: kept for the next batch.
    recent_reduced: dict[Any, Outcome] = field(default_factory=dict)
    balanced: dict[tuple[int, ...], bool] = field(default_factory=dict)  # by formula
    barriers: dict[int, Barrier] = field(default_factory=dict)

    def wait_for(self, devices: int) -> None:
        """Returns when the callbacks of so many devices of this process are here."""
        self.barriers.setdefault(devices, Barrier(devices)).wait()


@dataclass(frozen=True, eq=False)
class BatchAnalysis:
    """A batch of B crystals on the host.

    Each quantity is computed once, when the first component asks for it.
    """

    crystals: CrystalBatch  # as generated, NumPy
    # On the device: "energy", "latent", "properties"; "relaxed", "rmsd"
    computed: dict[str, Any]
    context: Context
    recent: CrystalBatch | None = None  # of earlier batches, if they count; NumPy
    asked: np.ndarray | None = None  # fractions of elements [B, 100], NaN where none

    @cached_property
    def validity(self) -> np.ndarray:
        """Index into VALIDITY_REASONS, [B]: as generated, and as it relaxes."""
        found = validity(self.crystals)
        if "relaxed" not in self.computed:
            return found
        return np.where(found == 0, validity(self.computed["relaxed"]), found)

    @property
    def seen(self) -> CrystalBatch:
        """The crystals that components see: as generated, or relaxed."""
        return self.computed["relaxed"] if self.context.relaxed else self.crystals

    @cached_property
    def valid(self) -> np.ndarray:
        """[B] bool."""
        return self.validity == 0

    @cached_property
    def cells(self) -> list[Cell]:
        """B crystals without padding."""
        return to_cells(self.seen)

    @cached_property
    def reference_matches(self) -> ReferenceMatches:
        """How each crystal relates to the references and the recent ones."""
        references, pool = self.context.references, self.context.pool
        if self.recent is None:
            return match_references(self.cells, self.valid, references, pool)
        with index_recent(self.recent, self.context.recent_reduced) as recent:
            return match_references(self.cells, self.valid, references, pool, recent)

    @cached_property
    def matches(self) -> Matches:
        """How the crystals relate to each other and to the references."""
        references, pool = self.context.references, self.context.pool
        return match_crystals(
            self.cells, self.valid, references, pool, self.reference_matches
        )

    @cached_property
    def new(self) -> np.ndarray:
        """Unique, novel, and like none of the recent ones, [B] bool."""
        new = self.matches.unique & self.matches.novel
        for i, outcome in self.reference_matches.seen.items():
            new[i] &= not (outcome.status == Status.OK and outcome.value)
        return new

    @cached_property
    def opinions(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """What each potential says, of the crystals as they relax where they do.

        Energies above its hull [B] in eV/atom, NaN where it has none, and
        `EnergyStatus` [B].
        """
        types, valid = self.crystals.atom_types, self.valid
        return [
            judge_energies(hull, types, energy, status, valid)
            for hull, energy, status in zip(
                self.context.hulls.values(),
                *(x.T for x in self.computed["energy"]),
                strict=True,
            )
        ]

    @cached_property
    def charge_balanced(self) -> np.ndarray:
        """Whether charges can balance, [B] bool; True where there is no answer."""
        known, pool = self.context.balanced, self.context.pool
        keys = [formula_key(cell.atom_types) for cell in self.cells]
        asked = {key for key, valid in zip(keys, self.valid, strict=True) if valid}
        new = sorted(asked - known.keys())
        for key, outcome in zip(new, pool.map(smact_valid, new), strict=True):
            known[key] = outcome.status != Status.OK or outcome.value
        return np.array([known.get(key, True) for key in keys], bool)

    @cached_property
    def e_above_hull(self) -> tuple[np.ndarray, np.ndarray]:
        """What the potentials say, in one: eV/atom [B]; `EnergyStatus` [B]."""
        return combine_opinions(self.opinions, self.context.combine)


# BatchAnalysis -> values [B], status [B]; and a number of the whole batch, if any.
Evaluate = Callable[[BatchAnalysis], tuple[Any, ...]]


@dataclass(frozen=True, eq=False)
class Component:
    """One term of a reward, before its normalisation and weight."""

    evaluate: Evaluate
    needs: str | None = None  # what of `BatchAnalysis.computed` it reads
    # What a crystal without a value gets; None is the lowest value of its batch.
    penalty: float | None = None
    statuses: type[IntEnum] = Status  # of a crystal; 0 is OK
    custom: CustomReward | None = None  # the function that it calls
    # A crystal's value depends on all crystals of the batch, not on its formula alone.
    of_batch: bool = False
    batch_value: bool = False  # a number of the batch is logged, not the values' mean

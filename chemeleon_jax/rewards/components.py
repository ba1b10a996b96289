"""The components: what each computes of a batch, and from what.

Runs on the host, inside one callback per batch: NumPy, pymatgen and worker processes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from threading import Barrier
from typing import Any

import numpy as np

from chemeleon_jax.data.crystals import validity
from chemeleon_jax.data.dataset import Dataset
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.errors import UserError
from chemeleon_jax.models.predictor import Predictor
from chemeleon_jax.models.vae import VAE
from chemeleon_jax.potentials.hull import Hull
from chemeleon_jax.rewards.creativity import (
    CreativityStatus,
    Matches,
    ReferenceMatches,
    References,
    creativity,
    index_recent,
    match_crystals,
    match_references,
    to_cells,
)
from chemeleon_jax.rewards.diversity import (
    NUM_ELEMENTS,
    KernelMean,
    composition_fractions,
    diversity,
    embedding_gram,
    feature_moments,
    kernel_mean,
)
from chemeleon_jax.rewards.energy import (
    EnergyStatus,
    energy_reward,
    guard_energies,
    judge_energies,
)
from chemeleon_jax.rewards.features import encode_references, type_embedding
from chemeleon_jax.rewards.predictor import property_reward
from chemeleon_jax.runs.cached_arrays import cached_arrays
from chemeleon_jax.workers.custom import BATCH_TIME_LIMIT, CustomReward
from chemeleon_jax.workers.matching import Cell
from chemeleon_jax.workers.outcome import Outcome, Status
from chemeleon_jax.workers.pool import Pool


@dataclass(frozen=True, eq=False)
class Context:
    """What components score against, made once at start-up."""

    dataset: Dataset  # the known crystals
    references: References  # the same, by formula
    pool: Pool
    hull: Hull | None = None
    vae: tuple[VAE, Any] | None = None  # with its parameters
    predictor: tuple[VAE, Predictor, Any] | None = None  # see features.py
    # Reduced cells of recent crystals, by content: kept for the next batch.
    recent_reduced: dict[Any, Outcome] = field(default_factory=dict)
    barriers: dict[int, Barrier] = field(default_factory=dict)

    def wait_for(self, devices: int) -> None:
        """Returns when the callbacks of so many devices of this process are here."""
        self.barriers.setdefault(devices, Barrier(devices)).wait()


@dataclass(frozen=True, eq=False)
class BatchAnalysis:
    """A batch of B crystals on the host.

    Each quantity is computed once, when the first component asks for it.
    """

    crystals: CrystalBatch  # NumPy
    computed: dict[str, Any]  # on the device: "energy", "latent", "properties"
    context: Context
    recent: CrystalBatch | None = None  # of earlier batches, if they count; NumPy

    @cached_property
    def validity(self) -> np.ndarray:
        """Index into VALIDITY_REASONS, [B]."""
        return validity(self.crystals)

    @cached_property
    def valid(self) -> np.ndarray:
        """[B] bool."""
        return self.validity == 0

    @cached_property
    def cells(self) -> list[Cell]:
        """B crystals without padding."""
        return to_cells(self.crystals)

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
    def e_above_hull(self) -> tuple[np.ndarray, np.ndarray]:
        """Energies in eV/atom [B], NaN where there is none; `EnergyStatus` [B]."""
        energy, status = self.computed["energy"]
        types, hull = self.crystals.atom_types, self.context.hull
        return judge_energies(hull, types, energy, status, self.valid)


# BatchAnalysis -> values [B], status [B].
Evaluate = Callable[[BatchAnalysis], tuple[np.ndarray, np.ndarray]]


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


def _creativity(
    context: Context, *, max_amd: float | None = 1.0, min_elements: int = 1
) -> Component:
    def evaluate(batch):
        return creativity(
            batch.cells,
            batch.matches,
            context.references,
            context.pool,
            max_amd=max_amd,
            min_elements=min_elements,
            seen=batch.reference_matches.seen,
        )

    return Component(evaluate, penalty=0.0, statuses=CreativityStatus)


def _energy(
    context: Context,
    *,
    clip_max: float = 1.0,
    decay: float = 0.0,
    min_elements: int = 1,
    min_hull_entries: int = 0,
    min_e_above_hull: float | None = None,
) -> Component:
    def evaluate(batch):
        above, status = batch.e_above_hull
        status = guard_energies(
            context.hull,
            batch.cells,
            above,
            status,
            min_elements=min_elements,
            min_hull_entries=min_hull_entries,
            min_e_above_hull=min_e_above_hull,
        )
        return energy_reward(above, clip_max, decay), status

    (lowest,) = energy_reward(np.array([np.nan]), clip_max, decay)
    return Component(evaluate, "energy", penalty=float(lowest), statuses=EnergyStatus)


def _structure_diversity(context: Context) -> Component:
    if context.vae is None:
        raise ValueError("structure_diversity needs a VAE: pass `vae` to make_reward")
    kernel = kernel_mean(encode_references(*context.vae, context.dataset))

    def evaluate(batch):
        return diversity(batch.computed["latent"], batch.valid, kernel)

    return Component(evaluate, "latent", of_batch=True)


def _composition_diversity(context: Context) -> Component:
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

    return Component(evaluate, of_batch=True)


def _predictor(
    context: Context,
    *,
    property: str,
    target: float | None = None,
    clip_min: float | None = None,
    clip_max: float | None = None,
    ckpt_path: str = "",  # read by the program, which loads the model
) -> Component:
    del ckpt_path
    if context.predictor is None:
        raise ValueError("predictor needs a model: pass `predictor` to make_reward")
    known = list(context.predictor[1].targets)
    if property not in known:
        raise UserError(
            f"config.reward.components.predictor.property = {property!r}: the "
            f"predictor knows {', '.join(known)}"
        )
    column = known.index(property)

    def evaluate(batch):
        predicted = batch.computed["properties"][:, column]
        return property_reward(
            predicted,
            batch.valid,
            target=target,
            clip_min=clip_min,
            clip_max=clip_max,
        )

    return Component(evaluate, "properties")


def _custom(
    context: Context, *, function: str, time_limit: float = BATCH_TIME_LIMIT
) -> Component:
    call = CustomReward(function, context.pool, time_limit=time_limit)
    return Component(
        lambda batch: call(batch.cells, batch.valid),
        custom=call,
        of_batch=True,  # a user's function may compare crystals
    )


# A component of any other name is a custom one if it has a `function`.
COMPONENTS: dict[str, Callable[..., Component]] = {
    "creativity": _creativity,
    "energy": _energy,
    "structure_diversity": _structure_diversity,
    "composition_diversity": _composition_diversity,
    "predictor": _predictor,
    "custom": _custom,
}

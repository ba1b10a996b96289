"""Scores a batch of crystals: components, their normalisation, the advantage."""

import inspect
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from chemeleon_jax.data.crystals import VALIDITY_REASONS
from chemeleon_jax.data.dataset import Dataset
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.errors import UserError, nearest
from chemeleon_jax.models.predictor import Predictor
from chemeleon_jax.models.vae import VAE
from chemeleon_jax.potentials.hull import Hull, load_hull
from chemeleon_jax.potentials.hull_file import read_hull_file
from chemeleon_jax.potentials.loading import load_potential
from chemeleon_jax.potentials.types import Potential
from chemeleon_jax.rewards.components import COMPONENTS, Component, Context
from chemeleon_jax.rewards.creativity import index_references
from chemeleon_jax.rewards.energy import METASTABLE
from chemeleon_jax.rewards.features import mean_latent, predict_properties
from chemeleon_jax.rewards.normalize import NORMALIZATIONS
from chemeleon_jax.rewards.scoring import score_on_host
from chemeleon_jax.workers.custom import MAX_FAULTS
from chemeleon_jax.workers.executors import start_pool
from chemeleon_jax.workers.matching import to_structure
from chemeleon_jax.workers.outcome import Status
from chemeleon_jax.workers.pool import Pool

logger = logging.getLogger(__name__)


@struct.dataclass
class RewardOutput:
    """What a batch of B crystals is worth, and why."""

    total: jax.Array  # [B]  weighted sum of the normalised components
    advantage: jax.Array  # [B]  total, normalised within its group
    raw: jax.Array  # [B]  weighted sum of the raw values: comparable between batches
    components: dict[str, jax.Array]  # {name: [B]}  raw values, before normalisation
    status: dict[str, jax.Array]  # {name: [B]}  0, or why it has no value of its own
    valid: jax.Array  # [B] bool
    unique: jax.Array  # [B] bool  first of its kind in the batch
    novel: jax.Array  # [B] bool  matches no reference crystal
    e_above_hull: jax.Array | None  # [B] eV/atom, NaN where unknown; None: not computed
    metrics: dict[str, jax.Array]  # scalars, by TensorBoard tag without its prefix


@dataclass(frozen=True, eq=False)
class Term:
    """A component with its place in the sum."""

    name: str
    component: Component
    weight: float
    normalize_fn: str
    eps: float


@struct.dataclass
class Reward:
    """A reward function. Made by `make_reward`; `close` ends its worker processes.

    A pytree whose leaves are model parameters: it can be an argument of a jitted
    function, or be closed over.
    """

    params: dict[str, Any]  # of the models below, by name
    # (name, function of parameters and crystals): what the device can compute
    models: tuple[tuple[str, Callable], ...] = struct.field(pytree_node=False)
    terms: tuple[Term, ...] = struct.field(pytree_node=False)
    normalize_fn: str = struct.field(pytree_node=False)
    eps: float = struct.field(pytree_node=False)
    context: Context = struct.field(pytree_node=False)

    def raise_faults(self, directory: str | os.PathLike) -> None:
        """Ends a run whose custom reward has failed for ten crystals in a row.

        Logs the traceback of the last, and saves that crystal as CIF in `directory`.

        Raises:
          UserError: it has.
        """
        for term in self.terms:
            if fault := term.component.fault():
                path = Path(directory) / f"fault_{term.name}.cif"
                to_structure(fault.cell).to(filename=str(path), fmt="cif")
                if fault.traceback:
                    logger.error("reward %r:\n%s", term.name, fault.traceback)
                status = Status(fault.status).name.lower()
                raise UserError(
                    f"reward {term.name!r} failed for {MAX_FAULTS} crystals in a row, "
                    f"last ({status}) for the one in {path}: "
                    f"{fault.message}. Put it right and give the same command again"
                )

    def close(self) -> None:
        """Ends the worker processes."""
        self.context.pool.close()


def make_reward(
    config: Mapping[str, Any],
    *,
    dataset: Dataset,
    vae: tuple[VAE, Any] | None = None,
    predictor: tuple[VAE, Predictor, Any] | None = None,
    potential: Potential | None = None,
    hull: Hull | None = None,
    pool: Pool | None = None,
) -> Reward:
    """Builds a reward from the `reward` section of a config; slow, once at start-up.

    Args:
      config: `normalize_fn`, `eps`, `components` {name: {weight, normalize_fn, ...}},
        and where the arguments below leave them open, `potential`,
        `reference_dataset`, `hull_file`, `executor`, `ray_address`, `workers`,
        `time_limit` and `memory_limit`. Components of weight 0 are left out.
      dataset: the known crystals, which are not novel.
      vae: module and parameters, for the diversity components.
      predictor: VAE, predictor and {"vae": ..., "predictor": ...} parameters.
      potential: energies; `config.potential` by default.
      hull: of the same potential; by default that of `hull_file` or, without one, of
        the reference data set.
      pool: worker processes; started here by default.

    Raises:
      UserError: a field, component or function of the config that does not exist.
    """
    config = _plain(config)
    components = {k: v for k, v in config["components"].items() if v["weight"]}
    for name, fields in components.items():
        _check_fields(name, fields)
    _nearest_or_raise("reward.normalize_fn", config["normalize_fn"], NORMALIZATIONS)
    potential = potential or load_potential(config.get("potential", "chgnet"))
    hull = hull or _default_hull(config, components, potential, dataset)
    pool = pool or start_pool(
        config.get("executor", "processes"),
        config.get("workers") or None,
        ray_address=config.get("ray_address", "local"),
        sharers=jax.process_count(),
        time_limit=config.get("time_limit", 30.0),
        memory_limit=config.get("memory_limit"),
    )
    references = index_references(dataset.crystals)
    context = Context(dataset, references, pool, hull, vae, predictor)
    models, params = {}, {}
    if hull is not None:
        models["energy"] = lambda _, crystals: potential.energies(crystals)
        params["energy"] = None  # the potential's own constants
    if vae is not None:
        models["latent"] = partial(mean_latent, vae[0])
        params["latent"] = vae[1]
    if predictor is not None:
        models["properties"] = partial(predict_properties, *predictor[:2])
        params["properties"] = predictor[2]
    terms = tuple(
        _make_term(name, fields, context, config["eps"])
        for name, fields in components.items()
    )
    return Reward(
        params,
        tuple(models.items()),
        terms,
        config["normalize_fn"],
        config["eps"],
        context,
    )


def _default_hull(config, components, potential, dataset) -> Hull | None:
    """The hull of the user's own entries, else of the reference data set.

    Where it would have to be computed and no component asks for it, there is none.
    """
    if config.get("hull_file"):
        return read_hull_file(config["hull_file"], potential)
    if config.get("reference_dataset", "mp_mini") == "mp_mini":
        return load_hull(potential)
    return load_hull(potential, dataset) if "energy" in components else None


def _plain(config: Any) -> dict[str, Any]:
    """A ConfigDict or mapping as a dict of dicts."""
    return config.to_dict() if hasattr(config, "to_dict") else dict(config)


_COMMON = ("weight", "normalize_fn", "eps")


def _builder(name: str, fields: Mapping[str, Any]) -> Callable[..., Component]:
    return COMPONENTS["custom" if "function" in fields else name]


def _check_fields(name: str, fields: Mapping[str, Any]) -> None:
    if "function" not in fields:
        _nearest_or_raise("reward.components", name, COMPONENTS)
    where = f"reward.components.{name}"
    known = {*_COMMON, *inspect.signature(_builder(name, fields)).parameters}
    for field in fields:
        _nearest_or_raise(where, field, known - {"context"})
    normalize_fn = fields.get("normalize_fn") or "none"
    _nearest_or_raise(f"{where}.normalize_fn", normalize_fn, NORMALIZATIONS)


def _nearest_or_raise(where: str, name: str, known) -> None:
    if name in known:
        return
    near = nearest(name, known)
    raise UserError(
        f"config.{where}: there is no {name!r}; the nearest is {near!r} "
        f"(of {', '.join(sorted(known))})"
    )


def _make_term(name: str, fields: Mapping, context: Context, eps: float) -> Term:
    own = {k: v for k, v in fields.items() if k not in _COMMON}
    return Term(
        name,
        _builder(name, fields)(context, **own),
        float(fields["weight"]),
        fields.get("normalize_fn") or "none",
        fields.get("eps") or eps,
    )


def compute_rewards(
    crystals: CrystalBatch,
    *,
    reward: Reward,
    group_size: int,
    component_group_size: int | None = None,
    with_energies: bool = False,
) -> RewardOutput:
    """Scores crystals. A pure function of their arrays; jits, on one device.

    Never raises on a crystal's account: one without a value has a status that says why
    (of the component's `statuses`), gets the component's penalty, and is counted
    in the metrics `failures/COMPONENT/REASON`.

    Args:
      crystals: B crystals, B a multiple of `group_size`.
      reward: what is wanted of them.
      group_size: crystals whose totals are compared for the advantage; B for all.
      component_group_size: crystals among which each component is normalised; all by
        default. GDPO (arXiv:2601.05242): the group's, and the total over the batch, so
        that a component with a narrow range is not drowned by another.
      with_energies: compute `e_above_hull` and the metrics that need it even if no
        component asks for it (where the reward has a hull).
    """
    computed = compute_features(crystals, reward=reward, with_energies=with_energies)
    batch = crystals.mask.shape[0]
    names = [term.name for term in reward.terms]
    numbers = jax.ShapeDtypeStruct((batch,), jnp.float32)
    codes = jax.ShapeDtypeStruct((batch,), jnp.int32)
    flags = jax.ShapeDtypeStruct((batch,), jnp.bool_)
    found = jax.pure_callback(
        partial(score_on_host, reward.terms, reward.context),
        {
            "components": dict.fromkeys(names, numbers),
            "status": dict.fromkeys(names, codes),
            "scored": dict.fromkeys(names, flags),
            "validity": codes,
            "unique": flags,
            "novel": flags,
            "e_above_hull": numbers,
        },
        crystals,
        computed,
        vmap_method="sequential",
    )
    return combine(
        found,
        reward=reward,
        group_size=group_size,
        component_group_size=component_group_size,
        with_energies="energy" in computed,
    )


def compute_features(
    crystals: CrystalBatch, *, reward: Reward, with_energies: bool
) -> dict[str, Any]:
    """What the reward needs of the models, by crystal; jits, on one device."""
    needs = {term.component.needs for term in reward.terms}
    if with_energies:
        needs |= {"energy"}
    return {
        name: model(reward.params[name], crystals)
        for name, model in reward.models
        if name in needs
    }


def combine(
    found: dict[str, Any],
    *,
    reward: Reward,
    group_size: int,
    component_group_size: int | None,
    with_energies: bool,
) -> RewardOutput:
    """Normalises and adds up what was found on the host; jits."""
    batch = len(found["validity"])
    raw, total = jnp.zeros(batch), jnp.zeros(batch)
    for term in reward.terms:
        values = found["components"][term.name]
        raw += term.weight * values
        compared = values.reshape(-1, component_group_size or batch)
        normalised = NORMALIZATIONS[term.normalize_fn](compared, term.eps)
        total += term.weight * normalised.reshape(batch)
    groups = total.reshape(-1, group_size)
    advantage = NORMALIZATIONS[reward.normalize_fn](groups, reward.eps)
    return RewardOutput(
        total=total,
        advantage=advantage.reshape(batch),
        raw=raw,
        components=found["components"],
        status=found["status"],
        valid=found["validity"] == 0,
        unique=found["unique"],
        novel=found["novel"],
        e_above_hull=found["e_above_hull"] if with_energies else None,
        metrics=_metrics(reward, found, raw, with_energies),
    )


def _metrics(reward: Reward, found, raw, with_energies: bool) -> dict[str, jax.Array]:
    """Shares, mean raw values, and counts of what failed."""
    valid = found["validity"] == 0
    shares = {"valid": valid, "unique": found["unique"], "novel": found["novel"]}
    if with_energies:
        shares["metastable"] = found["e_above_hull"] <= METASTABLE  # not for NaN
        shares["msun"] = shares["metastable"] & found["unique"] & found["novel"]
    metrics = {name: share.mean(dtype=jnp.float32) for name, share in shares.items()}
    metrics["reward"] = raw.mean()
    for code, reason in enumerate(VALIDITY_REASONS[1:], 1):
        metrics[f"invalid/{reason}"] = (found["validity"] == code).sum()
    for term in reward.terms:
        name = term.name
        scored = found["scored"][name]
        values = jnp.where(scored, found["components"][name], 0.0)
        metrics[name] = values.sum() / jnp.maximum(scored.sum(), 1)
        for code in term.component.statuses:
            if code.name not in ("OK", "INVALID"):
                count = (found["status"][name] == code).sum()
                metrics[f"failures/{name}/{code.name.lower()}"] = count
    return metrics

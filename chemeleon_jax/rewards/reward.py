"""A reward as a config describes it, and what it says of crystals."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from flax import struct

from chemeleon_jax.data.dataset import Dataset
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.errors import UserError, nearest
from chemeleon_jax.models.predictor import Predictor
from chemeleon_jax.models.vae import VAE
from chemeleon_jax.potentials.hull import Hull
from chemeleon_jax.potentials.types import Potential
from chemeleon_jax.rewards.analysis import Component, Context
from chemeleon_jax.rewards.components import COMPONENTS
from chemeleon_jax.rewards.features import mean_latent, predict_properties
from chemeleon_jax.rewards.judges import FIELDS as JUDGING
from chemeleon_jax.rewards.judges import load_judges
from chemeleon_jax.rewards.matches import index_references
from chemeleon_jax.rewards.normalize import NORMALIZATIONS
from chemeleon_jax.workers.executors import start_pool
from chemeleon_jax.workers.pool import Pool


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
    # [B] eV/atom, NaN where unknown, of all potentials in one; None: not computed
    e_above_hull: jax.Array | None
    opinions: dict[str, jax.Array]  # the same by each potential, {name: [B]}
    relaxed: CrystalBatch | None  # the crystals as they relax, if they were relaxed
    rmsd: jax.Array | None  # [B] Å, by how far
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
    relax: Callable | None = struct.field(pytree_node=False)  # see `relax_valid`
    terms: tuple[Term, ...] = struct.field(pytree_node=False)
    normalize_fn: str = struct.field(pytree_node=False)
    eps: float = struct.field(pytree_node=False)
    context: Context = struct.field(pytree_node=False)

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
        `relaxed`, and where the arguments below leave them open, `potential`,
        `reference_dataset`, `hull_file`, `executor`, `ray_address`, `workers`,
        `time_limit` and `memory_limit`. Components of weight 0 are left out, but what
        `energy` says of potentials and relaxation counts for all.
      dataset: the known crystals, which are not novel.
      vae: module and parameters, for the diversity components.
      predictor: VAE, predictor and {"vae": ..., "predictor": ...} parameters.
      potential: in place of the first; `config.potential` by default.
      hull: of this potential; by default that of `hull_file` or, without one, of
        the reference data set.
      pool: worker processes; started here by default.

    Raises:
      UserError: a field, component or function of the config that does not exist.
    """
    config = _plain(config)
    judges = load_judges(config, dataset, potential=potential, hull=hull)
    components = {k: v for k, v in config["components"].items() if v["weight"]}
    for name, fields in components.items():
        _check_fields(name, fields)
    _nearest_or_raise("reward.normalize_fn", config["normalize_fn"], NORMALIZATIONS)
    pool = pool or start_pool(
        config.get("executor", "processes"),
        config.get("workers") or None,
        ray_address=config.get("ray_address", "local"),
        sharers=jax.process_count(),
        time_limit=config.get("time_limit", 30.0),
        memory_limit=config.get("memory_limit"),
    )
    references = index_references(dataset.crystals)
    context = Context(
        dataset,
        references,
        pool,
        vae=vae,
        predictor=predictor,
        hulls=judges.hulls,
        combine=judges.combine,
        relaxed=bool(config.get("relaxed")),
        recent_iterations=config.get("recent_iterations", 0),
    )
    models, params = {}, {}
    if judges.energies is not None:
        models["energy"] = judges.energies
        params["energy"] = None  # the potentials' own constants
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
        judges.relax,
        terms,
        config["normalize_fn"],
        config["eps"],
        context,
    )


def _plain(config: Any) -> dict[str, Any]:
    """A ConfigDict or mapping as a dict of dicts."""
    return config.to_dict() if hasattr(config, "to_dict") else dict(config)


def _shared(name: str) -> tuple[str, ...]:
    """Fields of a component that its builder does not take."""
    common = ("weight", "normalize_fn", "eps")
    return common + (JUDGING if name == "energy" else ())


def _builder(name: str, fields: Mapping[str, Any]) -> Callable[..., Component]:
    return COMPONENTS["custom" if "function" in fields else name]


def _check_fields(name: str, fields: Mapping[str, Any]) -> None:
    if "function" not in fields:
        _nearest_or_raise("reward.components", name, COMPONENTS)
    where = f"reward.components.{name}"
    known = {*_shared(name), *inspect.signature(_builder(name, fields)).parameters}
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
    own = {k: v for k, v in fields.items() if k not in _shared(name)}
    return Term(
        name,
        _builder(name, fields)(context, **own),
        float(fields["weight"]),
        fields.get("normalize_fn") or "none",
        fields.get("eps") or eps,
    )

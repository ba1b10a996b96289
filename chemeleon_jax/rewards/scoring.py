"""`compute_rewards`: what crystals are worth, by all devices of all processes.

What models compute is shared by rows. What a crystal's formula decides (matching,
creativity) and other work on single crystals is shared by formula: crystals that are
compared with each other are then with one device, so that nothing but its results is
exchanged, and no reward depends on the number of devices. Components that compare all
crystals are computed by the first.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from chemeleon_jax.data.crystals import VALIDITY_REASONS, formula_keys, take
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.devices.host import call_host
from chemeleon_jax.devices.sharding import over_devices
from chemeleon_jax.rewards.analysis import BatchAnalysis
from chemeleon_jax.rewards.matches import by_formula
from chemeleon_jax.rewards.normalize import NORMALIZATIONS
from chemeleon_jax.rewards.reward import Reward, RewardOutput
from chemeleon_jax.rewards.stability import is_metastable, is_msun

logger = logging.getLogger(__name__)


def compute_rewards(
    crystals: CrystalBatch,
    *,
    reward: Reward,
    group_size: int,
    component_group_size: int | None = None,
    with_energies: bool = False,
    recent: CrystalBatch | None = None,
    asked: jax.Array | None = None,
) -> RewardOutput:
    """Scores crystals. A pure function of its arguments; jits, on any mesh.

    Under a mesh (`jax.set_mesh`) its devices share the work, also those of other
    processes, all of which call it with the same crystals. Its host half runs in a
    callback on each device, with the worker pool of that device's process.

    Never raises on a crystal's account: one without a value has a status that says why
    (of the component's `statuses`), gets the component's penalty, and is counted in the
    metrics `failures/COMPONENT/STATUS`.

    Args:
      crystals: B crystals, B a multiple of `group_size`.
      reward: what is wanted of them.
      group_size: crystals whose totals are compared for the advantage; B for all.
      component_group_size: crystals among which each component is normalised; all by
        default. GDPO (arXiv:2601.05242): the group's, and the total over the batch, so
        that a component with a narrow range is not drowned by another.
      with_energies: compute `e_above_hull` and the metrics that need it even if no
        component asks for it (where the reward has a hull).
      recent: crystals of earlier batches, which are not creative when they come again;
        see `RecentCrystals`. Rows without an atom count for nothing.
      asked: fractions of elements [B, 100] that crystals were asked for, by atomic
        number; NaN for what nobody asked.
    """
    batch, atoms = crystals.mask.shape
    chex.assert_shape([crystals.atom_types, crystals.mask], (batch, atoms))  # [B, N]
    chex.assert_shape(crystals.frac_coords, (batch, atoms, 3))  # [B, N, 3]
    chex.assert_shape([crystals.lengths, crystals.angles], (batch, 3))  # [B, 3]
    chex.assert_is_divisible(batch, group_size)
    chex.assert_is_divisible(batch, component_group_size or batch)
    needs = {term.component.needs for term in reward.terms}
    if with_energies:
        needs |= {"energy"}
    if not (reward.context.relaxed or needs & {"energy", "relaxation"}):
        reward = reward.replace(relax=None)
    models = {name: model for name, model in reward.models if name in needs}
    share = over_devices(
        partial(score_share, reward=reward.replace(params=None), models=models),
        in_specs=P(),
        out_specs=P(),
    )
    found, relaxation = share(crystals, recent, asked, reward.params)
    return combine(
        found,
        relaxation,
        reward=reward,
        group_size=group_size,
        component_group_size=component_group_size,
        with_energies="energy" in models,
    )


# ------------------------------------------------------------------- on every device


def score_share(
    crystals: CrystalBatch,
    recent: CrystalBatch | None,
    asked: jax.Array | None,
    params: dict[str, Any],
    *,
    reward: Reward,
    models: dict[str, Callable],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inside `over_devices`: what the host finds of all crystals, each device's share.

    And, where they are relaxed, the crystals "relaxed" and their "rmsd".

    Args:
      crystals: B crystals, the same on every device.
      recent: likewise.
      asked: likewise.
      params: of the models.
      reward: its terms and context.
      models: those whose results the terms need.
    """
    batch = crystals.mask.shape[0]
    mesh = jax.sharding.get_abstract_mesh()
    axes, device, devices, process = mesh.axis_names, jnp.int32(0), 1, jnp.zeros(1)
    if not mesh.empty:
        device, devices = lax.axis_index(axes), mesh.size
        own = jax.pure_callback(_process, jax.ShapeDtypeStruct((), jnp.int32))
        process = lax.all_gather(own, axes)  # of each device
    # Equal shares, filled up with the first crystals.
    size = -(-batch // devices)
    mine = take(crystals, (device * size + jnp.arange(size)) % batch)
    computed = compute(mine, params, reward=reward, models=models)
    if devices > 1:
        if reward.relax:  # takes one device far longer than another
            wait = partial(_wait, reward.context, devices)
            computed = call_host(wait, shapes_of(computed), device, process, computed)
        gather = partial(lax.all_gather, axis_name=axes, tiled=True)
        computed = jax.tree.map(lambda x: gather(x)[:batch], computed)
    found = call_host(
        partial(_on_host, reward.terms, reward.context, devices),
        shapes_of(blank(reward.terms, reward.context.hulls, batch)),
        device,
        process,
        crystals,
        computed,
        recent,
        asked,
    )
    if devices > 1:  # where it is not a device's share, it has found zeros
        found = jax.tree.map(lambda x: lax.psum(x, axes), found)
    return found, {k: v for k, v in computed.items() if k in ("relaxed", "rmsd")}


def compute(
    crystals: CrystalBatch,
    params: dict[str, Any],
    *,
    reward: Reward,
    models: dict[str, Callable],
) -> dict[str, Any]:
    """What models say of B crystals, relaxed first where the reward says so."""
    computed, relaxed, seen = {}, None, crystals
    if reward.relax:
        relaxed = reward.relax(crystals)
        computed = {"relaxed": relaxed.crystals, "rmsd": relaxed.rmsd}
        seen = relaxed.crystals if reward.context.relaxed else crystals
    for name, model in models.items():
        arguments = (crystals, relaxed) if name == "energy" else (seen,)
        computed[name] = model(params[name], *arguments)
    return computed


def shapes_of(arrays):
    """What `jax.pure_callback` must know of its results."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)


# ------------------------------------------------------------------------ on the host


def _process() -> np.ndarray:
    return np.int32(jax.process_index())


def _wait(context, devices, device, process, computed):
    """`computed`, when all devices of this process have theirs."""
    context.wait_for(int(np.sum(process == process[int(device)])))
    return computed


def _on_host(
    terms, context, devices, device, process, crystals, computed, recent, asked
):
    """The callback: NumPy in, NumPy out, no JAX call in between, and no raise."""
    device = int(device)
    analyse = partial(BatchAnalysis, context=context, recent=recent)
    # A fault outside of what is guarded below: no number, and the update is skipped.
    nothing = {
        name: np.full_like(zeros, np.nan if zeros.dtype == np.float32 else 0)
        for name, zeros in blank(terms, context.hulls, len(crystals.mask)).items()
    }
    found = _attempt(
        lambda: find_share(
            terms, context.hulls, analyse, crystals, computed, asked, device, devices
        ),
        nothing,
        "rewards",
    )
    # Devices of one process that wait 40 s for each other in a collective end it.
    context.wait_for(int(np.sum(process == process[device])))
    return found


def find_share(
    terms,
    hulls,
    analyse: Callable[..., BatchAnalysis],
    crystals: CrystalBatch,
    computed: dict[str, Any],
    asked: np.ndarray | None,
    device: int,
    devices: int,
) -> dict[str, np.ndarray]:
    """What one device's host finds: zeros for crystals and terms of other devices."""
    batch = len(crystals.mask)
    rows = np.flatnonzero(owners(crystals, devices) == device)
    found = blank(terms, hulls, batch)
    if len(rows):
        parts = jax.tree.map(lambda x: x[rows], (computed, asked))
        mine = analyse(take(crystals, rows), parts[0], asked=parts[1])
        singly = [term for term in terms if not term.component.of_batch]
        for name, values in (evaluate_terms(singly, mine) | describe(mine)).items():
            found[name][rows] = values
    if device == 0:
        together = [term for term in terms if term.component.of_batch]
        found |= evaluate_terms(together, analyse(crystals, computed, asked=asked))
    return found


def owners(crystals: CrystalBatch, num_devices: int) -> np.ndarray:
    """The device of each crystal, [B]: by reduced formula, with even loads."""
    owner = np.zeros(len(crystals.mask), int)
    keys = formula_keys(np.where(crystals.mask, crystals.atom_types, 0))
    members = by_formula(dict(enumerate(keys)))
    loads = np.zeros(num_devices, int)
    for rows in sorted(members.values(), key=len, reverse=True):
        owner[rows] = loads.argmin()
        loads[loads.argmin()] += len(rows)
    return owner


def blank(terms, hulls, batch: int) -> dict[str, np.ndarray]:
    """What `find_share` returns, zeros."""
    codes = [f"status/{term.name}" for term in terms] + ["validity", "unique", "novel"]
    numbers = [f"value/{term.name}" for term in terms] + ["e_above_hull"]
    numbers += [f"above/{name}" for name in hulls]
    found = {name: np.zeros(batch, np.int32) for name in codes}
    found |= {name: np.zeros(batch, np.float32) for name in numbers}
    of_batches = [term.name for term in terms if term.component.batch_value]
    return found | {f"batch/{name}": np.zeros((), np.float32) for name in of_batches}


def evaluate_terms(terms, analysis: BatchAnalysis) -> dict[str, np.ndarray]:
    """Values and statuses of each component."""
    batch, found = len(analysis.crystals.mask), {}
    for term in terms:
        component = term.component
        failed = np.full(batch, component.statuses["RAISED"])
        values, status, *of_batch = _attempt(
            partial(component.evaluate, analysis), (np.zeros(batch), failed), term.name
        )
        found[f"value/{term.name}"] = values.astype(np.float32)
        found[f"status/{term.name}"] = status.astype(np.int32)
        if component.batch_value:
            found[f"batch/{term.name}"] = np.float32(sum(of_batch))  # 0 if it failed
    return found


def describe(analysis: BatchAnalysis) -> dict[str, np.ndarray]:
    """What is known of each crystal, whatever the components."""
    batch = len(analysis.crystals.mask)
    none, above = np.zeros(batch, bool), np.full(batch, np.nan)
    flags = _attempt(
        lambda: (analysis.matches.unique, analysis.matches.novel),
        (none, none),
        "matches",
    )
    opinions = {f"above/{name}": above for name in analysis.context.hulls}
    if "energy" in analysis.computed:
        above = _attempt(lambda: analysis.e_above_hull[0], above, "e_above_hull")
        found = _attempt(lambda: [x for x, _ in analysis.opinions], [], "opinions")
        opinions |= dict(zip(opinions, found, strict=False))
    opinions = {name: x.astype(np.float32) for name, x in opinions.items()}
    return opinions | {
        "validity": analysis.validity.astype(np.int32),
        "unique": flags[0].astype(np.int32),
        "novel": flags[1].astype(np.int32),
        "e_above_hull": above.astype(np.float32),
    }


def _attempt(function: Callable, fallback, what: str):
    """`function()`; a fault of ours must not end a run of days, but be seen."""
    try:
        return function()
    except Exception:
        logger.exception("%s could not be computed for a whole batch", what)
        return fallback


# -------------------------------------------------------------------- on every device


def combine(
    found: dict[str, Any],
    relaxation: dict[str, Any],
    *,
    reward: Reward,
    group_size: int,
    component_group_size: int | None,
    with_energies: bool,
) -> RewardOutput:
    """Normalises and adds up what was found on the host."""
    batch = len(found["validity"])
    raw, total = jnp.zeros(batch), jnp.zeros(batch)
    components, status = {}, {}
    for term in reward.terms:
        status[term.name] = found[f"status/{term.name}"]
        values = fill_penalty(found[f"value/{term.name}"], status[term.name], term)
        components[term.name] = values
        raw += term.weight * values
        compared = values.reshape(-1, component_group_size or batch)
        normalised = NORMALIZATIONS[term.normalize_fn](compared, term.eps)
        total += term.weight * normalised.reshape(batch)
    groups = total.reshape(-1, group_size)
    advantage = NORMALIZATIONS[reward.normalize_fn](groups, reward.eps)
    output = RewardOutput(
        total=total,
        advantage=advantage.reshape(batch),
        raw=raw,
        components=components,
        status=status,
        valid=found["validity"] == 0,
        unique=found["unique"] > 0,
        novel=found["novel"] > 0,
        e_above_hull=found["e_above_hull"] if with_energies else None,
        opinions={
            name: found[f"above/{name}"]
            for name in reward.context.hulls
            if with_energies
        },
        relaxed=relaxation.get("relaxed"),
        rmsd=relaxation.get("rmsd"),
        metrics={},
    )
    return output.replace(metrics=_metrics(reward, output, found))


def fill_penalty(values: jax.Array, status: jax.Array, term) -> jax.Array:
    """Values [B], the component's penalty for crystals without one, status not 0."""
    ok, penalty = status == 0, term.component.penalty
    if penalty is None:
        lowest = jnp.where(ok, values, jnp.inf).min()
        penalty = jnp.where(ok.any(), lowest, 0.0)
    return jnp.where(ok, values, penalty)


def _metrics(
    reward: Reward, output: RewardOutput, found: dict[str, Any]
) -> dict[str, jax.Array]:
    """Shares, mean raw values, and counts of what failed."""
    shares = {name: getattr(output, name) for name in ("valid", "unique", "novel")}
    if output.e_above_hull is not None:
        shares["metastable"] = is_metastable(output.e_above_hull)
        shares["msun"] = is_msun(output.e_above_hull, output.unique, output.novel)
    metrics = {name: share.mean(dtype=jnp.float32) for name, share in shares.items()}
    metrics["reward"] = output.raw.mean()
    if len(output.opinions) > 1:
        above = jnp.stack(list(output.opinions.values()))
        metrics["disagreement"] = jnp.nanmean(jnp.ptp(above, axis=0))
        for name, one in output.opinions.items():
            metrics[f"metastable/{name}"] = is_metastable(one).mean(dtype=jnp.float32)
    if output.rmsd is not None:
        metrics["rmsd"] = jnp.nanmean(jnp.where(output.valid, output.rmsd, jnp.nan))
    for code, reason in enumerate(VALIDITY_REASONS[1:], 1):
        metrics[f"invalid/{reason}"] = (found["validity"] == code).sum()
    for term in reward.terms:
        status, values = output.status[term.name], output.components[term.name]
        # A penalty that is a value of its own kind counts in the mean.
        scored = (status == 0) | (term.component.penalty is not None)
        mean = jnp.where(scored, values, 0.0).sum() / jnp.maximum(scored.sum(), 1)
        metrics[term.name] = found.get(f"batch/{term.name}", mean)
        for code in term.component.statuses:
            if code.name not in ("OK", "INVALID"):
                tag = f"failures/{term.name}/{code.name.lower()}"
                metrics[tag] = (status == code).sum()
    return metrics

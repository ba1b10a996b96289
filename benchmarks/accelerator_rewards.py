"""Energies, relaxation, whole iterations and recorded numbers on an accelerator."""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator import Session, Setting
from benchmarks.iteration import seconds_per_iteration
from benchmarks.measure import busy, measure
from benchmarks.relaxation import relax_all
from chemeleon_jax.cli import parse
from chemeleon_jax.data.crystals import take
from chemeleon_jax.data.dataset import load_dataset
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.potentials.batches import GraphPotential, energies
from chemeleon_jax.potentials.chgnet import graph_energy, load_params
from chemeleon_jax.potentials.graph import Capacity
from chemeleon_jax.potentials.loading import load_potential
from convert_checkpoints.verify import verify

LARGER = 4  # times the graph that CHGNet takes by default


def known(count: int) -> CrystalBatch:
    """Crystals of mp_mini whose atoms are 0.02 of the cell off."""
    rng = np.random.default_rng(0)
    all_known = load_dataset("mp_mini").crystals
    crystals = take(all_known, rng.choice(len(all_known.mask), count))
    moved = crystals.frac_coords + rng.normal(0, 0.02, crystals.frac_coords.shape)
    moved = (moved * crystals.mask[..., None]).astype(np.float32)
    return jax.tree.map(jnp.asarray, crystals.replace(frac_coords=moved))


def larger_graphs(crystals: CrystalBatch):
    """CHGNet's energies, of graphs that hold more crystals."""
    capacity = Capacity(*(LARGER * size for size in Capacity()))
    return energies(GraphPotential(graph_energy, capacity), load_params(), crystals)


def relaxed(crystals: CrystalBatch):
    """Over 16 energies of CHGNet, as a reward asks for it."""
    return relax_all(crystals, potential=load_potential("chgnet"), steps=16)


def potentials(session: Session, setting: Setting) -> None:
    """Energies, and relaxation."""
    crystals, few = known(setting.crystals), known(setting.relaxed)
    for name, function, batch in (
        ("chgnet", lambda x: load_potential("chgnet").energies(x), crystals),
        (f"chgnet, graphs {LARGER} times as large", larger_graphs, crystals),
        ("relaxation by chgnet, 16 energies", relaxed, few),
        ("sevennet-l3i5", lambda x: load_potential("sevennet-l3i5").energies(x), few),
    ):

        def time_it(name=name, function=function, batch=batch):
            began = time.perf_counter()
            compiled = jax.jit(function).lower(batch).compile()
            compile_s = time.perf_counter() - began
            seconds = busy(measure(compiled, batch, repeats=setting.repeats))
            count = len(batch.mask)
            session.add(
                "energies",
                f"{name}: {count} crystals",
                **{
                    "s": seconds,
                    "crystals/s": count / seconds,
                    "compile s": compile_s,
                },
            )

        session.attempt("energies", name, 20.0, time_it)


def iteration(session: Session, small: bool) -> None:
    """Iterations of `train` with the embedded model, as the program logs them."""
    config, _ = parse(["iteration", "--config=rl_dng"])
    config.num_iterations, config.checkpoint_every = 3, 3
    config.validate_every = 0
    config.judge.potential = ""
    if small:
        config.data.batch_size, config.rl.num_group_samples = 2, 4
        config.sampling.sampling_steps = 5
        config.reward.components.energy.potentials = "chgnet"
        config.reward.components.energy.relax_steps = 2
    seconds = seconds_per_iteration(config)
    crystals = config.data.batch_size * config.rl.num_group_samples
    for stage, value in (seconds | {"all": sum(seconds.values())}).items():
        session.add(
            "iteration",
            f"rl_dng, {stage}",
            **{"s": value, "crystals/s": crystals / value},
        )


def parity(session: Session, folder: Path, precision: str) -> None:
    """Recorded arrays computed again, by products of a precision."""
    began = time.perf_counter()
    rows = verify(folder, precision)
    failed = [row.key for row in rows if not row.ok]
    worst = max((row.max_rel or 0.0 for row in rows), default=0.0)
    note = f"{len(rows)} arrays, {len(failed)} outside of tolerance, at most "
    note += f"{worst:.1e} of an array's largest; {', '.join(failed[:3])}"
    session.add("parity", precision, s=time.perf_counter() - began, note=note)

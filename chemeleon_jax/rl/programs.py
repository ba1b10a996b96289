"""What a run compiles: the rollout, the step of the policy, and how these are cut."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from jax.sharding import Mesh

from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.devices.compilation import on_mesh
from chemeleon_jax.devices.sharding import replicate
from chemeleon_jax.models.buckets import choose_microbatches
from chemeleon_jax.models.generator import Generator
from chemeleon_jax.rl.bulk import (
    Prompts,
    jit_rollout,
    sample_in_bulk,
    shard_as_trajectory,
)
from chemeleon_jax.rl.config import GRPOConfig, grpo_config
from chemeleon_jax.rl.learner import compile_train_step
from chemeleon_jax.rl.sampler import Sampler, make_sampler


class Programs(NamedTuple):
    """Functions on a mesh, for B crystals in an iteration."""

    batch_size: int  # B
    sampler: Sampler  # replicated
    grpo: GRPOConfig
    rollout: Callable  # of B prompts, see `sample_group`
    trace_rollout: Callable  # the same, traced only: the shapes of what it gives
    compile_step: Callable  # see `compile_train_step`
    place: Callable  # values of B crystals, each to where the trajectory has it

    def sample(self, params: Any, prompts: Prompts) -> CrystalBatch:
        """Crystals of any number of prompts (NumPy); see `sample_in_bulk`."""
        return sample_in_bulk(
            params,
            prompts,
            sample=lambda *x: self.rollout(*x, sampler=self.sampler)[0],
            batch_size=self.batch_size,
        )


def make_programs(config: Any, model: Generator, mesh: Mesh) -> Programs:
    """The programs of a run's config. They are compiled when they are first called."""
    rl = config.rl
    num_crystals = config.data.batch_size * rl.num_group_samples
    microbatches = partial(
        choose_microbatches,
        model=model,
        memory_budget=rl.memory_budget,
        devices=mesh.size,
    )
    trained = num_crystals + rl.replay.crystals
    grpo = grpo_config(rl, microbatches(trained // rl.num_inner_batch))
    jitted = jit_rollout(
        mesh,
        grpo.num_inner_batch,
        microbatches(num_crystals),
        record=grpo.objective == "grpo",
    )
    return Programs(
        num_crystals,
        make_sampler(replicate(model, mesh), **config.sampling),
        grpo,
        rollout=on_mesh(jitted, mesh, config.precision),
        trace_rollout=on_mesh(jitted.trace, mesh, config.precision),
        compile_step=on_mesh(compile_train_step, mesh, config.precision),
        place=partial(
            shard_as_trajectory, num_minibatches=grpo.num_inner_batch, mesh=mesh
        ),
    )

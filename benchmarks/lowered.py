"""What XLA makes of an iteration for a GPU that is not there: memory and kernels.

    pip install 'jax[cuda13]'  # the compiler is in it; no card, no driver
    JAX_PLATFORMS=cpu python -m benchmarks.lowered --crystals 64 320 1024

The setting is that of `benchmarks.accelerator`, the card an H100 of 80 GB. The compiler
tries no kernels out, as it would on a card: what it says of memory and of the number of
kernels holds, nothing of their speed. docs/scaling.md has the figures.
"""

import argparse
import contextlib
import re
import time
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.measure import print_table
from benchmarks.policy import (
    MAX_ATOMS,
    MEMORY_BUDGET,
    PAPER_VAE,
    all_padded,
    generator_shapes,
)
from chemeleon_jax.devices.compilation import PRECISIONS
from chemeleon_jax.models.buckets import choose_microbatches
from chemeleon_jax.models.dit import DiT, dit_size
from chemeleon_jax.models.optimizer import make_optimizer
from chemeleon_jax.rl.bulk import Prompts, sample_on_mesh
from chemeleon_jax.rl.config import GRPOConfig
from chemeleon_jax.rl.learner import init_state, train_step
from chemeleon_jax.rl.sampler import make_sampler

# NVIDIA H100 SXM: limits of its hardware, as XLA's own specification of it has them
# (openxla/xla, xla/backends/gpu/target_config/specs/h100_sxm.txtpb, Apache-2.0).
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 device_address_bits: 64 ecc_enabled: true
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  device_vendor: "NVIDIA Corporation" name: "NVIDIA H100 80GB HBM3"
  platform_version: "Compute Capability 9.0a"
  driver_version: "13.0.0" runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0" dnn_version: "9.10.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
_CALL = re.compile(r"custom_call @?\"?([\w.$]+)")
_COMPUTATION = re.compile(r"(?m)^(?:ENTRY )?%?([\w.\-]+) \(")
_KERNEL = re.compile(r" = .*? (?:fusion|custom-call|dot|sort|copy|reduce|scatter)\(")

_NESTED = re.compile(r" = .*? (?:while|conditional|call)\(")


def absent_gpu() -> Mesh:
    """A mesh of one H100, for which programs can be compiled and not run."""
    found = topologies.get_topology_desc(
        "h100", platform="cuda", topology="1x1x1", target_config=H100
    )
    devices = np.array(found.devices).reshape(1, 1)
    return Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def trace_iteration(
    dit: DiT,
    vae: dict[str, int],
    *,
    crystals: int,
    microbatches: tuple[int, int] = (1, 1),
    max_atoms: int = MAX_ATOMS,
    steps: int = 50,
    mesh: Mesh | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Rollout and update of shapes alone, traced; `options` are of the update's jit.

    `microbatches` are the rollout's, and those of each of the two minibatches.
    """

    def placed(tree):
        sharding = None if mesh is None else NamedSharding(mesh, P())
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                jnp.shape(x), jnp.result_type(x), sharding=sharding
            ),
            tree,
        )

    model, policy = placed(generator_shapes(dit, vae, max_atoms))
    sampler = placed(make_sampler(model, sampling_steps=steps))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), crystals))
    counts = jax.ShapeDtypeStruct((crystals,), jnp.int32)
    optimizer = make_optimizer(1e-5)
    state = placed(jax.eval_shape(partial(init_state, optimizer=optimizer), policy))
    rollout = partial(
        sample_on_mesh, num_minibatches=2, num_microbatches=microbatches[0]
    )
    config = GRPOConfig(num_inner_batch=2, grad_accum=microbatches[1])
    update = partial(train_step, config=config, optimizer=optimizer)
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        sampled = jax.jit(rollout).trace(
            policy, placed(Prompts(keys, counts, None)), sampler=sampler
        )
        updated = jax.jit(update, **options).trace(
            state,
            placed(sampled.out_info[1]),
            placed(jax.ShapeDtypeStruct((crystals,), jnp.float32)),
            sampler=sampler,
            reference_params=policy,
        )
    return {"rollout": sampled, "update": updated}


def host_calls(stablehlo: str) -> list[str]:
    """The calls of Python in a lowered program."""
    return [name for name in _CALL.findall(stablehlo) if "callback" in name]


def kernels(hlo: str) -> dict[str, int]:
    """Kernels of each innermost loop body, branch and function of a compiled program.

    One for each fusion and library call, whatever is inside. What holds a loop or a
    branch itself is left out: it does little but start these.
    """
    parts = _COMPUTATION.split(hlo)[1:]
    fused = set(re.findall(r"calls=%?([\w.\-]+)", hlo))
    return {
        name: len(_KERNEL.findall(body))
        for name, body in zip(parts[::2], parts[1::2], strict=True)
        if name not in fused and not _NESTED.search(body)
    }


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--crystals", type=int, nargs="+", default=[64, 320, 1024])
    add("--precision", choices=PRECISIONS, default="default")
    add("--budget", type=float, default=MEMORY_BUDGET, help="rl.memory_budget, GB")
    add("--all_widths", action="store_true", help="five branches, as a run has them")
    flags = parser.parse_args()
    dit, mesh, rows = DiT(**dit_size("B"), learn_sigma=False), absent_gpu(), []
    model, _ = generator_shapes(dit, PAPER_VAE, MAX_ATOMS)
    widths = contextlib.nullcontext() if flags.all_widths else all_padded()
    precision = jax.default_matmul_precision(PRECISIONS[flags.precision])
    with widths, precision, mock.patch.object(jax, "default_backend", lambda: "gpu"):
        for crystals in flags.crystals:
            microbatches = tuple(
                choose_microbatches(count, model, flags.budget)
                for count in (crystals, crystals // 2)
            )
            programs = trace_iteration(
                dit, PAPER_VAE, crystals=crystals, microbatches=microbatches, mesh=mesh
            )
            for (name, traced), parts in zip(
                programs.items(), microbatches, strict=True
            ):
                began = time.process_time()
                with jax.set_mesh(mesh):
                    compiled = traced.lower().compile()
                seconds = time.process_time() - began
                memory: Any = compiled.memory_analysis()
                rows.append(
                    {
                        "program": name,
                        "crystals": crystals,
                        "microbatches": parts,
                        "arguments GB": memory.argument_size_in_bytes / 1e9,
                        "results GB": memory.output_size_in_bytes / 1e9,
                        "work GB": memory.temp_size_in_bytes / 1e9,
                        "kernels of a step": max(kernels(compiled.as_text()).values()),
                        "CPU s to compile": seconds,
                    }
                )
                print(rows[-1], flush=True)
    print_table(rows)


if __name__ == "__main__":
    main()

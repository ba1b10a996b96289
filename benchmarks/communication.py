"""What an update sends between devices and holds on each, as its compiled program says.

    python -m benchmarks.communication --depth=6 --width=160 --heads=5 --devices=4
    python -m benchmarks.communication --depth=6 --width=160 --heads=5 --fsdp=2

No weights and no accelerator are needed. See docs/scaling.md.
"""

import argparse
import re
from collections import Counter
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from chemeleon_jax.data.types import Step, Trajectory
from chemeleon_jax.devices.sharding import CRYSTALS, make_mesh, param_specs
from chemeleon_jax.models.diffusion import make_schedule
from chemeleon_jax.models.dit import DiT
from chemeleon_jax.models.generator import Generator
from chemeleon_jax.models.optimizer import make_optimizer
from chemeleon_jax.rl.config import GRPOConfig
from chemeleon_jax.rl.learner import init_state, train_step
from chemeleon_jax.rl.objective import OWN_TRAJECTORY
from chemeleon_jax.rl.sampler import Sampler

_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s64": 8,
    "u64": 8,
    "f64": 8,
}
_OPERATION = re.compile(
    r"= (?P<shapes>.*?) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|"
    r"collective-permute|collective-broadcast)(?:-start)?\("
)
_SHAPE = re.compile(r"([a-z]+[0-9]*)\[([0-9,]*)\]")


class Collective(NamedTuple):
    """One array of one collective operation."""

    kind: str  # all-reduce, all-gather, ...
    shape: tuple[int, ...]  # of its result on each device
    num_bytes: int  # of that result


def collectives(hlo: str) -> list[Collective]:
    """The collective operations of a program, each once, also those in loops.

    Args:
      hlo: `jit(f).lower(...).compile().as_text()`.
    """
    found = []
    for line in hlo.splitlines():
        operation = _OPERATION.search(line)
        if operation is None:
            continue
        for dtype, sizes in _SHAPE.findall(operation["shapes"]):
            shape = tuple(int(size) for size in sizes.split(",") if size)
            num_bytes = int(np.prod(shape)) * _BYTES.get(dtype, 4)
            found.append(Collective(operation["kind"], shape, num_bytes))
    return found


def policy_shapes(dit: DiT, num_atoms: int) -> Any:
    """Shapes of a policy's parameters."""
    z = jnp.zeros((1, num_atoms, dit.latent_channels))
    mask = jnp.ones((1, num_atoms), bool)
    init = partial(dit.init, jax.random.key(0))
    return {"dit": jax.eval_shape(init, z, jnp.zeros(1), mask)["params"]}


def compile_update(
    dit: DiT,
    *,
    devices: int,
    fsdp: int = 1,
    num_atoms: int = 20,
    num_inner_batch: int = 2,
) -> jax.stages.Compiled:
    """The compiled update of one iteration: a crystal per device and inner batch.

    Three recorded steps, of which two are trained on, so that their choice is in it.
    """
    mesh = make_mesh(devices, fsdp=fsdp)
    crystals, steps = devices * num_inner_batch, 3

    def placed(tree, specs):
        def one(x, spec):
            sharding = NamedSharding(mesh, spec)
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        return jax.tree.map(one, tree, specs)

    optimizer = make_optimizer(1e-5)
    policy = policy_shapes(dit, num_atoms)
    state = jax.eval_shape(partial(init_state, optimizer=optimizer), policy)
    state = placed(state, param_specs(state, mesh))
    latents = np.zeros((steps, crystals, num_atoms, dit.latent_channels), np.float32)
    trajectory = Trajectory(
        Step(np.zeros(steps, np.int32), latents, latents, latents[..., 0, 0]),
        np.zeros((crystals, num_atoms), bool),
    )
    update = partial(
        train_step,
        sampler=Sampler(
            Generator(dit, None, None, {}, jnp.float32(1), num_atoms),
            make_schedule("ddim", steps + 1),
        ),
        config=GRPOConfig(
            clip_ratio=0.1, ema_decay=0.9, num_inner_batch=num_inner_batch
        ),
        optimizer=optimizer,
    )
    with jax.set_mesh(mesh):
        lowered = jax.jit(update).lower(
            state,
            placed(
                trajectory,
                OWN_TRAJECTORY.replace(condition=None, latents=None, keys=None),
            ),
            placed(np.zeros(crystals, np.float32), CRYSTALS),
            reference_params=state.params,
            timesteps=placed(np.zeros(2, np.int32), P()),
        )
        return lowered.compile()


def main() -> None:
    """Prints what is sent, beside the formulas of docs/scaling.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, default in (("depth", 6), ("width", 160), ("heads", 5), ("channels", 24)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("devices", 4), ("fsdp", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", args.devices)
    dit = DiT(args.depth, args.width, args.heads, latent_channels=args.channels)
    sizes = [4 * int(np.prod(x.shape)) for x in jax.tree.leaves(policy_shapes(dit, 20))]
    print(f"parameters: {len(sizes)} arrays, {sum(sizes)} bytes")
    update = compile_update(dit, devices=args.devices, fsdp=args.fsdp)
    memory: Any = update.memory_analysis()
    for name in ("argument", "output", "temp"):
        num_bytes = getattr(memory, f"{name}_size_in_bytes")
        print(f"memory of each device, {name}: {num_bytes / sum(sizes):.2f} times that")
    totals = Counter()
    for kind, shape, num_bytes in collectives(update.as_text()):
        totals[kind, "arrays" if shape else "scalars"] += num_bytes
    for (kind, what), num_bytes in totals.items():
        print(f"{kind} of {what}: {num_bytes} bytes")


if __name__ == "__main__":
    main()

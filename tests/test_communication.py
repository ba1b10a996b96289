"""What devices tell each other in a compiled update: gradients and scalars."""

from functools import partial

import jax
import numpy as np
import pytest
import tiny
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from chemeleon_jax.communication import Collective, collectives
from chemeleon_jax.diffusion import make_schedule
from chemeleon_jax.objective import OWN_TRAJECTORY, make_optimizer
from chemeleon_jax.sharding import CRYSTALS, make_mesh, param_specs
from chemeleon_jax.train import improve_policy, init_state
from chemeleon_jax.types import Step, Trajectory

B, N, L, S = 8, tiny.MAX_ATOMS, 4, 3  # eight crystals, three recorded steps


def compiled_update(fsdp: int) -> str:
    """HLO of an iteration's update on four devices."""
    model, policy = tiny.generator(width=32)
    optimizer, mesh = make_optimizer(1e-3), make_mesh(4, fsdp=fsdp)

    def shapes(tree, specs):
        def one(x, spec):
            return jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=NamedSharding(mesh, spec)
            )

        return jax.tree.map(one, tree, specs)

    state = jax.eval_shape(partial(init_state, optimizer=optimizer), policy)
    state = shapes(state, param_specs(state, mesh))
    latents, log_prob = np.zeros((S, B, N, L), np.float32), np.zeros((S, B), np.float32)
    trajectory = Trajectory(
        Step(np.zeros(S, np.int32), latents, latents, log_prob), np.zeros((B, N), bool)
    )
    specs = OWN_TRAJECTORY.replace(condition=None)
    update = partial(
        improve_policy,
        optimizer=optimizer,
        model=model,
        schedule=make_schedule("ddim", S + 1),
        eta=1.0,
        cfg_scale=None,
        kl_target="old",
        ema_decay=0.9,
        num_inner_batch=2,
        grad_accum=1,
        clip_ratio=0.1,
        kl_weight=1.0,
        entropy_weight=0.0,
    )
    with jax.set_mesh(mesh):
        lowered = jax.jit(update).lower(
            state,
            shapes(trajectory, specs),
            shapes(np.zeros(B, np.float32), CRYSTALS),
            state.params,
            shapes(np.zeros(2, np.int32), P()),  # steps that are trained on
        )
        return lowered.compile().as_text()


def unexpected(found: list[Collective], params) -> list[Collective]:
    """All but sums of gradients and of scalars, and what fsdp does to parameters."""
    shapes = {x.shape for x in jax.tree.leaves(params)} | {()}
    return [c for c in found if c.kind != "all-reduce" or c.shape not in shapes]


def test_an_update_sends_one_gradient_and_scalars():
    found = collectives(compiled_update(fsdp=1))
    params = tiny.generator(width=32)[1]
    assert unexpected(found, params) == []
    gradient = sum(4 * x.size for x in jax.tree.leaves(params))
    # In one optimiser step, which is in a loop: once in the program.
    assert 0 <= sum(c.num_bytes for c in found) - gradient < 200


def test_fsdp_gathers_parameters_and_nothing_else():
    found = collectives(compiled_update(fsdp=2))
    params = tiny.generator(width=32)[1]
    whole = {x.shape for x in jax.tree.leaves(params)}
    gathered = [c for c in found if c.kind == "all-gather"]
    assert gathered and {c.shape for c in gathered} <= whole
    largest = max(c.num_bytes for c in found)
    assert largest <= max(4 * x.size for x in jax.tree.leaves(params))


def test_a_gather_of_latents_would_be_seen():
    """What sorting all crystals by size, on all devices together, comes to."""
    mesh = make_mesh(4)
    place = NamedSharding(mesh, P(None, *CRYSTALS))
    z = jax.ShapeDtypeStruct((S, B, N, L), np.float32, sharding=place)
    order = jax.ShapeDtypeStruct((B,), np.int32, sharding=NamedSharding(mesh, P()))
    sort = jax.jit(lambda z, order: z[:, order], out_shardings=place)
    found = collectives(sort.lower(z, order).compile().as_text())
    assert unexpected(found, tiny.generator(width=32)[1])


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (
            "  %x = (f32[], f32[4,8]{1,0}) all-reduce(%a, %b), channel_id=1",
            [Collective("all-reduce", (), 4), Collective("all-reduce", (4, 8), 128)],
        ),
        (
            "  ROOT %y = bf16[2,6]{1,0} all-gather-start(%a), dimensions={0}",
            [Collective("all-gather", (2, 6), 24)],
        ),
        ("  %z = f32[4]{0} add(%all-reduce, %b)", []),
    ],
)
def test_hlo_is_read(line, found):
    assert collectives(line) == found

"""What devices tell each other in a compiled update: gradients and scalars."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.communication import (
    Collective,
    collectives,
    compile_update,
    policy_shapes,
)
from chemeleon_jax.devices.sharding import CRYSTALS, make_mesh
from chemeleon_jax.models.dit import DiT

B, N, L, S = 8, 6, 4, 3
DIT = DiT(depth=1, width=32, heads=2, latent_channels=L)


def unexpected(found: list[Collective], params) -> list[Collective]:
    """All but sums of gradients and of scalars, and what fsdp does to parameters."""
    shapes = {x.shape for x in jax.tree.leaves(params)} | {()}
    return [c for c in found if c.kind != "all-reduce" or c.shape not in shapes]


def test_an_update_sends_one_gradient_and_scalars():
    found = collectives(compile_update(DIT, devices=4, num_atoms=N).as_text())
    params = policy_shapes(DIT, N)
    assert unexpected(found, params) == []
    gradient = sum(4 * x.size for x in jax.tree.leaves(params))
    # In one optimiser step, which is in a loop: once in the program.
    assert 0 <= sum(c.num_bytes for c in found) - gradient < 200


@pytest.mark.slow
def test_fsdp_gathers_parameters_and_nothing_else():
    found = collectives(compile_update(DIT, devices=4, fsdp=2, num_atoms=N).as_text())
    params = policy_shapes(DIT, N)
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
    assert unexpected(found, policy_shapes(DIT, N))


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

"""The programs of an iteration, lowered for a GPU: no card is needed for that."""

from functools import partial
from unittest import mock

import jax
import numpy as np
import pytest
import tiny

from benchmarks.lowered import host_calls, kernels, trace_iteration
from chemeleon_jax.data.dataset import load_dataset
from chemeleon_jax.models.dit import DiT
from chemeleon_jax.models.vae import make_vae
from chemeleon_jax.potentials import chgnet
from chemeleon_jax.potentials.graph import Capacity
from chemeleon_jax.potentials.loading import load_potential
from chemeleon_jax.rewards.features import mean_latent

DIT = DiT(depth=1, width=16, heads=2, latent_channels=8, learn_sigma=False)
SHAPES = {"crystals": 4, "max_atoms": 6, "steps": 5}


def lower(traced) -> str:
    return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.fixture(scope="module")
def programs():
    """Rollout and update, the latter donating its state: see below."""
    return trace_iteration(DIT, tiny.TRANSFORMER, **SHAPES)


@pytest.mark.parametrize("name", ["rollout", "update"])
def test_sampling_and_learning_never_call_the_host(programs, name):
    """A call of Python in every step would leave the device waiting for it."""
    text = lower(programs[name])
    assert text.count("stablehlo.dot_general") > 5
    assert host_calls(text) == []


def test_the_state_before_an_update_is_kept(programs):
    """A signal during the update saves it: donated, it would be gone."""
    marks = ("tf.aliasing_output", "jax.buffer_donor")
    text = lower(programs["update"])
    assert not any(mark in text for mark in marks)
    donating = trace_iteration(DIT, tiny.TRANSFORMER, **SHAPES, donate_argnums=0)
    assert any(mark in lower(donating["update"]) for mark in marks)


def test_energies_ask_the_host_for_graphs_and_nothing_else():
    """Once for each that is packed; what the device does with it lowers."""
    crystals = jax.tree.map(lambda x: x[:4], load_dataset("mp_mini").crystals)
    with mock.patch.object(jax, "default_backend", lambda: "gpu"):
        jaxpr = jax.make_jaxpr(load_potential("chgnet").energies)(crystals)
    assert str(jaxpr).count("pure_callback[") == 1
    graph = Capacity(crystals=4, atoms=32, edges=256, bonds=96, angles=256).empty()
    at = np.zeros((32, 3), np.float32), np.zeros((4, 3, 3), np.float32)
    text = lower(jax.jit(chgnet.graph_energy).trace(chgnet.load_params(), graph, *at))
    assert "stablehlo.scatter" in text and host_calls(text) == []


def test_features_lower():
    """What diversity needs of the device."""
    checkpoint = tiny.vae_checkpoint()
    latent = partial(mean_latent, make_vae(checkpoint.config["vae"]))
    text = lower(jax.jit(latent).trace(checkpoint.params["vae"], tiny.crystals()))
    assert "stablehlo.dot_general" in text and host_calls(text) == []


def test_kernels_are_counted():
    """A fusion is one; what only starts a loop is not looked at."""
    hlo = """
%fused (p: f32[2]) -> f32[2] {
  ROOT %r = f32[2]{0} reduce(%p), to_apply=%add
}

%body.1 (s: f32[2]) -> f32[2] {
  %a = f32[2]{0} fusion(%s), kind=kLoop, calls=%fused
  ROOT %b = f32[2]{0} copy(%a)
}

ENTRY %main (x: f32[2]) -> f32[2] {
  ROOT %w = f32[2]{0} while(%x), body=%body.1
}
"""
    assert kernels(hlo) == {"body.1": 2}

"""What the config of a model of others says is checked before it is believed."""

import pytest
import tiny

from chemeleon_jax.errors import UserError
from chemeleon_jax.interface import load, model
from chemeleon_jax.interface.request import Request
from chemeleon_jax.models.store import Checkpoint


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sampling": [3]}, "sampling"),
        ({"sampling": {"sampling_steps": "ten"}}, "sampling"),
        ({"sampling": {"eta": 5}}, "--eta=5"),
        ({"atom_counts": "abc"}, "atom_counts"),
        ({"atom_counts": [0.0, 0.0]}, "atom_counts"),
        ({"atom_counts": [0.5, float("nan")]}, "atom_counts"),
        ({"atom_counts": [-1.0, 2.0]}, "atom_counts"),
        ({"atom_counts": [0.0] * 20 + [1.0]}, "atom_counts"),  # all too large
    ],
)
def test_wrong_values_are_named(monkeypatch, changes, words):
    ldm, vae = tiny.ldm_checkpoint(), tiny.vae_checkpoint()
    config = ldm.config | {"vae": tiny.VAE} | changes
    both = Checkpoint(ldm.params | vae.params, config)
    monkeypatch.setattr(model, "load_checkpoint", lambda *_, **__: both)
    with pytest.raises(UserError, match=words):
        load("theirs").plan(Request(num_samples=2))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"seed": 2**32}, "--seed"),  # its key would be that of 0
        ({"num_samples": 2.5}, "whole number"),
        ({"num_atoms": [2.5]}, "whole number"),
        ({"num_atoms": []}, "names no count"),
    ],
)
def test_numbers_that_would_mean_another_request(asked, words):
    with pytest.raises(UserError, match=words):
        Request(**{"num_samples": 1} | asked)

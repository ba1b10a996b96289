"""The code of docs/python.md runs, with small models in the place of large ones."""

import re
from contextlib import nullcontext

import paths
import pytest
import tiny
from known_crystals import KNOWN

import chemeleon_jax
from chemeleon_jax import interface
from chemeleon_jax.interface import model
from chemeleon_jax.models.store import Checkpoint
from chemeleon_jax.screening import steps

PAGE = paths.ROOT / "docs" / "python.md"


@pytest.fixture
def small(monkeypatch, pool):
    """Few atoms, a quick potential, few known crystals, and no composition to ask."""
    vae, ldm = tiny.vae_of_valid_cells(), tiny.ldm_checkpoint()
    config = ldm.config | {"vae": tiny.VAE, "atom_counts": [0.0, 0.5, 0.0, 0.5]}
    both = Checkpoint(ldm.params | vae.params, config)
    monkeypatch.setattr(model, "load_checkpoint", lambda *_, **__: both)
    monkeypatch.setattr(model, "MAX_ATOMS", 4)
    for module in (interface.evaluation, interface.relaxation, steps):
        monkeypatch.setattr(module, "WorkerPool", lambda *_, **__: nullcontext(pool))
    sample, relax, evaluate = model.Model.sample, interface.relax, interface.evaluate
    screen = interface.screen

    def sample_few(self, num_samples, *, composition=None, **asked):
        assert composition == "LiMnO2"
        return sample(self, 4, sampling_steps=2, **asked)

    def relax_quickly(structures, potential):
        assert potential == "chgnet"
        return relax(structures, "ase:argon:lennard_jones", relax_steps=2)

    def evaluate_quickly(structures, reference=KNOWN, potential=None, relax=None):
        assert potential in ("chgnet", "none") and not relax
        return evaluate(structures, reference=list(reference), potential="none")

    monkeypatch.setattr(model.Model, "sample", sample_few)
    for place in (chemeleon_jax, interface):
        monkeypatch.setattr(place, "relax", relax_quickly, raising=False)

    def screen_quickly(structures, potential, **asked):
        assert potential == "chgnet" and asked["stability_with"] == "none"
        quick = {"potential": "ase:argon:lennard_jones", "max_force": 1e9}
        return screen(structures, reference=KNOWN, **asked | quick)

    monkeypatch.setattr(interface, "evaluate", evaluate_quickly)
    monkeypatch.setattr(interface, "screen", screen_quickly)


def test_the_page_runs(small):
    names = {}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.S | re.M)
    for block in blocks:
        # Scores and columns that only a potential gives are left out.
        block = block.replace(', "metastable"', "").replace('"e_above_hull", ', "")
        exec(block, names)
    assert len(names["crystals"].table) == len(names["found"].table) == 4
    assert len(names["best"].all) == 4 and "funnel" in names["best"].summary
    assert len(names["mine"]) == len(names["valid"]) >= 2
    assert names["found"].structures[0].composition == (
        names["relaxed"].structures[0].composition
    )

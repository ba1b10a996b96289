from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from chemeleon_jax.devices.sharding import make_mesh
from chemeleon_jax.models.condition import make_condition_encoder, preprocess
from chemeleon_jax.models.diffusion import make_schedule
from chemeleon_jax.models.guidance import allowed_elements, elements_log_prob
from chemeleon_jax.rl.bulk import compile_sampling, group_prompts, sample_in_bulk
from chemeleon_jax.rl.sampler import make_sampler

SPECS = [
    {"name": "formula", "kind": "composition"},
    {"name": "system", "kind": "chemical_system"},
    {"name": "gap", "kind": "float", "mean": 0.0, "std": 1.0},
]
NA, CL = 11, 17


def vectors(formulas=(), systems=()):
    """Conditions of crystals, NaN where it says None."""
    asked = {"formula": formulas, "system": systems}
    made = {"gap": np.full((max(map(len, asked.values())), 1), np.nan)}
    for spec in SPECS[:2]:
        rows = [
            preprocess(spec, [v])[0] if v else np.full(100, np.nan)
            for v in asked[spec["name"]]
        ]
        made[spec["name"]] = np.stack(rows)
    return made


def places(allowed):
    """Atomic numbers of each place."""
    return [np.flatnonzero(place).tolist() for place in np.asarray(allowed)]


def test_places_by_hand():
    mask = jnp.array([[1, 1, 1, 0]] * 4, bool)
    asked = vectors(
        ["NaCl2", "NaCl2", None, None], ["Na-Cl", None, "Na-Cl", None]
    )  # 3 atoms each, and one of padding
    formula, alone, system, nothing = allowed_elements(SPECS, asked, mask)
    anything = list(range(100))
    assert places(formula) == [[NA], [CL], [CL], anything]
    assert places(alone) == places(formula)
    assert places(system) == [[NA], [CL], [NA, CL], anything]
    assert places(nothing) == [anything] * 4


def test_a_formula_that_does_not_fit_the_atoms_is_rounded():
    mask = jnp.array([[1, 1, 1, 1]], bool)
    [allowed] = allowed_elements(SPECS, vectors(["NaCl2"], [None]), mask)
    assert places(allowed) == [[NA], [CL], [CL], [CL]]  # of 1.3 and 2.7


def test_log_prob_is_that_of_the_best_way_to_share_places_out():
    logits = jax.random.normal(jax.random.key(0), (1, 6, 100)) * 3
    mask = jnp.arange(6)[None] < 4
    asked = vectors(["Na2ClF"], [None])
    allowed = allowed_elements(SPECS, asked, mask)
    log_p = np.asarray(jax.nn.log_softmax(logits))[0]
    elements = (NA, NA, CL, 9)
    best = max(
        sum(log_p[i, z] for i, z in enumerate(order))
        for order in permutations(elements)
    )
    log_prob = jax.jit(elements_log_prob)
    [found] = log_prob(logits, allowed, mask)
    np.testing.assert_allclose(found, best, rtol=1e-5)
    [shuffled] = log_prob(logits[:, jnp.array([2, 0, 3, 1, 4, 5])], allowed, mask)
    np.testing.assert_allclose(shuffled, found, rtol=1e-5)
    [narrow] = log_prob(logits[:, :4], allowed[:, :4], mask[:, :4])
    np.testing.assert_allclose(narrow, found, rtol=1e-5)


def test_of_a_system_any_share_will_do_but_every_element_must_be_there():
    mask = jnp.ones((1, 3), bool)
    allowed = allowed_elements(SPECS, vectors([None], ["Na-Cl"]), mask)

    def log_prob(*elements):
        logits = 50.0 * jax.nn.one_hot(jnp.array([elements]), 100)
        return float(elements_log_prob(logits, allowed, mask)[0])

    for fitting in ((NA, NA, CL), (CL, NA, CL)):
        assert log_prob(*fitting) == pytest.approx(0.0, abs=1e-6)
    # The third atom's place is Na's or Cl's, whichever.
    assert log_prob(NA, CL, 9) == pytest.approx(np.log(2) - 50, abs=1e-4)
    assert log_prob(NA, NA, NA) == pytest.approx(-50, abs=1e-4)


def test_latents_that_are_not_finite_end():
    logits = jnp.full((2, 4, 100), jnp.nan).at[1].set(0.0)
    mask = jnp.ones((2, 4), bool)
    allowed = allowed_elements(SPECS, vectors(["NaCl"] * 2, [None] * 2), mask)
    broken, sound = jax.jit(elements_log_prob)(logits, allowed, mask)
    assert np.isnan(broken)
    np.testing.assert_allclose(sound, -4 * np.log(100), rtol=1e-6)


def conditional(learn_sigma=False):
    """A tiny generator that takes `SPECS`."""
    model, policy = tiny.generator(learn_sigma)
    encoder = make_condition_encoder({"specs": SPECS, "width": 16})
    asked = jax.tree.map(jnp.asarray, vectors(["NaCl"], ["Na-Cl"]))
    params = tiny.random_params(encoder, asked, jnp.ones(1, bool))
    frozen = model.frozen | {"condition": params}
    return model.replace(condition=encoder, frozen=frozen), policy


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_predicted_clean_latents_move_along_the_gradient(learn_sigma):
    model, policy = conditional(learn_sigma)
    mask = tiny.crystals((2, 4)).mask
    asked = vectors(["NaCl", None], ["Na-Cl", None])
    z = jax.random.normal(jax.random.key(1), (2, 6, 4)) * mask[..., None]
    t, scale = 400, 0.5

    @jax.jit
    def clean_and_rest(decoder_scale):
        denoise = model.denoiser(policy, mask, asked, None, decoder_scale)
        out = denoise(z, jnp.array([t]))
        every_step = make_schedule("ddpm", 1000)
        return every_step.predict_clean(z, out[:, :6], jnp.array([t])), out[:, 6:]

    @jax.jit
    def gradient(z_clean):
        allowed = allowed_elements(SPECS, asked, mask)

        def log_prob(z):
            logits = model.decode_heads(z, mask).atom_logits
            return elements_log_prob(logits, allowed, mask).sum()

        return jax.grad(log_prob)(z_clean)

    before, values = clean_and_rest(0.0)
    after, still_values = clean_and_rest(scale)
    noise_variance = 1 - np.prod(1 - np.linspace(1e-4, 2e-2, 1000)[: t + 1])
    expected = scale * noise_variance * gradient(before)
    np.testing.assert_allclose(after - before, expected, atol=2e-4)
    assert np.abs(expected[0, :2]).max() > 0.01
    assert not np.asarray(expected[0, 2:]).any()  # padding
    np.testing.assert_allclose(after[1], before[1], atol=1e-5)  # asked for nothing
    np.testing.assert_array_equal(values, still_values)


def test_neither_batches_nor_devices_change_a_guided_crystal():
    model, policy = conditional()
    asked = vectors(["NaCl2"], ["Na-Cl"])
    asked = {name: np.repeat(x, 5, 0) for name, x in asked.items()}
    prompts = group_prompts(jax.random.key(0), np.array([3, 6, 3, 6, 3]), asked)
    sampler = make_sampler(model, sampling_steps=4, cfg_scale=2.0, decoder_guidance=6.0)
    one, four = (
        sample_in_bulk(
            policy,
            prompts,
            sample=compile_sampling(sampler, make_mesh(devices)),
            batch_size=batch_size,
        )
        for devices, batch_size in ((1, 2), (4, 4))
    )
    np.testing.assert_array_equal(one.atom_types, four.atom_types)
    np.testing.assert_allclose(one.frac_coords, four.frac_coords, atol=1e-4)

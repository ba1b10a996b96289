import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from chemeleon_jax.models.condition import (
    condition_vectors,
    drop_conditions,
    input_width,
    make_condition_encoder,
    preprocess,
    with_more_conditions,
)
from chemeleon_jax.models.dit import SIZES, DiT, dit_size
from chemeleon_jax.models.layers import index_embedding, timestep_embedding
from chemeleon_jax.models.predictor import make_predictor
from chemeleon_jax.models.vae import (
    ERRORS,
    Decoded,
    Posterior,
    make_vae,
    to_crystals,
    vae_loss,
)


def test_index_embedding_by_hand():
    # width 4: angles i pi and i pi / 2048**0.5 = i pi / 45.2548
    embedded = index_embedding(jnp.array([0, 1]), 4)
    np.testing.assert_allclose(embedded[0], [0, 0, 1, 1], atol=1e-6)
    expected = [0.0, np.sin(np.pi / 2048**0.5), -1.0, np.cos(np.pi / 2048**0.5)]
    np.testing.assert_allclose(embedded[1], expected, atol=1e-6)


def test_timestep_embedding_is_cosine_first():
    embedded = timestep_embedding(jnp.array([0, 10]), 4)  # frequencies 1 and 0.01
    np.testing.assert_allclose(embedded[0], [1, 1, 0, 0], atol=1e-6)
    expected = [np.cos(10), np.cos(0.1), np.sin(10), np.sin(0.1)]
    np.testing.assert_allclose(embedded[1], expected, atol=1e-5)


def test_named_sizes():
    assert dit_size("B") == {"depth": 12, "width": 768, "heads": 12}
    assert set(SIZES) >= {"S", "B", "L", "XL"}


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_padding_does_not_change_epsilon(learn_sigma):
    params = tiny.ldm_checkpoint(learn_sigma).params["dit"]
    dit = DiT(**tiny.DIT, learn_sigma=learn_sigma)
    z = jax.random.normal(jax.random.key(0), (1, 9, 4))
    t = jnp.array([17])
    apply = jax.jit(dit.apply)
    short, long = (
        apply({"params": params}, z[:, :n], t, jnp.arange(n)[None] < 3) for n in (5, 9)
    )
    np.testing.assert_allclose(short[:, :3], long[:, :3], atol=1e-6)
    assert not short[:, 3:5].any()


def test_learned_sigma_reshapes_instead_of_splitting():
    """Epsilon of atom 1 is the second half of token 0's output, not token 1's."""
    dit = DiT(**tiny.DIT, learn_sigma=True)
    params = tiny.ldm_checkpoint(True).params["dit"]
    params = jax.tree.map(jnp.zeros_like, params)
    bias = jnp.arange(8.0)
    params["final"]["bias"] = bias
    mask = jnp.ones((1, 2), bool)
    z, t = jnp.zeros((1, 2, 4)), jnp.zeros(1)
    out = jax.jit(dit.apply)({"params": params}, z, t, mask)
    np.testing.assert_array_equal(out[0, 0], bias[:4])
    np.testing.assert_array_equal(out[0, 1], bias[4:])


def test_vae_ignores_padding_and_neighbours():
    vae, params = make_vae(tiny.VAE), tiny.vae_checkpoint().params["vae"]

    @jax.jit
    def encode(crystals):
        return vae.apply({"params": params}, crystals, method="encode")[1].mean

    both, alone = tiny.crystals((2, 5), 6), tiny.crystals((2, 5), 9)
    np.testing.assert_allclose(encode(both)[1, :5], encode(alone)[1, :5], atol=1e-6)


def test_to_crystals_undoes_the_scaling_of_the_cell():
    mask = jnp.ones((1, 8), bool)
    logits = jnp.zeros((1, 8, 100)).at[:, :, 26].set(1.0).at[:, 7, :].set(0.0)
    decoded = Decoded(
        logits, jnp.zeros((1, 8, 3)), jnp.full((1, 3), 2.0), jnp.full((1, 3), np.pi / 2)
    )
    crystals = to_crystals(decoded, mask)
    np.testing.assert_allclose(crystals.lengths, 4.0, rtol=1e-6)  # 2 * 8**(1/3)
    np.testing.assert_allclose(crystals.angles, 90.0, rtol=1e-6)
    # argmax 0 is the masked type, which stands for hydrogen
    np.testing.assert_array_equal(crystals.atom_types[0], [26] * 7 + [1])


def test_vae_loss_by_hand():
    crystals = tiny.crystals((1,), 1)
    crystals = crystals.replace(
        lengths=jnp.full((1, 3), 4.0), angles=jnp.full((1, 3), 90.0)
    )
    decoded = Decoded(
        jnp.zeros((1, 1, 100)),  # uniform: cross-entropy ln 100
        crystals.frac_coords + 0.1,
        jnp.full((1, 3), 4.5),
        jnp.full((1, 3), np.pi / 2 + 0.2),
    )
    posterior = Posterior(jnp.full((1, 1, 4), 2.0), jnp.zeros((1, 1, 4)))
    total, terms = vae_loss(decoded, posterior, crystals)
    np.testing.assert_allclose(terms["atom_types"], np.log(100), rtol=1e-6)
    np.testing.assert_allclose(terms["frac_coords"], 0.01, rtol=1e-5)
    np.testing.assert_allclose(terms["lengths"], 0.25, rtol=1e-6)
    np.testing.assert_allclose(terms["angles"], 0.04, rtol=1e-5)
    np.testing.assert_allclose(terms["kl"], 8.0)  # 4 channels of 0.5 * 2**2
    expected = np.log(100) + 0.25 + 10 * 0.04 + 10 * 0.01 + 1e-5 * 8
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    _, terms = vae_loss(decoded, posterior, crystals, error=ERRORS["absolute"])
    np.testing.assert_allclose(terms["frac_coords"], 0.1, rtol=1e-5)
    np.testing.assert_allclose(terms["lengths"], 0.5, rtol=1e-6)
    np.testing.assert_allclose(terms["angles"], 0.2, rtol=1e-5)


SPECS = [
    {"name": "gap", "kind": "float", "mean": 1.0, "std": 2.0},
    {"name": "formula", "kind": "composition"},
    {"name": "system", "kind": "chemical_system"},
    {"name": "class", "kind": "categorical", "num_classes": 3},
    {"name": "group", "kind": "space_group"},
    {"name": "symmetry", "kind": "crystal_system"},
]


def test_preprocessed_conditions():
    assert preprocess(SPECS[0], [5.0])[0, 0] == 2.0
    formula = preprocess(SPECS[1], ["Li2Mn2O4"])[0]  # reduces to LiMnO2
    assert formula[3] == formula[25] == 0.25 and formula[8] == 0.5
    system = preprocess(SPECS[2], ["Li-O"])[0]
    assert system.sum() == 2 and system[3] == system[8] == 1
    np.testing.assert_array_equal(preprocess(SPECS[3], [1]), [[0, 1, 0]])
    groups = preprocess(SPECS[4], ["Fm-3m", 225, "225", "P1", 230])
    assert groups.sum(1).tolist() == [1] * 5
    assert groups.argmax(1).tolist() == [224, 224, 224, 0, 229]
    systems = preprocess(SPECS[5], ["triclinic", "cubic"])
    assert systems.argmax(1).tolist() == [0, 6]


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        *[(1, "Xx2"), (2, "Li-Qq"), (3, 7), (3, -1), (0, "abc")],
        *[(4, "Fm3mm"), (4, 0), (4, 231), (5, "round")],
    ],
)
def test_unreadable_condition_is_named(spec, value):
    with pytest.raises(ValueError, match=f"{SPECS[spec]['name']}.*{value}"):
        preprocess(SPECS[spec], [value])


def test_conditions_of_crystals_agree_with_those_of_their_formulas():
    crystals = tiny.crystals((2,)).replace(
        atom_types=jnp.array([[11, 17, 0, 0, 0, 0]])  # NaCl
    )
    labels = {"gap": jnp.array([5.0]), "class": jnp.array([1.0])}
    labels |= {"group": jnp.array([224.0]), "symmetry": jnp.array([6.0])}
    vectors, known = condition_vectors(SPECS, crystals, labels)
    assert known.all()
    values = {"gap": [5.0], "formula": ["NaCl"], "system": ["Na-Cl"], "class": [1]}
    values |= {"group": ["Fm-3m"], "symmetry": ["cubic"]}
    for spec in SPECS:
        name = spec["name"]
        np.testing.assert_allclose(vectors[name], preprocess(spec, values[name]))
    _, known = condition_vectors(SPECS, crystals, labels | {"gap": jnp.array([np.nan])})
    assert not known.any()


@pytest.mark.parametrize("order", [[0, 5, 3], [3, 0, 5]])
def test_an_encoder_takes_more_conditions_which_say_nothing_yet(order):
    specs = [SPECS[0], SPECS[3]], [SPECS[i] for i in order]
    few, more = (make_condition_encoder({"specs": s, "width": 8}) for s in specs)
    vectors = {s["name"]: jnp.ones((2, input_width(s))) for s in SPECS}
    keep = jnp.array([True, False])
    known, wanted = (tiny.random_params(e, vectors, keep) for e in (few, more))
    names = ([spec["name"] for spec in some] for some in specs)
    params = {**wanted, **with_more_conditions(known, *names)}
    np.testing.assert_allclose(
        more.apply({"params": params}, vectors, keep),
        few.apply({"params": known}, vectors, keep),
        rtol=1e-5,
    )


def test_dropped_conditions_all_look_alike():
    encoder = make_condition_encoder({"specs": SPECS[:1], "width": 8})
    vectors = {"gap": jnp.array([[1.0], [2.0]])}
    params = tiny.random_params(encoder, vectors, jnp.array([True, True]))
    variables = {"params": params}
    kept = encoder.apply(variables, vectors, jnp.array([True, True]))
    dropped = encoder.apply(variables, vectors, jnp.array([False, False]))
    assert not np.allclose(kept[0], kept[1])
    np.testing.assert_array_equal(dropped[0], dropped[1])


def test_predictor_denormalises():
    predictor = make_predictor({"targets": ["gap"], "mean": [2.0], "std": [3.0]})
    y = predictor.denormalise(jnp.array([[1.0]]))
    np.testing.assert_allclose(y, [[5.00001]], rtol=1e-6)


def test_a_condition_not_asked_for_is_the_null_vector_alone():
    encoder = make_condition_encoder({"specs": SPECS[:2], "width": 8})
    vectors = {s["name"]: jnp.ones((2, input_width(s))) for s in SPECS[:2]}
    keep = jnp.ones(2, bool)
    params = tiny.random_params(encoder, vectors, keep)
    first, second = vectors
    null = jnp.broadcast_to(params[f"{first}_null"], vectors[first].shape)
    encode = jax.jit(lambda v, k: encoder.apply({"params": params}, v, k))
    left_out = encode(vectors | {first: jnp.full_like(null, jnp.nan)}, keep)
    np.testing.assert_allclose(left_out, encode(vectors | {first: null}, keep))
    nothing = {name: jnp.full_like(v, jnp.nan) for name, v in vectors.items()}
    np.testing.assert_allclose(encode(nothing, keep), encode(vectors, ~keep))
    assert not np.allclose(left_out, encode(vectors, keep), atol=1e-3)


def test_conditions_are_dropped_each_for_itself():
    vectors = {name: jnp.ones((4000, 3)) for name in "abc"}
    dropped = drop_conditions(jax.random.key(0), vectors, 0.25)
    gone = np.stack([np.isnan(v).any(-1) for v in dropped.values()])
    np.testing.assert_allclose(gone.mean(1), 0.25, atol=0.03)
    np.testing.assert_allclose((gone[0] & gone[1]).mean(), 0.0625, atol=0.02)
    one = {"a": vectors["a"]}
    assert drop_conditions(jax.random.key(0), one, 0.25) is one


def test_guidance_at_scale_one_is_the_conditional_model():
    model, policy = tiny.generator()
    encoder = make_condition_encoder({"specs": SPECS[:1], "width": 16})
    vectors = {"gap": jnp.array([[1.0], [2.0]])}
    params = tiny.random_params(encoder, vectors, jnp.array([True, True]))
    frozen = model.frozen | {"condition": params}
    model = model.replace(condition=encoder, frozen=frozen)
    mask = tiny.crystals().mask
    z, t = jax.random.normal(jax.random.key(0), (2, 6, 4)), jnp.array([5])

    @jax.jit
    def denoise(scale):
        return model.denoiser(policy, mask, vectors, scale)(z, t)

    plain = jax.jit(model.denoiser(policy, mask, vectors))(z, t)
    np.testing.assert_allclose(plain, denoise(1.0), atol=1e-6)
    unconditional = denoise(0.0)
    assert not np.allclose(plain, unconditional, atol=1e-3)

"""Checkpoints of Chemeleon2's layout in any size, with random weights."""

import numpy as np
from torch_files import Instance, write

RNG = np.random.default_rng(0)


def linear(name, out, into, bias=True):
    """Tensors of a torch Linear."""
    tensors = {f"{name}.weight": (out, into)}
    return tensors | ({f"{name}.bias": (out,)} if bias else {})


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def attention(name, width):
    return {
        f"{name}.in_proj_weight": (3 * width, width),
        f"{name}.in_proj_bias": (3 * width,),
        **linear(f"{name}.out_proj", width, width),
    }


def transformer(name, width, mlp, layers):
    shapes = {}
    for i in range(layers):
        layer = f"{name}.layers.{i}"
        shapes |= attention(f"{layer}.self_attn", width)
        shapes |= linear(f"{layer}.linear1", mlp, width)
        shapes |= linear(f"{layer}.linear2", width, mlp)
        shapes |= norm(f"{layer}.norm1", width) | norm(f"{layer}.norm2", width)
    return shapes | norm(f"{name}.norm", width)


def vae_shapes(width, decoder_width, mlp, layers, latent):
    return {
        "encoder.atom_type_embedder.weight": (100, width),
        **linear("encoder.lattices_embedder.0", width, 9, bias=False),
        **linear("encoder.lattices_embedder.2", width, width),
        **linear("encoder.frac_coords_embedder.0", width, 3, bias=False),
        **linear("encoder.frac_coords_embedder.2", width, width),
        **transformer("encoder.transformer", width, mlp, layers),
        **transformer("decoder.transformer", decoder_width, mlp, layers),
        **linear("decoder.atom_types_head", 100, decoder_width),
        **linear("decoder.frac_coords_head", 3, decoder_width, bias=False),
        **linear("decoder.lattice_head", 6, decoder_width, bias=False),
        **linear("quant_conv", 2 * latent, width, bias=False),
        **linear("post_quant_conv", decoder_width, latent, bias=False),
    }


def dit_shapes(width, depth, latent, ratio=4, outputs=2):
    shapes = linear("x_embedder", width, latent)
    shapes |= linear("t_embedder.mlp.0", width, 256)
    shapes |= linear("t_embedder.mlp.2", width, width)
    for i in range(depth):
        block = f"blocks.{i}"
        shapes |= attention(f"{block}.attn", width)
        shapes |= linear(f"{block}.mlp.fc1", ratio * width, width)
        shapes |= linear(f"{block}.mlp.fc2", width, ratio * width)
        shapes |= linear(f"{block}.adaLN_modulation.1", 6 * width, width)
    shapes |= linear("final_layer.linear", outputs * latent, width)
    return shapes | linear("final_layer.adaLN_modulation.1", 2 * width, width)


def random(shapes, prefix=""):
    """Random float32 tensors of given shapes."""
    return {
        prefix + name: RNG.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def module(name, modules=None, **attributes):
    """A pickled torch module."""
    state = {"_modules": modules or {}, **attributes}
    return Instance(name, (), state)


def numbered(modules):
    return module(
        "torch.nn.modules.container.ModuleList",
        {str(i): m for i, m in enumerate(modules)},
    )


def heads_of(count):
    return module("torch.nn.modules.activation.MultiheadAttention", num_heads=count)


def vae_modules(heads, layers, activation="tanh"):
    """Pickled encoder and decoder."""
    epsilon = module("torch.nn.modules.normalization.LayerNorm", eps=1e-5)
    layer = module(
        "torch.nn.modules.transformer.TransformerEncoderLayer",
        {
            "self_attn": heads_of(heads),
            "activation": module(
                "torch.nn.modules.activation.GELU", approximate=activation
            ),
            "norm1": epsilon,
            "norm2": epsilon,
        },
        norm_first=True,
    )
    stack = module(
        "torch.nn.modules.transformer.TransformerEncoder",
        {"layers": numbered([layer] * layers)},
    )
    return {
        part: module(
            f"src.vae_module.{part}s.transformer.Transformer{part.title()}",
            {"transformer": stack},
        )
        for part in ("encoder", "decoder")
    }


def omega(value):
    """A value as OmegaConf pickles it."""
    if isinstance(value, dict):
        content = {k: omega(v) for k, v in value.items()}
        return Instance("omegaconf.dictconfig.DictConfig", (), {"_content": content})
    return Instance("omegaconf.nodes.AnyNode", (), {"_val": value})


def write_vae(path, state, heads=3, layers=1, **options):
    """A Lightning file of a VAE."""
    hyper = {**vae_modules(heads, layers, **options), "latent_dim": 4}
    return write(path, {"state_dict": state, "hyper_parameters": hyper})


def denoiser(heads, depth):
    block = module("src.ldm_module.denoisers.dit.DiTBlock", {"attn": heads_of(heads)})
    return module(
        "src.ldm_module.denoisers.dit.DiT",
        {"blocks": numbered([block] * depth)},
        num_heads=heads,
    )


def write_ldm(path, state, heads=5, depth=1, rl=False, diffusion=None, **extra):
    """A Lightning file of an LDM; RL pickles its hyper-parameters as another class."""
    hyper = {
        "denoiser": denoiser(heads, depth),
        "diffusion_configs": omega({"diffusion_steps": 1000} | (diffusion or {})),
        "condition_module": None,
        "vae_ckpt_path": "/somewhere/else/vae.ckpt",
    }
    if rl:
        hyper = Instance("lightning.fabric.utilities.data.AttributeDict", pairs=hyper)
    state = {"latent_std": np.float32([0.5]).reshape(()), **state}
    return write(path, {"state_dict": state, "hyper_parameters": hyper, **extra})

"""One table from PyTorch module names to this project's parameter paths, per model.

A row says: the tensors of that PyTorch module become the parameters of that Flax
module, by a rule. `{i}` stands for a number and `{name}` for a condition's name. What
is converted is a weight or anything of a weight's shape, such as its gradient.
"""

import re
from collections.abc import Iterable

import numpy as np

from convert_checkpoints.records import CheckpointError

# Rules: PyTorch tensor of the module -> parameter of the Flax module.
# A trailing T transposes; "q,k,v" splits the leading axis in three.
LINEAR = {"weight": "kernel T", "bias": "bias"}
NORM = {"weight": "scale", "bias": "bias"}
EMBEDDING = {"weight": "embedding"}
ATTENTION = {
    "in_proj_weight": "query,key,value/kernel T",
    "in_proj_bias": "query,key,value/bias",
    "out_proj.weight": "out/kernel T",
    "out_proj.bias": "out/bias",
}


def _transformer(source: str, target: str) -> dict[str, tuple[str, dict]]:
    layer = f"{source}.layers.{{i}}"
    return {
        f"{layer}.self_attn": (f"{target}/attention_{{i}}", ATTENTION),
        f"{layer}.linear1": (f"{target}/mlp_{{i}}/in", LINEAR),
        f"{layer}.linear2": (f"{target}/mlp_{{i}}/out", LINEAR),
        f"{layer}.norm1": (f"{target}/norm1_{{i}}", NORM),
        f"{layer}.norm2": (f"{target}/norm2_{{i}}", NORM),
        f"{source}.norm": (f"{target}/norm", NORM),
    }


VAE = {
    "encoder.atom_type_embedder": ("encode_atoms/atom_type", EMBEDDING),
    "encoder.lattices_embedder.0": ("encode_atoms/lattice/in", LINEAR),
    "encoder.lattices_embedder.2": ("encode_atoms/lattice/out", LINEAR),
    "encoder.frac_coords_embedder.0": ("encode_atoms/frac_coords/in", LINEAR),
    "encoder.frac_coords_embedder.2": ("encode_atoms/frac_coords/out", LINEAR),
    **_transformer("encoder.transformer", "encode_atoms/transformer"),
    "quant_conv": ("moments", LINEAR),
    "post_quant_conv": ("decode_atoms/latent", LINEAR),
    **_transformer("decoder.transformer", "decode_atoms/transformer"),
    "decoder.atom_types_head": ("decode_atoms/atom_types_head", LINEAR),
    "decoder.frac_coords_head": ("decode_atoms/frac_coords_head", LINEAR),
    "decoder.lattice_head": ("decode_atoms/lattice_head", LINEAR),
}

DIT = {
    "x_embedder": ("latent", LINEAR),
    "t_embedder.mlp.0": ("timestep/in", LINEAR),
    "t_embedder.mlp.2": ("timestep/out", LINEAR),
    "blocks.{i}.adaLN_modulation.1": ("block_{i}/modulation", LINEAR),
    "blocks.{i}.attn": ("block_{i}/attention", ATTENTION),
    "blocks.{i}.mlp.fc1": ("block_{i}/mlp/in", LINEAR),
    "blocks.{i}.mlp.fc2": ("block_{i}/mlp/out", LINEAR),
    "final_layer.adaLN_modulation.1": ("final_modulation", LINEAR),
    "final_layer.linear": ("final", LINEAR),
}

CONDITION = {
    "encoders.{name}": ("{name}_null", {"null_embed": ""}),
    "encoders.{name}.embedding.0": ("{name}/in", LINEAR),
    "encoders.{name}.embedding.2": ("{name}/out", LINEAR),
    "proj.0": ("joint/in", LINEAR),
    "proj.2": ("joint/out", LINEAR),
}

PREDICTOR = {
    "0": ("hidden_0", LINEAR),
    "1": ("norm_0", NORM),
    "4": ("hidden_1", LINEAR),
    "5": ("norm_1", NORM),
    "8": ("out", LINEAR),
}

# Source prefix -> subtree of the parameters, and its table.
PARTS = {
    "vae": {"": ("vae", VAE)},
    "ldm": {
        "denoiser.": ("dit", DIT),
        "condition_module.": ("condition", CONDITION),
        "vae.": ("vae", VAE),
    },
    "predictor": {"proj.": ("predictor", PREDICTOR), "vae.": ("vae", VAE)},
}

Flat = dict[str, np.ndarray]


def convert_tensor(table: dict, name: str, array: np.ndarray) -> Flat:
    """One PyTorch tensor as parameters, {path: array}; empty if the table lacks it."""
    for source, (target, rules) in table.items():
        pattern = re.escape(source).replace(r"\{i\}", r"(?P<i>\d{1,4})")
        pattern = pattern.replace(r"\{name\}", r"(?P<name>\w+)")
        match = re.fullmatch(pattern + r"\.(?P<rest>.+)", name, re.ASCII)
        if match and match["rest"] in rules:
            target = target.format_map(match.groupdict())
            return _apply(rules[match["rest"]], target, array)
    return {}


def _apply(rule: str, target: str, array: np.ndarray) -> Flat:
    path, _, transpose = rule.partition(" ")
    heads, slash, leaf = path.partition("/")
    names = heads.split(",")
    if len(array) % len(names) or (transpose and array.ndim != 2):
        raise CheckpointError(f"{target}: a tensor of shape {array.shape} does not fit")
    parts = np.split(array, len(names)) if len(names) > 1 else [array]
    return {
        f"{target}/{name}{slash}{leaf}".rstrip("/"): part.T if transpose else part
        for name, part in zip(names, parts, strict=True)
    }


def convert_tensors(kind: str, tensors: Flat) -> tuple[Flat, list[str]]:
    """All tensors {PyTorch name: array} of a checkpoint as parameters.

    Returns:
      {path: array}, and the names that no row of the table takes.
    """
    params: Flat = {}
    unknown = []
    for name, array in tensors.items():
        part, converted = "", {}
        for prefix, (part_name, table) in PARTS[kind].items():
            if name.startswith(prefix):
                part = part_name
                converted = convert_tensor(table, name.removeprefix(prefix), array)
                break
        if not converted:
            unknown.append(name)
        for path, value in converted.items():
            if f"{part}/{path}" in params:
                raise CheckpointError(f"{name}: a second source for {part}/{path}")
            params[f"{part}/{path}"] = value
    return params, unknown


def check_complete(
    params: Flat, targets: dict[str, tuple[int, ...]], unknown: Iterable[str]
) -> None:
    """Every source used, every target filled, every shape right; or name what is not.

    Targets {path: shape} are those of the model that the config describes; unknown are
    the source tensors that were not converted.

    Raises:
      CheckpointError: with all the names.
    """
    wrong = [
        f"{path} has shape {params[path].shape}, not {shape}"
        for path, shape in targets.items()
        if path in params and params[path].shape != tuple(shape)
    ]
    problems = {
        "source tensors that no target takes": sorted(unknown),
        "parameters that no source tensor fills": sorted(set(targets) - set(params)),
        "parameters that the model does not have": sorted(set(params) - set(targets)),
        "shapes that do not fit": wrong,
    }
    lines = [f"{what}: {', '.join(names)}" for what, names in problems.items() if names]
    if lines:
        raise CheckpointError("; ".join(lines)[:4000])

"""How the two chemeleon_jax/assets/sevennet-*.safetensors were made.

    pip download --no-deps -d packages sevenn==0.13.0
    python -m tools.build_sevennet sevennet-0 packages sevennet-0.safetensors

Source: the `sevenn` 0.13.0 wheel, MIT licence (Park et al., J. Chem. Theory Comput. 20,
4857, 2024). Nothing of it is run. Factors of normalisation are folded into the weights,
and layers that follow each other without an activation are multiplied out.
"""

import argparse
import json
import math
import tempfile
import zipfile
from pathlib import Path

import e3nn_jax as e3nn
import numpy as np
from flax.traverse_util import flatten_dict

from chemeleon_jax.potentials.equivariant import Architecture, message_paths
from convert_checkpoints.unpickle import read_checkpoint
from tools.build_chgnet import save_weights

WHEEL = "sevenn-0.13.0-py3-none-any.whl"
FOLDER = "sevenn/pretrained_potentials/"
CHECKPOINTS = {
    "sevennet-0": FOLDER + "SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth",
    "sevennet-l3i5": FOLDER + "SevenNet_l3i5/checkpoint_l3i5.pth",
}
CHANNELS = {"sevennet-0": (128, 64, 32), "sevennet-l3i5": (128, 64, 32, 32)}
NUM_LAYERS, RADIAL_LAYERS = 5, 3
SILU = 1.6791767923989418  # 1 / root mean square of silu(x), x normal


def architecture(name: str, config: dict) -> Architecture:
    """What `config` of the checkpoint says, checked for what is taken for granted."""
    expected = {
        "self_connection_type": "linear",
        "is_parity": False,
        "use_bias_in_linear": False,
        "readout_as_fcn": False,
        "lmax": len(CHANNELS[name]) - 1,
        "num_convolution_layer": NUM_LAYERS,
    }
    for key, value in expected.items():
        if config[key] != value:
            raise ValueError(f"{name}: {key} is {config[key]}, not {value}")
    envelope = config["cutoff_function"]
    polynomial = envelope["cutoff_function_name"] == "poly_cut"
    species = {index: z for z, index in config["_type_map"].items()}
    return Architecture(
        elements=tuple(species[i] for i in range(len(species))),
        channels=CHANNELS[name],
        cutoff=float(config["cutoff"]),
        envelope="polynomial" if polynomial else "xplor",
        envelope_at=float(envelope["poly_cut_p_value" if polynomial else "cutoff_on"]),
        has_parity=False,
    )


def split_linear(weight, inputs, outputs) -> dict[str, np.ndarray]:
    """Flat weights of an equivariant linear layer -> a kernel for each degree."""
    kernels, start = {}, 0
    for degree, shape in enumerate(zip(inputs, outputs, strict=False)):
        size = math.prod(shape)
        kernel = weight[start : start + size].reshape(shape)
        kernels[str(degree)] = kernel / math.sqrt(shape[0])
        start += size
    if start != len(weight):
        raise ValueError(f"{len(weight)} weights, not {start}")
    return kernels


def radial(state, prefix, paths, channels) -> dict[str, np.ndarray]:
    """Kernels of a radial MLP, the columns of the last in the order of `paths`."""
    kernels = [state[f"{prefix}layer{i}.weight"] for i in range(RADIAL_LAYERS)]
    kernels = [
        k / math.sqrt(len(k)) * (SILU if i else 1) for i, k in enumerate(kernels)
    ]
    # There, sorted by the degree of the sender, of Y, and of the message.
    columns, start = {}, 0
    for path in sorted(paths):
        end = start + channels[path[0]]
        columns[path] = kernels[-1][:, start:end] * coupling_sign(state, prefix, path)
        start = end
    kernels[-1] = np.concatenate([columns[path] for path in paths], 1)
    return {str(i): kernel for i, kernel in enumerate(kernels)}


def coupling_sign(state, prefix, path) -> float:
    """1, or -1 where the coefficients that the model was trained with are negated.

    The e3nn of that time chose other signs for some of them.
    """
    key = f"{prefix.removesuffix('weight_nn.')}convolution._compiled_main_left_right."
    trained = state.get(key + "_w3j_" + "_".join(map(str, path)))
    if trained is None:  # one degree is 0
        return 1.0
    sign = (trained * np.asarray(e3nn.clebsch_gordan(*path))).sum()
    if not abs(abs(sign) - 1) < 1e-5:
        raise ValueError(f"{path}: other coefficients, not only of another sign")
    return round(sign)


def layer(state, index: int, design: Architecture) -> dict:
    """Parameters of a layer; of the first, still with kernels in place of tables."""
    channels = design.channels
    inputs = channels[:1] if index == 0 else channels
    outputs = (sum(channels), *channels[1:])
    if index == NUM_LAYERS - 1:
        outputs = channels[:1]
    paths = [
        path
        for path in message_paths(design)
        if path[0] < len(inputs) and path[2] < len(outputs)
    ]
    messages = [
        sum(inputs[a] for a, _, c in paths if c == degree)
        for degree in range(len(outputs))
    ]
    down = split_linear(
        state[f"{index}_self_interaction_2.linear.weight"], messages, outputs
    )
    neighbours = state[f"{index}_convolution.denominator"][0]
    up = state[f"{index}_self_interaction_1.linear.weight"]
    skip = state[f"{index}_self_connection_intro.linear.weight"]
    gated = 1 if index == 0 else SILU  # what the layer before has not multiplied by
    return {
        "up": {k: v * gated for k, v in split_linear(up, inputs, inputs).items()},
        "skip": {k: v * gated for k, v in split_linear(skip, inputs, outputs).items()},
        "radial": radial(state, f"{index}_convolution.weight_nn.", paths, inputs),
        "down": {k: v / neighbours for k, v in down.items()},
    }


def parameters(state: dict, design: Architecture) -> dict:
    """Parameters of `equivariant.graph_energy` from the tensors of the checkpoint."""
    state = {k: np.asarray(v, np.float64) for k, v in state.items()}
    layers = [layer(state, i, design) for i in range(NUM_LAYERS)]
    first, last = layers[0], layers[-1]
    num_species = len(design.elements)
    embedding = state["onehot_to_feature_x.linear.weight"].reshape(num_species, -1)
    embedding = embedding / math.sqrt(num_species)
    first["up"], first["skip"] = (embedding @ first[k]["0"] for k in ("up", "skip"))
    middle = [flatten_dict(p, sep="/") for p in layers[1:-1]]
    hidden = state["reduce_input_to_hidden.linear.weight"]
    energy = state["reduce_hidden_to_energy.linear.weight"]
    hidden = hidden.reshape(-1, len(energy)) / math.sqrt(len(hidden) / len(energy))
    scale = np.unique(state["rescale_atomic_energy.scale"])
    return {
        "first": first,
        "middle": {k: np.stack([p[k] for p in middle]) for k in middle[0]},
        "last": last,
        "frequencies": state["edge_embedding.basis_function.coeffs"],
        "readout": SILU * scale.item() * hidden @ energy / math.sqrt(len(energy)),
        "reference": state["rescale_atomic_energy.shift"],
    }


def build_sevennet(name: str, packages: Path, out: Path) -> None:
    """Convert the checkpoint in the wheel in folder `packages` to the file `out`."""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(packages / WHEEL) as wheel:
            path = wheel.extract(CHECKPOINTS[name], folder)
        content = read_checkpoint(path)
        design = architecture(name, content["config"])
        tensors = flatten_dict(parameters(content["model_state_dict"], design), sep="/")
    tensors = {k: np.ascontiguousarray(v, np.float32) for k, v in tensors.items()}
    metadata = {
        "architecture": json.dumps(vars(design)),
        "model": name,
        "source": "sevenn 0.13.0",
    }
    save_weights(tensors, metadata, out)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=CHECKPOINTS)
    parser.add_argument("packages", type=Path, help="downloads")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    build_sevennet(args.name, args.packages, args.out)


if __name__ == "__main__":
    main()

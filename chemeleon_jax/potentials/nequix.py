"""Nequix: equivariant potentials from a checkpoint of the user's own, "nequix:PATH".

Koker et al., arXiv:2508.16067 (MIT licence); the network is in `equivariant`. A `.nqx`
file is a line of JSON, and after it NumPy arrays, in the order in which the `nequix`
package holds its parameters. Some files of its authors go on after the last of them
(a line break, scalars of no use); the package does not read that, nor do we. Energies
are those of the Materials Project before its corrections, which `potential` adds.
"""

import hashlib
import io
import json
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np

from chemeleon_jax.errors import UserError
from chemeleon_jax.potentials.batches import GraphPotential
from chemeleon_jax.potentials.corrections import SCHEME, UNCORRECTED, corrected
from chemeleon_jax.potentials.edge_blocks import BlockCapacity
from chemeleon_jax.potentials.equivariant import (
    Architecture,
    energies,
    graph_energy,
    message_paths,
)
from chemeleon_jax.potentials.types import Potential, per_device

CACHE = Path("~/.cache/nequix/models")  # where the package keeps its own
SOURCE = "https://github.com/atomicarchitects/nequix, models/nequix-mp-1.nqx"
MAX_BYTES, MAX_DEGREE = 1 << 30, 6


def potential(name: str, settings: dict) -> Potential:
    """The model in a file, with the MP2020 corrections added, or as it learnt.

    Args:
      name: "nequix:PATH", or "nequix:nequix-mp-1" of those in `CACHE`; with
        ":uncorrected" behind no corrections are added.
      settings: none, it has none.

    Raises:
      UserError: there is no such file, it cannot be read, or there are settings.
    """
    if settings:
        raise UserError(f"{name}: settings {sorted(settings)}, but it has none")
    path = name.partition(":")[2].removesuffix(f":{UNCORRECTED}")
    scheme = UNCORRECTED if name.endswith(f":{UNCORRECTED}") else SCHEME
    file = Path(path).expanduser()
    if path and not file.is_file():
        file = CACHE.expanduser() / f"{path.removesuffix('.nqx')}.nqx"
    if not path or not file.is_file():
        raise UserError(
            f"{name}: no such file; nequix:PATH reads a checkpoint of Nequix, "
            f"such as {SOURCE}"
        )
    if file.stat().st_size > MAX_BYTES:
        raise UserError(f"{file}: of more than a GB, no checkpoint of Nequix")
    content = file.read_bytes()
    params, model = read_model(content, str(file))
    own = partial(energies, model, params)
    return Potential(
        name,
        hashlib.sha256(content + scheme.encode()).hexdigest(),
        per_device(own if scheme == UNCORRECTED else corrected(own)),
        scheme,
        network=(model, params),
    )


def read_model(content: bytes, file: str) -> tuple[dict, GraphPotential]:
    """Parameters of `equivariant.graph_energy`, and what evaluates them.

    Args:
      content: of a `.nqx` file.
      file: named in errors.

    Raises:
      UserError: it is damaged, or of an architecture that is not supported.
    """
    stream = io.BytesIO(content)
    try:
        config = json.loads(stream.readline())
        design = _architecture(config)
        params = _parameters(config, design, partial(_read_array, stream))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{file}: cannot be read as a checkpoint of Nequix ({error})"
        ) from error
    capacity = BlockCapacity(design.elements, design.cutoff)
    return params, GraphPotential(partial(graph_energy, design), capacity)


def _architecture(config: dict) -> Architecture:
    hidden = re.split(r"\s*\+\s*", config["hidden_irreps"].strip())
    channels = []
    for degree, part in enumerate(hidden):
        found = re.fullmatch(rf"(\d+)x{degree}{'eo'[degree % 2]}", part)
        if not found or degree > MAX_DEGREE:
            raise ValueError(f"features {config['hidden_irreps']!r} are not supported")
        channels.append(int(found[1]))
    if config["lmax"] != len(channels) - 1 or config["n_layers"] < 3:
        raise ValueError("fewer than three layers, or other degrees on edges")
    elements = tuple(int(z) for z in config["atomic_numbers"])
    if not all(0 < z < 119 for z in elements) or len(set(elements)) < len(elements):
        raise ValueError("elements are not atomic numbers")
    return Architecture(
        elements=elements,
        channels=tuple(channels),
        cutoff=float(config["cutoff"]),
        envelope="polynomial",
        envelope_at=float(config["radial_polynomial_p"]),
        has_parity=True,
    )


def _read_array(stream: io.BytesIO, *shape: int) -> np.ndarray:
    """The next array, float64, if it has the shape that it must have."""
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("no array where one should be")
    found, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if found != shape or fortran or dtype.kind != "f":
        raise ValueError(f"an array of shape {str(found)[:60]}, not {shape}")
    size = math.prod(shape) * dtype.itemsize
    content = stream.read(size)
    if len(content) < size:
        raise ValueError("cut off")
    return np.frombuffer(content, dtype).reshape(shape).astype(np.float64)


def _parameters(config: dict, design: Architecture, read: Callable) -> dict:
    num_species, count = len(design.elements), config["n_layers"]
    # What a gate multiplies its output by, so that its variance is 1.
    gain = float(e3nn.normalize_function(jax.nn.silu)(jnp.ones(())) / jax.nn.silu(1.0))
    reference = read(num_species)
    layers = [_layer(config, design, i, gain, read) for i in range(count)]
    readout = read(design.channels[0], 1)[:, 0] / math.sqrt(design.channels[0])
    params = {
        "first": layers[0],
        "middle": jax.tree.map(lambda *x: np.stack(x), *layers[1:-1]),
        "last": layers[-1],
        "frequencies": np.arange(1, config["radial_basis_size"] + 1)
        * (np.pi / design.cutoff),
        "readout": gain * config["scale"] * readout,
        "reference": reference + config["shift"],
    }
    return jax.tree.map(lambda x: np.asarray(x, np.float32), params)


def _layer(config, design: Architecture, index: int, gain: float, read: Callable):
    """Parameters of a layer, as `equivariant` takes them."""
    num_species, channels = len(design.elements), design.channels
    first, last = index == 0, index == config["n_layers"] - 1
    inputs = (num_species,) if first else channels
    outputs = channels[:1] if last else (sum(channels), *channels[1:])
    paths = [
        path
        for path in message_paths(design)
        if path[0] < len(inputs) and path[2] < len(outputs)
    ]
    messages = [
        sum(inputs[a] for a, _, c in paths if c == degree)
        for degree in range(len(outputs))
    ]
    hidden = [config["radial_mlp_size"]] * config["radial_mlp_layers"]
    sizes = [config["radial_basis_size"], *hidden, sum(messages)]
    kernels = [read(*pair) for pair in zip(sizes[:-1], sizes[1:], strict=True)]

    def linear(fan_in, fan_out, *indexed):
        return {
            str(degree): read(*indexed, *shape) / math.sqrt(shape[0])
            for degree, shape in enumerate(zip(fan_in, fan_out, strict=False))
        }

    up = linear(inputs, inputs)
    down = linear(messages, outputs)
    indexed = (num_species,) if config["index_weights"] else ()
    skip = linear(inputs, outputs, *indexed)
    layer = {
        "radial": {str(i): kernel for i, kernel in enumerate(kernels)},
        "down": {k: v / math.sqrt(config["avg_n_neighbors"]) for k, v in down.items()},
    }
    if config["layer_norm"]:
        layer["norm"] = {str(i): read(size) for i, size in enumerate(outputs)}
    if first:  # species come one-hot: kernels are tables
        table = skip["0"]
        if config["index_weights"]:
            table = table[np.arange(num_species), np.arange(num_species)]
        return layer | {"up": up["0"], "skip": table}
    return layer | {
        "up": {k: gain * v for k, v in up.items()},
        "skip": {k: gain * v for k, v in skip.items()},
    }

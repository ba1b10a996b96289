"""How chemeleon_jax/assets/chgnet.safetensors was made: CHGNet 0.3.0, renamed.

Source: the `chgnet` 0.4.2 wheel, modified BSD licence (Deng et al. 2023, Nature
Machine Intelligence 5, 1031). Kernels are transposed to [inputs, outputs].
"""

import json
import re
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from convert_checkpoints.unpickle import read_checkpoint

WHEEL = "chgnet-0.4.2-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
CHECKPOINT = "chgnet/pretrained/0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar"
NUM_PARAMETERS = 412_525

# Source name -> name here, first match wins. An angle layer has no hidden layer.
TABLE = [
    (r"composition_model\.fc\.weight", "atom_reference"),
    (r"atom_embedding\.embedding\.weight", "atom_embedding"),
    (r"bond_basis_expansion\.rbf_expansion_ag\.frequencies", "edge_frequencies"),
    (r"bond_basis_expansion\.rbf_expansion_bg\.frequencies", "bond_frequencies"),
    (r"angle_basis_expansion\.fourier_expansion\.frequencies", "angle_frequencies"),
    (r"bond_embedding\.weight", "edge_embedding/kernel"),
    (r"bond_weights_ag\.weight", "edge_weight/kernel"),
    (r"bond_weights_bg\.weight", "bond_weight/kernel"),
    (r"angle_embedding\.weight", "angle_embedding/kernel"),
    (r"(\w+)_layers\.(\d)\.twoBody_\w+\.mlp_(\w+)\.layers\.0\.", r"\1/\2/\3/hidden/"),
    (
        r"(\w+)_layers\.(\d)\.twoBody_\w+\.mlp_(\w+)\.layers\.[13]\.",
        r"\1/\2/\3/output/",
    ),
    (r"(\w+)_layers\.(\d)\.twoBody_\w+\.bn1\.weight", r"\1/\2/core/norm/scale"),
    (r"(\w+)_layers\.(\d)\.twoBody_\w+\.bn1\.bias", r"\1/\2/core/norm/bias"),
    (r"(\w+)_layers\.(\d)\.twoBody_\w+\.bn2\.weight", r"\1/\2/gate/norm/scale"),
    (r"(\w+)_layers\.(\d)\.twoBody_\w+\.bn2\.bias", r"\1/\2/gate/norm/bias"),
    (r"(\w+)_layers\.(\d)\.mlp_out\.layers\.1\.", r"\1/\2/mix/"),
    (r"site_wise\.", "magnetic_moment/"),
    (r"readout_norm\.weight", "readout_norm/scale"),
    (r"readout_norm\.", "readout_norm/"),
    (r"mlp\.layers\.(\d)\.", r"readout/\1/"),
]


def rename(name: str) -> str:
    """The name here of a tensor of the checkpoint."""
    for pattern, target in TABLE:
        if re.match(pattern, name):
            name = re.sub(pattern, target, name, count=1)
            return re.sub(r"\bweight$", "kernel", name)
    raise KeyError(f"{name}: no line of TABLE names this tensor of {CHECKPOINT}")


def build_chgnet(packages: Path, out: Path) -> None:
    """Convert the checkpoint in the wheel in folder `packages` to the file `out`."""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(packages / WHEEL) as wheel:
            path = wheel.extract(CHECKPOINT, folder)
        # The suffix tells the reader the format: this .tar is torch's zip.
        path = Path(path).rename(Path(folder) / "chgnet.pth")
        state = read_checkpoint(path)["model"]["state_dict"]

    tensors = {}
    for name, tensor in state.items():
        target = rename(name)
        if target.endswith("kernel"):
            tensor = tensor.T
        elif target == "atom_reference":
            tensor = tensor[0]
        tensors[target] = np.ascontiguousarray(tensor, np.float32)
    count = sum(t.size for t in tensors.values())
    if count != NUM_PARAMETERS:
        raise ValueError(f"{CHECKPOINT}: {count} parameters, not {NUM_PARAMETERS}")
    save_weights(tensors, {"model": "CHGNet 0.3.0", "source": "chgnet 0.4.2"}, out)


def save_weights(tensors: dict, metadata: dict[str, str], out: Path) -> None:
    """Write a safetensors file that is the same each time.

    The library writes the metadata in a random order; here it is sorted.
    """
    content = save(tensors, metadata)
    start, end = 8, 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[start:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    ordered = json.dumps(header, separators=(",", ":")).encode()
    out.write_bytes(content[:start] + ordered.ljust(end - start) + content[end:])

"""SevenNet-0 and SevenNet-l3i5: equivariant potentials trained on MPtrj.

Park et al., J. Chem. Theory Comput. 20, 4857 (2024), MIT licence. The network is in
`equivariant`; `tools/build_sevennet.py` made the weights from the authors' package.
The network gives energies of the Materials Project before its corrections, to which
`potential` adds them.
"""

import hashlib
import json
from functools import cache, partial
from importlib.resources import files

from flax.traverse_util import unflatten_dict
from safetensors.numpy import load

from chemeleon_jax.errors import UserError
from chemeleon_jax.potentials.batches import GraphPotential
from chemeleon_jax.potentials.corrections import SCHEME, UNCORRECTED, corrected
from chemeleon_jax.potentials.edge_blocks import BlockCapacity
from chemeleon_jax.potentials.equivariant import Architecture, energies, graph_energy
from chemeleon_jax.potentials.types import Potential, per_device
from chemeleon_jax.runs.files import read_packaged

ASSETS = files("chemeleon_jax") / "assets"
SHA256 = {
    "sevennet-0": "41907d4c297a5af34f4971173a8bbea11a7b35150271cd0028bb4f3606b32b23",
    "sevennet-l3i5": "cf61d9b52829ab8e019735b53f9bcbad3fd6f0f73cd42468ca16db2b3c9368c3",
}


def potential(name: str, settings: dict) -> Potential:
    """SevenNet with the MP2020 corrections added, or as it learnt; it has no settings.

    Args:
      name: "sevennet-0" or "sevennet-l3i5", and ":uncorrected" where none are added.
      settings: none.

    Raises:
      UserError: there is no such model, it has settings, or its weights were altered.
    """
    weights, colon, corrections = name.partition(":")
    known = weights in SHA256 and (not colon or corrections == UNCORRECTED)
    if settings or not known:
        raise UserError(
            f"unknown potential {name!r} with settings {sorted(settings)}: "
            f"{' and '.join(SHA256)} are models without settings, and with "
            f"':{UNCORRECTED}' without corrections"
        )
    scheme = corrections or SCHEME
    params, model = load_model(weights)
    own = partial(energies, model, params)
    return Potential(
        name,
        hashlib.sha256((SHA256[weights] + scheme).encode()).hexdigest(),
        per_device(own if corrections else corrected(own)),
        scheme,
        network=(model, params),
    )


@cache
def load_model(name: str) -> tuple[dict, GraphPotential]:
    """Weights as a nested dict of NumPy arrays, float32, and what evaluates them.

    The energies of `energies(model, params, crystals)` are uncorrected.

    Args:
      name: "sevennet-0" or "sevennet-l3i5".

    Raises:
      UserError: the weights were altered.
    """
    content = read_packaged(ASSETS / f"{name}.safetensors", SHA256[name])
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    design = json.loads(header["__metadata__"]["architecture"])
    design |= {key: tuple(design[key]) for key in ("elements", "channels")}
    architecture = Architecture(**design)
    capacity = BlockCapacity(architecture.elements, architecture.cutoff)
    params = unflatten_dict(load(content), sep="/")
    return params, GraphPotential(partial(graph_energy, architecture), capacity)

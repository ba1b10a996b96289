"""CHGNet 0.3.0 in JAX: energies of crystals, at a cost that follows their size.

The model of Deng et al. 2023, Nature Machine Intelligence 5, 1031 (modified BSD),
rebuilt from the published architecture, with the published weights. Three networks pass
messages in turn: atoms along edges (6 Å), bonds (3 Å) along the angles between them,
and angles. A polynomial envelope fades each message out at its cutoff.

The first layer of every gated MLP reads a concatenation of features. Its kernel is
split by rows here: each part is multiplied once per atom or bond, not per message.
"""

from functools import cache, partial
from importlib.resources import files
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax import lax
from safetensors.numpy import load

from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.errors import UserError
from chemeleon_jax.potentials import batches
from chemeleon_jax.potentials.batches import GraphPotential
from chemeleon_jax.potentials.graph import BOND_CUTOFF, EDGE_CUTOFF, Capacity, Graph
from chemeleon_jax.potentials.types import Potential, per_device
from chemeleon_jax.runs.files import read_packaged

WEIGHTS = files("chemeleon_jax") / "assets" / "chgnet.safetensors"
WEIGHTS_SHA256 = "fd2cf236ad7ba50e9abf3ac90f16d761b8c3117e10a8bdc1370b25abf8dfd4f9"
WIDTH = 64
# About 8 crystals of at most 20 atoms, whose messages stay in the cache.
SMALL = Capacity(crystals=16, atoms=128, edges=2560, bonds=320, angles=3584)


@cache
def load_params() -> dict[str, Any]:
    """The embedded weights as a nested dict of NumPy arrays, float32.

    Raises:
      UserError: the file was altered.
    """
    return unflatten_dict(load(read_packaged(WEIGHTS, WEIGHTS_SHA256)), sep="/")


def potential(name: str, settings: dict) -> Potential:
    """CHGNet 0.3.0 with the embedded weights; it has no settings.

    Raises:
      UserError: the name is another one, or there are settings.
    """
    if name != "chgnet" or settings:
        raise UserError(
            f"unknown potential {name!r} with settings {sorted(settings)}: 'chgnet' "
            "is one model without settings"
        )
    return Potential(
        "chgnet",
        WEIGHTS_SHA256,
        per_device(partial(energies, load_params())),
        scheme="MP2020",  # of the energies that it learnt
        network=(GraphPotential(graph_energy, Capacity()), load_params()),
    )


# ---------------------------------------------------------------- geometry


def _radial_basis(distance, frequencies, cutoff: float):
    """Bessel functions under a polynomial envelope of order 8 (arXiv:2003.03123).

    Args:
      distance: [E] in Å.
      frequencies: [R], learned.
      cutoff: Å; zero beyond it.

    Returns:
      [E, R].
    """
    p = 8
    r = distance / cutoff
    envelope = (
        1
        - (p + 1) * (p + 2) / 2 * r**p
        + p * (p + 2) * r ** (p + 1)
        - p * (p + 1) / 2 * r ** (p + 2)
    )
    scale = jnp.where(r < 1, envelope, 0.0) * np.sqrt(2 / cutoff) / distance
    return scale[:, None] * jnp.sin(frequencies[None, :] * r[:, None])


def _angle_basis(left, right, frequencies):
    """Fourier features of the angle between unit vectors [P, 3] -> [P, 2 F + 1]."""
    # The factor keeps arccos differentiable at 0 and 180 degrees.
    angle = jnp.arccos((left * right).sum(-1) * (1 - 1e-6))
    phase = angle[:, None] * frequencies[None, :]
    constant = jnp.full_like(angle, np.sqrt(0.5))[:, None]
    features = jnp.concatenate([constant, jnp.sin(phase), jnp.cos(phase)], -1)
    return features / np.sqrt(np.pi)


# ------------------------------------------------------------------ layers


def _layer_norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    x = x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)
    return x * p["scale"][None, :] + p["bias"][None, :]


def _dense(x, p):
    return x @ p["kernel"] + p["bias"][None, :]


def _first_layer(p, layer: str):
    """First layer of a gated MLP, core | gate: kernel [inputs, 2 W], bias [1, 2 W]."""
    core, gate = p["core"][layer], p["gate"][layer]
    kernel = jnp.concatenate([core["kernel"], gate["kernel"]], -1)
    return kernel, jnp.concatenate([core["bias"], gate["bias"]])[None, :]


def _gate(core, gate, p):
    core = jax.nn.silu(_layer_norm(core, p["core"]["norm"]))
    return core * jax.nn.sigmoid(_layer_norm(gate, p["gate"]["norm"]))


def _gated_mlp(x, p):
    """Gated MLP after its first layer: x [M, 2 W], core and gate -> [M, W]."""
    core, gate = jnp.split(jax.nn.silu(x), 2, axis=-1)
    return _gate(
        _dense(core, p["core"]["output"]), _dense(gate, p["gate"]["output"]), p
    )


def _split_rows(kernel):
    """Kernel [k W, n] -> k kernels [W, n], one for each feature concatenated."""
    return jnp.split(kernel, kernel.shape[0] // WIDTH, axis=0)


def _atom_conv(p, atoms, edges, edge_weight, graph: Graph):
    """Messages from both ends of each edge: atoms [A, W] -> [A, W]."""
    kernel, bias = _first_layer(p, "hidden")
    to_centre, to_edge, to_neighbour = _split_rows(kernel)
    centre, neighbour = atoms @ to_centre + bias, atoms @ to_neighbour
    edge = edges @ to_edge
    i, j = graph.edge_first, graph.edge_second
    x = jnp.concatenate(
        [centre[i] + neighbour[j] + edge, centre[j] + neighbour[i] + edge]
    )
    message = _gated_mlp(x, p) * jnp.concatenate([edge_weight, edge_weight])
    total = jax.ops.segment_sum(
        message, jnp.concatenate([i, j]), num_segments=len(atoms)
    )
    return atoms + total @ p["mix"]["kernel"]


def _angle_input(kernel, bias, bonds, angles, graph: Graph, atoms, centre):
    """First layer of the MLPs that read an angle, [P, n].

    Args:
      kernel: [4 W, n], of left bond, right bond, angle and central atom.
      bias: [1, n].
      bonds: [S, W].
      angles: [P, W].
      graph: `Graph`.
      atoms: [A, W].
      centre: [2 S] the atom that each directed bond leaves.
    """
    from_left, from_right, from_angle, from_centre = _split_rows(kernel)
    left = bonds @ from_left + bias
    left = jnp.concatenate([left, left]) + (atoms @ from_centre)[centre]
    right = (bonds @ from_right)[graph.angle_right % len(bonds)]
    return left[graph.angle_left] + right + angles @ from_angle


def _bond_conv(p, bonds, angles, bond_weight, graph: Graph, atoms, centre):
    """Messages to each bond from the bonds it forms angles with, [S, W]."""
    x = _angle_input(*_first_layer(p, "hidden"), bonds, angles, graph, atoms, centre)
    left, right = graph.angle_left % len(bonds), graph.angle_right % len(bonds)
    message = _gated_mlp(x, p) * bond_weight[right]
    total = jax.ops.segment_sum(message, left, num_segments=len(bonds))
    return (total * bond_weight) @ p["mix"]["kernel"]


def _angle_update(p, bonds, angles, graph: Graph, atoms, centre):
    """Angles [P, W] from themselves, their two bonds and the atom between."""
    x = _angle_input(*_first_layer(p, "output"), bonds, angles, graph, atoms, centre)
    core, gate = jnp.split(x, 2, axis=-1)
    return angles + _gate(core, gate, p)


# ------------------------------------------------------------------- model


class _Geometry(NamedTuple):
    """What the positions decide; constant under message passing."""

    edge_basis: jax.Array  # [E, R]
    bond_basis: jax.Array  # [S, R]
    angle_basis: jax.Array  # [P, 2 F + 1]


def _geometry(params, graph: Graph, frac_coords, lattice) -> _Geometry:
    cell = lattice[graph.atom_crystal[graph.edge_first]]
    shift = frac_coords[graph.edge_second] - frac_coords[graph.edge_first]
    vector = jnp.einsum("ei,eij->ej", shift + graph.edge_image, cell)
    distance = jnp.sqrt((vector * vector).sum(-1))
    direction = (vector / distance[:, None])[graph.bond_edge]
    direction = jnp.concatenate([direction, -direction])
    bond_length = distance[graph.bond_edge]
    return _Geometry(
        _radial_basis(distance, params["edge_frequencies"], EDGE_CUTOFF),
        _radial_basis(bond_length, params["bond_frequencies"], BOND_CUTOFF),
        _angle_basis(
            direction[graph.angle_left],
            direction[graph.angle_right],
            params["angle_frequencies"],
        ),
    )


def graph_energy(params, graph: Graph, frac_coords, lattice):
    """Energy per atom of each crystal of a packed graph.

    Args:
      params: `load_params()`.
      graph: `Graph`.
      frac_coords: [A, 3] fractional coordinates of the graph's atoms.
      lattice: [C, 3, 3] lattice vectors as rows, Å; the last one belongs to the padding
        and must be longer than the cutoff.

    Returns:
      [C], eV/atom. Differentiable in `frac_coords` and `lattice`. Slots without a
      crystal hold zero, except the last, which holds the padding's energy.
    """
    geometry = _geometry(params, graph, frac_coords, lattice)
    atoms = jnp.asarray(params["atom_embedding"])[graph.atom_types - 1]
    edges = geometry.edge_basis @ params["edge_embedding"]["kernel"]
    edge_weight = geometry.edge_basis @ params["edge_weight"]["kernel"]
    bond_weight = geometry.bond_basis @ params["bond_weight"]["kernel"]
    angles = geometry.angle_basis @ params["angle_embedding"]["kernel"]
    centre = jnp.concatenate(
        [graph.edge_first[graph.bond_edge], graph.edge_second[graph.bond_edge]]
    )

    for i in "012":
        atoms = _atom_conv(params["atom_conv"][i], atoms, edges, edge_weight, graph)
        bonds, at = edges[graph.bond_edge], (graph, atoms, centre)
        update = _bond_conv(params["bond_conv"][i], bonds, angles, bond_weight, *at)
        # Padding bonds share an edge, but what they add is zero.
        edges = edges.at[graph.bond_edge].add(update)
        if i != "2":  # the last angles have no reader
            angles = _angle_update(params["angle"][i], bonds + update, angles, *at)
    atoms = _atom_conv(params["atom_conv"]["3"], atoms, edges, edge_weight, graph)
    site = _readout(params, atoms, graph)

    def sum_by_crystal(x):
        return jax.ops.segment_sum(x, graph.atom_crystal, num_segments=len(lattice))

    return sum_by_crystal(site) / jnp.maximum(sum_by_crystal(jnp.ones_like(site)), 1)


def _readout(params, atoms, graph: Graph):
    """Energy of each atom [A] in eV, that of its element included."""
    x = _layer_norm(atoms, params["readout_norm"])
    for i in "024":
        x = jax.nn.silu(_dense(x, params["readout"][i]))
    element = jnp.asarray(params["atom_reference"])[graph.atom_types - 1]
    return _dense(x, params["readout"]["7"])[:, 0] + element


# ------------------------------------------------------------------ batches


def energies(params, crystals: CrystalBatch, *, capacity: Capacity | None = None):
    """Energies [B] and statuses [B] of crystals, see `batches.energies`.

    Args:
      params: `load_params()`.
      crystals: `CrystalBatch` [B, N].
      capacity: of the graph that is evaluated at once; by default what N asks for, and
        `SMALL` for gradients.
    """
    small = None if capacity else SMALL
    capacity = capacity or Capacity.for_width(crystals.mask.shape[1])
    model = GraphPotential(graph_energy, capacity, small)
    return batches.energies(model, params, crystals)

"""Equivariant message passing of the NequIP family, in JAX: energies of packed graphs.

SevenNet (Park et al., J. Chem. Theory Comput. 20, 4857, 2024) and Nequix (Koker et al.,
arXiv:2508.16067) follow NequIP (Batzner et al., Nature Communications 13, 2453, 2022).
An atom's features have degrees l = 0, 1, ...; under a rotation, those of degree l turn
as the spherical harmonics Y_l do. A message along an edge multiplies the features of
its sender by Y of its direction and by weights that depend on its length.

Parameters, with all factors of normalisation folded in (S species, O = C plus gates):
  first      {"up" [S, C], "skip" [S, O], "radial", "down"}
  middle     {"up" {l: [C, C]}, "skip" {l: [C, O]}, "radial", "down"}, stacked layers
  last       one layer more, to degree 0 alone
  radial     ("0", "1", ...: kernels of an MLP without biases, silu between them)
  down       {l: [C of all paths to l, O]}; and, of Nequix, "norm" {l: [O]}
  frequencies [R] 1/Å,  readout [C] eV,  reference [S] eV
"""

from dataclasses import dataclass
from functools import cache

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.potentials import batches
from chemeleon_jax.potentials.batches import GraphPotential
from chemeleon_jax.potentials.edge_blocks import BlockGraph


@dataclass(frozen=True)
class Architecture:
    """What is not a parameter."""

    elements: tuple[int, ...]  # atomic numbers, of the species in their order
    channels: tuple[int, ...]  # of each degree between layers
    cutoff: float  # Å
    envelope: str  # that fades a message out: "polynomial" or "xplor"
    envelope_at: float  # order of the polynomial; Å where xplor begins
    has_parity: bool  # features of odd degree are vectors, not pseudovectors

    @property
    def degrees(self) -> range:
        """0 to the highest."""
        return range(len(self.channels))


@cache
def message_paths(architecture: Architecture) -> tuple[tuple[int, int, int], ...]:
    """Degrees (of sender, of Y, of message), sorted by the last, the first, the second.

    In this order stand the columns of the last radial kernel, and the rows of "down".
    """
    degrees = architecture.degrees
    return tuple(
        (a, b, c)
        for c in degrees
        for a in degrees
        for b in degrees
        if abs(a - b) <= c <= a + b
        and not (architecture.has_parity and (a + b + c) % 2)
    )


@cache
def _coupling_table(architecture: Architecture) -> np.ndarray:
    """Clebsch-Gordan coefficients of all paths: [spherical harmonics, sum of a x c]."""
    columns = []
    for a, b, c in message_paths(architecture):
        # Of norm 1; sqrt(2 c + 1) gives a message's components the variance 1.
        with jax.ensure_compile_time_eval():
            coefficients = np.asarray(e3nn.clebsch_gordan(a, b, c))
        table = np.zeros((len(architecture.degrees) ** 2, 2 * a + 1, 2 * c + 1))
        table[b * b : (b + 1) ** 2] = coefficients.transpose(1, 0, 2)
        columns.append(np.sqrt(2 * c + 1) * table.reshape(len(table), -1))
    return np.concatenate(columns, 1).astype(np.float32)


# ---------------------------------------------------------------- geometry


def _envelope(architecture: Architecture, distance):
    """1 at 0 Å, 0 at the cutoff and beyond: [M, K] -> [M, K]."""
    cutoff, at = architecture.cutoff, architecture.envelope_at
    if architecture.envelope == "polynomial":  # arXiv:2003.03123, eq. 8
        r = distance / cutoff
        value = (
            1
            - (at + 1) * (at + 2) / 2 * r**at
            + at * (at + 2) * r ** (at + 1)
            - at * (at + 1) / 2 * r ** (at + 2)
        )
    else:  # XPLOR, as in HOOMD-blue
        end, begin, square = cutoff**2, at**2, distance**2
        fade = (end - square) ** 2 * (end + 2 * square - 3 * begin) / (end - begin) ** 3
        value = jnp.where(distance < at, 1.0, fade)
    return jnp.where(distance < cutoff, value, 0.0)


def _geometry(params, graph: BlockGraph, frac_coords, lattice, architecture):
    """What the positions decide; constant under message passing.

    Returns:
      Radial basis [M, K, R], and the coupling of each path [M, K, 2a + 1, 2c + 1].
    """
    receiver = graph.receiver[:, None]
    shift = frac_coords[graph.sender] - frac_coords[receiver] + graph.image
    cell = lattice[graph.atom_crystal[graph.receiver]]
    real = graph.sender < len(graph.atom_types) - 1
    vector = jnp.einsum("mki,mij->mkj", shift, cell)
    vector = jnp.where(real[..., None], vector, architecture.cutoff)  # beyond it
    distance = jnp.sqrt((vector * vector).sum(-1))
    frequencies = params["frequencies"][None, None]
    basis = jnp.sin(distance[..., None] * frequencies) / distance[..., None]
    basis *= 2 / architecture.cutoff * _envelope(architecture, distance)[..., None]

    harmonics = e3nn.spherical_harmonics(
        list(architecture.degrees),
        e3nn.IrrepsArray("1o", vector),
        normalize=True,
        normalization="component",
    ).array
    columns = harmonics @ _coupling_table(architecture)
    couplings, start = {}, 0
    for a, b, c in message_paths(architecture):
        shape, end = (2 * a + 1, 2 * c + 1), start + (2 * a + 1) * (2 * c + 1)
        couplings[a, b, c] = columns[..., start:end].reshape(*basis.shape[:2], *shape)
        start = end
    return basis, couplings


# ------------------------------------------------------------------ layers


def _radial_weights(kernels, basis):
    """MLP from the radial basis [M, K, R] to the weights of messages [M, K, W]."""
    x = basis @ kernels["0"]
    for i in range(1, len(kernels)):
        x = jax.nn.silu(x) @ kernels[str(i)]
    return x


@jax.custom_vjp
def _messages(sent, couplings, weights):
    """Messages of the features of one degree a, added up over the edges of each block.

    Written out, the sum over components fuses with the product by the weights and with
    the sum over the block. Its derivatives are written out too: XLA's compile three
    times as long.

    Args:
      sent: [M, K, 2 a + 1, C].
      couplings: [M, K, 2 a + 1, 2 c + 1], of each path.
      weights: [M, K, C], of each path.

    Returns:
      [M, 2 c + 1, C], of each path.
    """
    return _sum_messages(sent, couplings, weights)


def _sum_messages(sent, couplings, weights):
    """`_messages` as JAX differentiates it: what the forward mode needs."""
    return [
        (_turn(sent, coupling) * weight[:, :, None]).sum(1)
        for coupling, weight in zip(couplings, weights, strict=True)
    ]


def _turn(sent, coupling):
    """[M, K, I, C] and [M, K, I, J] -> [M, K, J, C]."""
    terms = range(sent.shape[2])
    return sum(coupling[:, :, i, :, None] * sent[:, :, i, None, :] for i in terms)


def _messages_fwd(sent, couplings, weights):
    return _sum_messages(sent, couplings, weights), (sent, couplings, weights)


def _messages_bwd(residuals, cotangents):
    sent, couplings, weights = residuals
    cotangents = [g[:, None] for g in cotangents]  # [M, 1, 2 c + 1, C]
    weighted = [
        g * w[:, :, None] for g, w in zip(cotangents, weights, strict=True)
    ]  # [M, K, 2 c + 1, C]
    by_sent = sum(
        _turn(g, coupling.swapaxes(2, 3))
        for g, coupling in zip(weighted, couplings, strict=True)
    )
    by_couplings = jnp.einsum("mkic,mkjc->mkij", sent, jnp.concatenate(weighted, 2))
    ends = np.cumsum([g.shape[2] for g in weighted])[:-1]
    by_weights = [
        (g * _turn(sent, coupling)).sum(2)
        for g, coupling in zip(cotangents, couplings, strict=True)
    ]
    return by_sent, jnp.split(by_couplings, ends, axis=3), by_weights


_messages.defvjp(_messages_fwd, _messages_bwd)


def _convolve(p, x, geometry, graph: BlockGraph, degrees):
    """Messages, added up at their receivers.

    Args:
      p: of a layer.
      x: features [A, 2 l + 1, C], by degree.
      geometry: of `_geometry`.
      graph: `BlockGraph`.
      degrees: of the messages.

    Returns:
      [A, 2 l + 1, O] by degree, after the kernels "down".
    """
    basis, couplings = geometry
    paths = [path for path in couplings if path[0] < len(x) and path[2] in degrees]
    ends = np.cumsum([x[a].shape[-1] for a, _, _ in paths])[:-1]
    weights = jnp.split(_radial_weights(p["radial"], basis), ends, axis=-1)
    weights = dict(zip(paths, weights, strict=True))
    messages = {}
    for a, value in enumerate(x):
        mine = [path for path in paths if path[0] == a]
        found = _messages(
            value[graph.sender],
            [couplings[path] for path in mine],
            [weights[path] for path in mine],
        )
        messages |= zip(mine, found, strict=True)
    return [
        jax.ops.segment_sum(
            jnp.concatenate([messages[path] for path in paths if path[2] == c], -1),
            graph.receiver,
            num_segments=len(graph.atom_types),
            indices_are_sorted=True,
        )
        @ p["down"][str(c)]
        for c in degrees
    ]


def _norm(scale, x):
    """Divides by the root of the mean square over degrees, as Nequix takes it.

    Of a degree it is the sum over channels, and the mean over components divided by
    their number.
    """
    square = sum(
        (value**2).sum((1, 2), keepdims=True) / value.shape[1] ** 2 for value in x
    )
    root = lax.rsqrt(square / len(x) + 1e-12)
    return [value * root * scale[str(i)][None, None] for i, value in enumerate(x)]


def _gate(x, channels):
    """Scalars through silu; features of higher degree times silu of their gates."""
    scalars = jax.nn.silu(x[0])
    ends = np.cumsum(channels)[: len(x)]
    gates = jnp.split(scalars, ends[:-1], axis=-1)[1:]
    gated = [value * gate for value, gate in zip(x[1:], gates, strict=True)]
    return [scalars[..., : channels[0]], *gated]


def _layer(p, x, geometry, graph, species, architecture, degrees):
    """Features by degree -> features of `degrees`."""
    up = [value @ p["up"][str(i)] for i, value in enumerate(x)]
    out = _convolve(p, up, geometry, graph, degrees)
    for i in range(min(len(x), len(out))):
        kernel = p["skip"][str(i)]
        if kernel.ndim == 3:  # one for each species
            kernel = jnp.asarray(kernel)[species]
        out[i] += x[i] @ kernel
    if "norm" in p:
        out = _norm(p["norm"], out)
    return _gate(out, architecture.channels)


def _first_layer(p, geometry, graph, species, architecture):
    """Features by degree, from the species [A]."""
    up = [jnp.asarray(p["up"])[species][:, None]]
    out = _convolve(p, up, geometry, graph, architecture.degrees)
    out[0] += jnp.asarray(p["skip"])[species][:, None]
    if "norm" in p:
        out = _norm(p["norm"], out)
    return _gate(out, architecture.channels)


def graph_energy(architecture, params, graph: BlockGraph, frac_coords, lattice):
    """Energy per atom of each crystal of a packed graph.

    Args:
      architecture: static.
      params: see above.
      graph: `BlockGraph`.
      frac_coords: [A, 3] fractional coordinates of the graph's atoms.
      lattice: [C, 3, 3] lattice vectors as rows, Å.

    Returns:
      [C], eV/atom, of empty slots 0. Differentiable in `frac_coords` and `lattice`.
    """
    index = np.zeros(max(architecture.elements) + 1, np.int32)
    index[list(architecture.elements)] = np.arange(len(architecture.elements))
    species = jnp.asarray(index)[graph.atom_types]
    geometry = _geometry(params, graph, frac_coords, lattice, architecture)
    x = _first_layer(params["first"], geometry, graph, species, architecture)

    def middle(x, p):
        at = geometry, graph, species, architecture
        return _layer(p, x, *at, architecture.degrees), None

    x, _ = lax.scan(middle, x, params["middle"])
    last = params["last"]
    x = _layer(last, x, geometry, graph, species, architecture, range(1))
    site = x[0][:, 0] @ params["readout"] + jnp.asarray(params["reference"])[species]

    def sum_by_crystal(values):
        return jax.ops.segment_sum(values, graph.atom_crystal, len(lattice))

    return sum_by_crystal(site) / jnp.maximum(sum_by_crystal(jnp.ones_like(site)), 1)


def energies(model: GraphPotential, params, crystals: CrystalBatch):
    """Uncorrected energies [B] and statuses [B], see `batches.energies`."""
    capacity = model.capacity.for_width(crystals.mask.shape[1])
    return batches.energies(model._replace(capacity=capacity), params, crystals)

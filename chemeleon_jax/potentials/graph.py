"""Crystal graphs on the host, many crystals packed into arrays of fixed capacity.

NumPy only: it runs inside a callback, where JAX must not be called. It holds no state,
so any number of threads may build graphs at once.
"""

from typing import NamedTuple

import numpy as np
from pymatgen.optimization.neighbors import find_points_in_spheres

from chemeleon_jax.potentials.types import Status

EDGE_CUTOFF = 6.0  # Å, atoms closer than this exchange messages
BOND_CUTOFF = 3.0  # Å, edges shorter than this are bonds, which form angles
MAX_ELEMENT = 94  # the model knows hydrogen to plutonium

_MAX_IMAGES = 2e5  # atoms times periodic images; 20 ms of search
_MAX_BOXES = 2e4  # search boxes of the cutoff's size; 5 ms


class Capacity(NamedTuple):
    """Sizes of a packed graph. The last entry of each kind is reserved for padding.

    The default holds about 30 crystals of at most 20 atoms, or a single crystal of 64.
    """

    crystals: int = 64
    atoms: int = 512
    edges: int = 8192
    bonds: int = 2048
    angles: int = 16384


class Graph(NamedTuple):
    """Graphs of `crystals` - 1 crystals, packed.

    Axes: C crystals, A atoms, E edges, S bonds, P angles. Each edge is stored once,
    directed from `first` to `second`; messages run both ways. Padding hangs together
    among itself: the last atom, in the last crystal, is its own neighbour at a distance
    beyond the cutoff, so that it adds zeros and no NaN, also in a gradient.
    """

    atom_types: np.ndarray  # [A]     atomic number, 1..94
    atom_slot: np.ndarray  # [A]     position in the flattened batch, B*N for padding
    atom_crystal: np.ndarray  # [A]     0..C-1
    edge_first: np.ndarray  # [E]     atom
    edge_second: np.ndarray  # [E]     atom
    edge_image: np.ndarray  # [E, 3]  periodic image of the second atom
    bond_edge: np.ndarray  # [S]     edge that is also a bond
    angle_left: np.ndarray  # [P]     directed bond, s forwards or S + s backwards
    angle_right: np.ndarray  # [P]     directed bond that leaves the same atom


def empty_graph(capacity: Capacity) -> Graph:
    """A graph of padding alone."""
    c, a, e, s, p = capacity

    def full(size, value):
        return np.full(size, value, np.int32)

    image = np.zeros((e, 3), np.int32)
    image[:, 0] = 1
    return Graph(
        atom_types=full(a, 1),
        atom_slot=full(a, 0),
        atom_crystal=full(a, c - 1),
        edge_first=full(e, a - 1),
        edge_second=full(e, a - 1),
        edge_image=image,
        bond_edge=full(s, e - 1),
        angle_left=full(p, s - 1),
        angle_right=full(p, s - 1),
    )


class _Edges(NamedTuple):
    """Edges of one crystal, each once."""

    first: np.ndarray  # [e]
    second: np.ndarray  # [e]
    image: np.ndarray  # [e, 3]
    is_bond: np.ndarray  # [e]
    num_bonds: int
    num_angles: int


def screen(types, frac, lattice, *, max_element: int, max_edges: int) -> int:
    """Status of a crystal before any search: bounds the work and memory of one.

    Args:
      types: [n] atomic numbers.
      frac: [n, 3].
      lattice: [3, 3] in Å.
      max_element: highest atomic number.
      max_edges: refuses a crystal that must be expected to have twice as many pairs of
        atoms closer than 6 Å.
    """
    n = len(types)
    if n == 0 or not (np.isfinite(frac).all() and np.isfinite(lattice).all()):
        return Status.NOT_FINITE
    if types.min() < 1 or types.max() > max_element:
        return Status.UNKNOWN_ELEMENT
    volume = abs(np.linalg.det(lattice))
    sphere = 4 / 3 * np.pi * EDGE_CUTOFF**3
    if not n * n * sphere < 4 * max_edges * volume:
        return Status.TOO_DENSE
    inverse_spacing = np.linalg.norm(np.linalg.inv(lattice), axis=0)
    images = np.prod(2 * np.ceil(EDGE_CUTOFF * inverse_spacing) + 1)
    boxes = np.prod(np.abs(lattice).sum(0) / EDGE_CUTOFF + 2)
    return (
        Status.OK
        if n * images < _MAX_IMAGES and boxes < _MAX_BOXES
        else Status.BAD_CELL
    )


def _find_edges(types, frac, lattice, capacity: Capacity) -> tuple[int, _Edges | None]:
    """Status and edges of one crystal of n atoms: types [n], frac [n, 3], lattice."""
    n = len(types)
    status = screen(
        types, frac, lattice, max_element=MAX_ELEMENT, max_edges=capacity.edges
    )
    if status != Status.OK:
        return status, None

    coords = np.ascontiguousarray(frac @ lattice)
    first, second, image, distance = find_points_in_spheres(
        coords, coords, EDGE_CUTOFF, np.ones(3, np.int64), lattice, 1e-8
    )
    # Of an edge and its reverse keep one: upwards in atom index, or, between images of
    # one atom, upwards in the image. This also drops an atom's distance to itself.
    upwards = image @ np.array([1e6, 1e3, 1.0]) > 0
    once = np.where(first == second, upwards, first < second)
    first, second, image = first[once], second[once], image[once]
    is_bond = distance[once] < BOND_CUTOFF
    neighbours = np.bincount(first, minlength=n) + np.bincount(second, minlength=n)
    if neighbours.min() == 0:
        return Status.ISOLATED, None
    ends = np.concatenate([first[is_bond], second[is_bond]])
    degree = np.bincount(ends, minlength=n)
    num_angles = int((degree * (degree - 1)).sum())
    num_bonds = len(ends) // 2
    edges = _Edges(first, second, image, is_bond, num_bonds, num_angles)
    if not _fits((n, len(first), num_bonds, num_angles), capacity):
        return Status.TOO_DENSE, None
    return Status.OK, edges


def _fits(used, capacity: Capacity) -> bool:
    """Whether (atoms, edges, bonds, angles) leave the padding entry free."""
    return all(u < c for u, c in zip(used, capacity[1:], strict=True))


def _angles(first, second):
    """Ordered pairs of directed bonds that leave the same atom.

    Args:
      first: [s] one end of each bond.
      second: [s] the other.

    Returns:
      left, right: [p] indices of directed bonds: i is bond i forwards, s + i backwards.
    """
    centre = np.concatenate([first, second])
    order = np.argsort(centre, kind="stable")
    centre = centre[order]
    degree = np.bincount(centre)
    start = np.cumsum(degree) - degree  # first directed bond of each atom
    count = degree[centre]  # pairs per directed bond, itself included
    left = np.repeat(np.arange(len(centre)), count)
    within = np.arange(len(left)) - np.repeat(np.cumsum(count) - count, count)
    right = start[centre[left]] + within
    distinct = left != right
    return order[left[distinct]], order[right[distinct]]


def next_chunk(start, atom_types, frac_coords, lattice, mask, *, capacity: Capacity):
    """Graph of as many crystals as fit, from row `start` on, in order.

    Crystal `start + k` goes to slot k. A crystal without a graph leaves its slot empty.

    Args:
      start: first row.
      atom_types: [B, N] atomic numbers.
      frac_coords: [B, N, 3] in [0, 1).
      lattice: [B, 3, 3] in Å.
      mask: [B, N] True on real atoms.
      capacity: sizes of the graph.

    Returns:
      graph: `Graph`.
      status: [C] int32, a `Status`, per slot.
      end: int32, the row after the last one taken; greater than `start`.
    """
    atom_types, mask = np.asarray(atom_types), np.asarray(mask)
    frac_coords = np.asarray(frac_coords, np.float64)
    lattice = np.asarray(lattice, np.float64)
    batch, padded = atom_types.shape
    start = int(start)

    used = np.zeros(4, int)  # atoms, edges, bonds, angles
    status = np.zeros(capacity.crystals, np.int32)
    parts, atoms = [], []  # (edges, atom offset); (slots in the batch, slot)
    row = start
    while row < min(batch, start + capacity.crystals - 1):
        real = np.flatnonzero(mask[row])
        code, edges = _find_edges(
            atom_types[row, real], frac_coords[row, real], lattice[row], capacity
        )
        if edges is not None:
            size = (len(real), len(edges.first), edges.num_bonds, edges.num_angles)
            if not _fits(used + size, capacity):
                break
            parts.append((edges, used[0]))
            atoms.append((row * padded + real, row - start))
            used += size
        status[row - start] = code
        row += 1

    graph = empty_graph(capacity)
    graph.atom_slot[:] = batch * padded
    if parts:
        _fill(graph, parts, atoms, atom_types, capacity)
    return graph, status, np.int32(row)


def _fill(graph: Graph, parts, atoms, atom_types, capacity: Capacity):
    """Write the edges, bonds and angles of several crystals into an empty graph."""
    slots = np.concatenate([slot for slot, _ in atoms])
    graph.atom_slot[: len(slots)] = slots
    graph.atom_types[: len(slots)] = atom_types.reshape(-1)[slots]
    graph.atom_crystal[: len(slots)] = np.repeat(
        [k for _, k in atoms], [len(slot) for slot, _ in atoms]
    )
    first = np.concatenate([e.first + offset for e, offset in parts])
    second = np.concatenate([e.second + offset for e, offset in parts])
    graph.edge_first[: len(first)] = first
    graph.edge_second[: len(first)] = second
    graph.edge_image[: len(first)] = np.concatenate([e.image for e, _ in parts])

    bonds = np.flatnonzero(np.concatenate([e.is_bond for e, _ in parts]))
    graph.bond_edge[: len(bonds)] = bonds
    if len(bonds) == 0:
        return
    left, right = _angles(first[bonds], second[bonds])
    shift = capacity.bonds - len(bonds)  # backward bonds start at S, not at s
    graph.angle_left[: len(left)] = left + shift * (left >= len(bonds))
    graph.angle_right[: len(left)] = right + shift * (right >= len(bonds))

"""Crystal graphs on the host, many crystals packed into arrays of fixed capacity.

NumPy only: it runs inside a callback, where JAX must not be called. It holds no state,
so any number of threads may build graphs at once. `next_chunk` packs the graphs of any
potential, by the methods of its capacity; `Capacity` and `Graph` are CHGNet's.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
from pymatgen.optimization.neighbors import find_points_in_spheres

from chemeleon_jax.potentials.types import Status

EDGE_CUTOFF = 6.0  # Å, atoms closer than this exchange messages
BOND_CUTOFF = 3.0  # Å, edges shorter than this are bonds, which form angles
ELEMENTS = np.arange(1, 95)  # that the model knows: hydrogen to plutonium

_MAX_IMAGES = 2e5  # atoms times periodic images; 20 ms of search
_MAX_BOXES = 2e4  # search boxes of the cutoff's size; 5 ms


class Layout(Protocol):
    """How a potential packs graphs into arrays, and of what size."""

    crystals: int  # the last is reserved for padding, as with all other entries

    @property
    def sizes(self) -> tuple[int, ...]:
        """Entries of each kind that a graph has room for, atoms first."""
        ...

    def for_one(self, scale: float) -> "Layout":
        """Room for one crystal, `scale` times that of the default."""
        ...

    def find(self, types, frac, lattice) -> tuple[Status, Any, tuple[int, ...]]:
        """Status, edges and sizes of one crystal: types [n], frac [n, 3], lattice."""
        ...

    def empty(self) -> Any:
        """A graph of padding alone, with `atom_types`, `_slot`, `_crystal` [A]."""
        ...

    def fill(self, graph, pieces: list[tuple[Any, int]]) -> None:
        """Write the edges of crystals, each with its first atom, into a graph."""
        ...


class Capacity(NamedTuple):
    """Sizes of a packed graph. The last entry of each kind is reserved for padding.

    The default holds about 30 crystals of at most 20 atoms, or a single crystal of 64.
    """

    crystals: int = 64
    atoms: int = 512
    edges: int = 8192
    bonds: int = 2048
    angles: int = 16384

    @classmethod
    def for_width(cls, width: int) -> "Capacity":
        """The default, or what holds dense crystals of as many as `width` atoms.

        An atom of copper has 78 neighbours within 6 Å, 12 bonds and 132 angles; the
        default holds half as much again for each of 64 atoms.
        """
        scale = max(1, -(-width // 64))
        default = cls()
        return cls(default.crystals, *(scale * size for size in default.sizes))

    def for_one(self, scale: float) -> "Capacity":
        """Room for one crystal, `scale` times that of the default."""
        return Capacity(2, *(int(scale * size) for size in Capacity().sizes))

    @property
    def sizes(self):
        """Room for atoms, edges, bonds and angles."""
        return self[1:]

    def find(self, types, frac, lattice):
        """Status, edges and sizes of one crystal of n atoms."""
        status, first, second, image, distance = neighbours(
            types,
            frac,
            lattice,
            cutoff=EDGE_CUTOFF,
            elements=ELEMENTS,
            max_edges=self.edges,
        )
        if status != Status.OK:
            return status, None, ()
        # Of an edge and its reverse keep one: upwards in atom index, or, between images
        # of one atom, upwards in the image.
        upwards = image @ np.array([1e6, 1e3, 1.0]) > 0
        once = np.where(first == second, upwards, first < second)
        first, second, image = first[once], second[once], image[once]
        is_bond = distance[once] < BOND_CUTOFF
        ends = np.concatenate([first[is_bond], second[is_bond]])
        degree = np.bincount(ends, minlength=len(types))
        num_angles = int((degree * (degree - 1)).sum())
        sizes = len(types), len(first), len(ends) // 2, num_angles
        return status, _Edges(first, second, image, is_bond), sizes

    def empty(self):
        """A graph of padding alone."""
        c, a, e, s, p = self

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

    def fill(self, graph, pieces):
        """Write the edges, bonds and angles of several crystals into a graph."""
        first = np.concatenate([e.first + offset for e, offset in pieces])
        second = np.concatenate([e.second + offset for e, offset in pieces])
        graph.edge_first[: len(first)] = first
        graph.edge_second[: len(first)] = second
        graph.edge_image[: len(first)] = np.concatenate([e.image for e, _ in pieces])

        bonds = np.flatnonzero(np.concatenate([e.is_bond for e, _ in pieces]))
        graph.bond_edge[: len(bonds)] = bonds
        if len(bonds) == 0:
            return
        left, right = _angles(first[bonds], second[bonds])
        shift = self.bonds - len(bonds)  # backward bonds start at S, not at s
        graph.angle_left[: len(left)] = left + shift * (left >= len(bonds))
        graph.angle_right[: len(right)] = right + shift * (right >= len(bonds))


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


class _Edges(NamedTuple):
    """Edges of one crystal, each once."""

    first: np.ndarray  # [e]
    second: np.ndarray  # [e]
    image: np.ndarray  # [e, 3]
    is_bond: np.ndarray  # [e]


def screen(types, frac, lattice, *, cutoff: float, elements, max_edges: int) -> Status:
    """Status of a crystal before any search: bounds the work and memory of one.

    Args:
      types: [n] atomic numbers.
      frac: [n, 3].
      lattice: [3, 3] in Å.
      cutoff: of the search, Å.
      elements: atomic numbers that the potential knows.
      max_edges: refuses a crystal that must be expected to have twice as many pairs of
        atoms closer than the cutoff.
    """
    n = len(types)
    if n == 0 or not (np.isfinite(frac).all() and np.isfinite(lattice).all()):
        return Status.NOT_FINITE
    if not np.isin(types, elements).all():
        return Status.UNKNOWN_ELEMENT
    volume = abs(np.linalg.det(lattice))
    sphere = 4 / 3 * np.pi * cutoff**3
    if not n * n * sphere < 4 * max_edges * volume:
        return Status.TOO_DENSE
    inverse_spacing = np.linalg.norm(np.linalg.inv(lattice), axis=0)
    images = np.prod(2 * np.ceil(cutoff * inverse_spacing) + 1)
    boxes = np.prod(np.abs(lattice).sum(0) / cutoff + 2)
    searchable = n * images < _MAX_IMAGES and boxes < _MAX_BOXES
    return Status.OK if searchable else Status.BAD_CELL


def neighbours(types, frac, lattice, *, cutoff: float, **bounds):
    """Every pair of atoms closer than a cutoff, each in both directions.

    Args:
      types: [n] atomic numbers.
      frac: [n, 3].
      lattice: [3, 3] in Å.
      cutoff: Å.
      **bounds: of `screen`.

    Returns:
      The status, and, empty where it is not OK, first [e], second [e], the periodic
      image of the second [e, 3], and distance [e] in Å.
    """
    none = np.zeros(0, int)
    nothing = none, none, none.reshape(0, 3), none
    status = screen(types, frac, lattice, cutoff=cutoff, **bounds)
    if status != Status.OK:
        return status, *nothing
    coords = np.ascontiguousarray(frac @ lattice)
    first, second, image, distance = find_points_in_spheres(
        coords, coords, cutoff, np.ones(3, np.int64), lattice, 1e-8
    )
    apart = (first != second) | image.any(1)  # not an atom's distance to itself
    first, second = first[apart], second[apart]
    if np.bincount(first, minlength=len(types)).min() == 0:
        return Status.ISOLATED, *nothing
    return Status.OK, first, second, image[apart], distance[apart]


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


def next_chunk(
    start, atom_types, frac_coords, lattice, mask, *, capacity: Layout, small=None
):
    """Graph of as many crystals as fit, from row `start` on, in order.

    Crystal `start + k` goes to slot k. A crystal without a graph leaves its slot empty.
    The graph is a small one if its first crystal fits there.

    Args:
      start: first row.
      atom_types: [B, N] atomic numbers.
      frac_coords: [B, N, 3] in [0, 1).
      lattice: [B, 3, 3] in Å.
      mask: [B, N] True on real atoms.
      capacity: sizes of the graph.
      small: sizes of a smaller one, or None.

    Returns:
      graph: `Graph`, or what else `empty` of the chosen sizes makes.
      status: [C] int32, a `Status`, per slot.
      end: int32, the row after the last one taken; greater than `start`.
    """
    atom_types, mask = np.asarray(atom_types), np.asarray(mask)
    frac_coords = np.asarray(frac_coords, np.float64)
    lattice = np.asarray(lattice, np.float64)
    batch, padded = atom_types.shape
    row = start = int(start)
    chosen, used = small or capacity, np.zeros(len(capacity.sizes), int)
    status = np.zeros(capacity.crystals, np.int32)
    pieces, slots, crystals = [], [], []
    while row < min(batch, start + chosen.crystals - 1):
        real = np.flatnonzero(mask[row])
        code, edges, sizes = capacity.find(
            atom_types[row, real], frac_coords[row, real], lattice[row]
        )
        if edges is not None and not _fits(sizes, capacity):
            code, edges = Status.TOO_DENSE, None
        if edges is not None:
            if not pieces and not _fits(sizes, chosen):
                chosen = capacity
            if not _fits(used + sizes, chosen):
                break
            pieces.append((edges, used[0]))
            slots.append(row * padded + real)
            crystals.append(np.full(len(real), row - start))
            used += sizes
        status[row - start] = code
        row += 1

    graph = chosen.empty()
    graph.atom_slot[:] = batch * padded
    if pieces:
        atoms = slice(used[0])
        graph.atom_slot[atoms] = np.concatenate(slots)
        graph.atom_types[atoms] = atom_types.reshape(-1)[graph.atom_slot[atoms]]
        graph.atom_crystal[atoms] = np.concatenate(crystals)
        chosen.fill(graph, pieces)
    return graph, status[: chosen.crystals], np.int32(row)


def _fits(sizes, layout: Layout) -> bool:
    return bool((sizes < np.array(layout.sizes)).all())

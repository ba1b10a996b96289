"""Graphs of equivariant potentials: the edges that reach an atom, in blocks of eight.

A block's messages are added up before they are written to memory, so that it holds an
eighth of them. The last block of an atom is filled up with edges of no weight.
"""

from typing import NamedTuple

import numpy as np

from chemeleon_jax.potentials.graph import neighbours
from chemeleon_jax.potentials.types import Status

BLOCK = 8  # K, edges
ISOLATED = 6.0  # Å to the nearest neighbour; caesium has none within 5 Å


class BlockGraph(NamedTuple):
    """Graphs of several crystals, packed.

    Axes: C crystals, A atoms, M blocks, K edges of a block. The last atom, in the last
    crystal, is padding, and so is every edge that it sends.
    """

    atom_types: np.ndarray  # [A]        atomic number
    atom_slot: np.ndarray  # [A]        position in the flattened batch, B*N for padding
    atom_crystal: np.ndarray  # [A]        0..C-1
    receiver: np.ndarray  # [M]        atom, ascending
    sender: np.ndarray  # [M, K]     atom
    image: np.ndarray  # [M, K, 3]  periodic image of the sender


class BlockCapacity(NamedTuple):
    """Sizes of a packed graph, and what finds its edges.

    With the default sizes it holds about 28 crystals of at most 20 atoms.
    """

    elements: tuple[int, ...]  # atomic numbers that the potential knows
    cutoff: float  # Å
    crystals: int = 64
    atoms: int = 512
    blocks: int = 1024

    def for_width(self, width: int) -> "BlockCapacity":
        """This one, or what holds dense crystals of as many as `width` atoms.

        An atom of copper has 54 neighbours within 5 Å, seven blocks; 16 for each of 64
        atoms is the default.
        """
        scale = max(1, -(-width // 64))
        return self._replace(atoms=scale * self.atoms, blocks=scale * self.blocks)

    def for_one(self, scale: float) -> "BlockCapacity":
        """Room for one crystal, `scale` times that of the default."""
        default = BlockCapacity(self.elements, self.cutoff)
        sizes = (int(scale * size) for size in default.sizes)
        return BlockCapacity(self.elements, self.cutoff, 2, *sizes)

    @property
    def sizes(self):
        """Room for atoms and blocks."""
        return self.atoms, self.blocks

    def find(self, types, frac, lattice):
        """Status, blocks and sizes of one crystal of n atoms."""
        bounds = {"elements": self.elements, "max_edges": self.blocks * BLOCK // 2}
        status, receiver, sender, image, distance = neighbours(
            types, frac, lattice, cutoff=self.cutoff, **bounds
        )
        if status == Status.ISOLATED:
            status, receiver, sender, image, distance = neighbours(
                types, frac, lattice, cutoff=max(self.cutoff, ISOLATED), **bounds
            )
            near = distance < self.cutoff
            receiver, sender, image = receiver[near], sender[near], image[near]
        if status != Status.OK:
            return status, None, ()
        order = np.argsort(receiver, kind="stable")
        receiver, n = receiver[order], len(types)
        degree = np.bincount(receiver, minlength=n)
        blocks = -(-degree // BLOCK)  # of each atom
        place = np.arange(len(receiver)) - np.repeat(np.cumsum(degree) - degree, degree)
        place += BLOCK * (np.cumsum(blocks) - blocks)[receiver]
        senders = np.full(blocks.sum() * BLOCK, -1)  # -1 marks padding
        images = np.zeros((len(senders), 3), int)
        senders[place], images[place] = sender[order], image[order]
        found = np.repeat(np.arange(n), blocks), senders, images
        return status, found, (n, int(blocks.sum()))

    def empty(self):
        """A graph of padding alone."""
        last = self.atoms - 1
        return BlockGraph(
            atom_types=np.full(self.atoms, self.elements[0], np.int32),
            atom_slot=np.zeros(self.atoms, np.int32),
            atom_crystal=np.full(self.atoms, self.crystals - 1, np.int32),
            receiver=np.full(self.blocks, last, np.int32),
            sender=np.full((self.blocks, BLOCK), last, np.int32),
            image=np.zeros((self.blocks, BLOCK, 3), np.int32),
        )

    def fill(self, graph, pieces):
        """Write the blocks of several crystals into a graph."""
        receiver = np.concatenate([r + offset for (r, _, _), offset in pieces])
        last = self.atoms - 1
        sender = np.concatenate(
            [np.where(s < 0, last, s + offset) for (_, s, _), offset in pieces]
        )
        used = slice(len(receiver))
        graph.receiver[used] = receiver
        graph.sender[used] = sender.reshape(-1, BLOCK)
        image = np.concatenate([i for (_, _, i), _ in pieces])
        graph.image[used] = image.reshape(-1, BLOCK, 3)

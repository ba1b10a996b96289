"""Crystals that are the same, nearly the same, or new: made from known ones."""

import numpy as np
from pymatgen.core import Lattice, Structure


def disguised(structure: Structure, rng, *, supercell=True) -> Structure:
    """The same crystal: another origin, orientation, order of atoms, and cell."""
    other = structure.copy()
    if supercell:
        other.make_supercell(rng.permutation([2, 1, 1]))
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    rotation *= np.linalg.det(rotation)  # proper: a mirror image may be another crystal
    order = rng.permutation(len(other))
    return Structure(
        Lattice(other.lattice.matrix @ rotation),
        [other.species[i] for i in order],
        (other.frac_coords + rng.random(3))[order],
    )


def salt(anion: str, length: float) -> Structure:
    """A salt of caesium in the structure of CsCl; `length` in Å."""
    sites = [[0, 0, 0], [0.5, 0.5, 0.5]]
    return Structure(Lattice.cubic(length), ["Cs", anion], sites)


def distorted(structure: Structure, rng, amount: float) -> Structure:
    """A crystal moved and strained at random; by much, it is another one."""
    strain = np.eye(3) + amount / 3 * rng.normal(size=(3, 3))
    other = Structure(
        Lattice(structure.lattice.matrix @ strain),
        structure.species,
        structure.frac_coords,
    )
    moves = amount * rng.normal(size=(len(other), 3))
    return Structure(
        other.lattice,
        other.species,
        other.cart_coords + moves,
        coords_are_cartesian=True,
    )


def substituted(structure: Structure, rng) -> Structure:
    """A crystal of other elements: mostly a new one."""
    others = {
        e: int(np.clip(e.Z + rng.integers(-2, 3), 1, 94)) for e in structure.elements
    }
    species = [others[s] for s in structure.species]
    return Structure(structure.lattice, species, structure.frac_coords)


def mixed_set(known: list[Structure], count: int, seed: int) -> list[Structure]:
    """Copies of known crystals, distorted ones, new ones, and copies among themselves.

    They come in the shares 30, 20, 30 and 20 %.
    """
    rng = np.random.default_rng(seed)
    picked = [known[i] for i in rng.integers(len(known), size=count)]
    made = [disguised(s, rng) for s in picked[: count * 3 // 10]]
    near = picked[count * 3 // 10 : count // 2]
    made += [distorted(s, rng, rng.choice([0.03, 0.1, 0.2])) for s in near]
    made += [substituted(s, rng) for s in picked[count // 2 : count * 4 // 5]]
    while len(made) < count:
        made.append(disguised(made[rng.integers(len(made))], rng, supercell=False))
    return [made[i] for i in rng.permutation(count)]

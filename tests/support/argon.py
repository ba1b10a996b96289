"""A potential of few numbers, by name: `ase:argon:lennard_jones`."""

from ase.calculators.lj import LennardJones


def lennard_jones():
    return LennardJones(sigma=3.4, epsilon=0.0104, rc=8.5, smooth=True)

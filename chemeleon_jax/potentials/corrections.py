"""MP2020: what the Materials Project adds to DFT energies, by rule.

Wang et al., Scientific Reports 11, 15496 (2021): an energy for each anion, and one for
each transition metal in an oxide or fluoride, where energies with and without U are
mixed. Figures and rules as in `MaterialsProject2020Compatibility` of pymatgen, strict
anions "require_bound"; `tools/check_corrections.py` compares them on the embedded
crystals. CHGNet's energies contain the corrections; those of SevenNet and Nequix, which
learnt uncorrected energies of the same calculations, need them added.

NumPy and pymatgen on the host, and a callback.
"""

import warnings
from functools import lru_cache
from math import gcd

import jax
import jax.numpy as jnp
import numpy as np
from pymatgen.core import Composition, Element, Lattice
from pymatgen.optimization.neighbors import find_points_in_spheres

from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.devices.host import call_host
from chemeleon_jax.potentials.types import Status

SCHEME = "MP2020"
UNCORRECTED = "uncorrected"  # behind a name, after a colon; the scheme of such energies
# eV per atom of the anion.
OXIDE, PEROXIDE, SUPEROXIDE, OZONIDE = -0.687, -0.465, -0.161, 0.0
SULFIDE = -0.503
ANIONS = {
    "Br": -0.534,
    "I": -0.379,
    "Se": -0.472,
    "Si": 0.071,
    "Sb": -0.192,
    "Te": -0.422,
    "H": -0.179,
    "N": -0.361,
    "F": -0.462,
    "Cl": -0.614,
}
# eV per atom of the metal, in compounds whose most electronegative element is O or F.
METALS = {
    "V": -1.7,
    "Cr": -1.999,
    "Mn": -1.668,
    "Fe": -2.256,
    "Co": -1.638,
    "Ni": -2.541,
    "W": -4.438,
    "Mo": -3.202,
}
_TOLERANCE = 1.05  # of the bond lengths below, Å
_HYDROXIDE, _SUPEROXIDE, _PEROXIDE = 0.93, 1.35, 1.49  # O-H, O-O, O-O
_SHELL, _LIGANDS, _REACH = 0.4, 4, 8.0  # of sulphur: Å, atoms, Å
_MAX_SITES = 20  # of a reduced formula whose oxidation states are guessed
_O, _S, _H = 8, 16, 1


def _electronegativities() -> np.ndarray:
    """Pauling's, [119]; 0 where there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen's about helium
        found = [0.0] + [Element.from_Z(z).X for z in range(1, 119)]
    return np.nan_to_num(found)


_X = _electronegativities()


def mp2020_correction(atom_types, frac_coords, lattice) -> float:
    """Correction of one crystal, eV/atom.

    Args:
      atom_types: [n] atomic numbers.
      frac_coords: [n, 3].
      lattice: [3, 3] in Å.
    """
    elements, counts = np.unique(atom_types, return_counts=True)
    if len(elements) == 1:
        return 0.0
    divisor = gcd(*counts.tolist())
    formula = zip(elements.tolist(), (counts // divisor).tolist(), strict=True)
    total = divisor * _by_composition(tuple(formula))
    amount = dict(zip(elements.tolist(), counts.tolist(), strict=True))
    if _O in amount:
        total += amount[_O] * _oxygen(atom_types, frac_coords, lattice)
    if _S in amount and not _is_sulfate(atom_types, frac_coords, lattice):
        total += amount[_S] * SULFIDE
    return total / len(atom_types)


@lru_cache(maxsize=65536)
def _by_composition(formula: tuple[tuple[int, int], ...]) -> float:
    """What does not depend on the structure, eV per formula unit ((Z, atoms), ...)."""
    amount = {Element.from_Z(z).symbol: n for z, n in formula}
    most = Element.from_Z(max(formula, key=lambda item: _X[item[0]])[0]).symbol
    metals = METALS if most in ("O", "F") else {}
    total = sum(amount[el] * metals[el] for el in amount if el in metals)
    if any(el in ANIONS for el in amount):
        states = _oxidation_states(amount)
        for el in amount:
            state = states.get(el, 0)
            # Where no state below zero is known, the most electronegative is the anion.
            if el in ANIONS and (state <= -1 or (state >= 0 and el == most)):
                total += amount[el] * ANIONS[el]
    return total


def _oxidation_states(amount: dict[str, int]) -> dict[str, float]:
    """The likeliest oxidation state of each element; empty if no guess is neutral."""
    if sum(amount.values()) > _MAX_SITES:
        return {}
    guesses = Composition(amount).oxi_state_guesses(max_sites=-_MAX_SITES)
    return guesses[0] if guesses else {}


def _oxygen(atom_types, frac_coords, lattice) -> float:
    """Correction per oxygen atom, by the bonds between them."""
    cell, oxygen = Lattice(lattice), frac_coords[atom_types == _O]
    hydrogen = frac_coords[atom_types == _H]
    if len(hydrogen):
        bonds = cell.get_all_distances(oxygen, hydrogen)
        if (bonds < _TOLERANCE * _HYDROXIDE).any():
            return OXIDE
    distance = cell.get_all_distances(oxygen, oxygen)
    np.fill_diagonal(distance, np.inf)
    bonds = (distance < _TOLERANCE * _SUPEROXIDE).sum(1)
    if bonds.any():
        return OZONIDE if bonds.max() > 1 else SUPEROXIDE
    return PEROXIDE if (distance < _TOLERANCE * _PEROXIDE).any() else OXIDE


def _is_sulfate(atom_types, frac_coords, lattice) -> bool:
    """Whether a sulphur atom is bound to what is more electronegative than itself."""
    coords = np.ascontiguousarray(frac_coords @ lattice)
    sulphur = np.ascontiguousarray(coords[atom_types == _S])
    atom, other, _, distance = find_points_in_spheres(
        coords, sulphur, _REACH, np.ones(3, np.int64), lattice, 1e-8
    )
    for i in range(len(sulphur)):
        around = (atom == i) & (distance > 1e-8)
        order = np.argsort(distance[around], kind="stable")[:_LIGANDS]
        near, ligand = distance[around][order], _X[atom_types[other[around][order]]]
        if len(near) and ligand[near < near[0] + _SHELL].mean() > _X[_S]:
            return True
    return False


def _host_corrections(status, atom_types, frac_coords, lattice, mask):
    """Corrections [B], eV/atom; 0 where the status is not OK."""
    frac_coords, lattice = frac_coords.astype(np.float64), lattice.astype(np.float64)
    correction = np.zeros(len(status), np.float32)
    for row in np.flatnonzero(status == Status.OK):
        real = mask[row]
        correction[row] = mp2020_correction(
            atom_types[row, real], frac_coords[row, real], lattice[row]
        )
    return correction


def corrected(energies):
    """Energies with the MP2020 corrections added; jits.

    The correction is a constant to a gradient.

    Args:
      energies: of a `Potential`, uncorrected.
    """

    def with_corrections(crystals: CrystalBatch):
        energy, status = energies(crystals)
        arrays = crystals.atom_types, crystals.frac_coords, crystals.lattice
        correction = call_host(
            _host_corrections,
            jax.ShapeDtypeStruct(status.shape, np.float32),
            *(jax.lax.stop_gradient(jnp.asarray(x)) for x in (status, *arrays)),
            jnp.asarray(crystals.mask),
        )
        return energy + correction, status

    return with_corrections

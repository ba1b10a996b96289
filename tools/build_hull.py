"""How chemeleon_jax/assets/hull.npz was made: CHGNet energies of all embedded crystals.

Pure elements come in addition from the `matcalc` 0.3.3 wheel (BSD; PBE ground states of
89 elements from MatPES). Their structures alone are used: every energy is CHGNet's own.

Run by `tools.build_assets` after the crystals and the weights; 2 minutes on 2 cores.
"""

import gzip
import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
from pymatgen.core import Structure
from scipy.stats import spearmanr

from chemeleon_jax.data.crystals import from_structures
from chemeleon_jax.data.dataset import load_dataset
from chemeleon_jax.potentials.hull import (
    Hull,
    composition_counts,
    evaluate,
    save_hull,
)
from chemeleon_jax.potentials.loading import load_potential
from chemeleon_jax.potentials.types import Status

WHEEL = "matcalc-0.3.3-py3-none-any.whl"
ELEMENTS = "matcalc/elemental_refs/MatPES-PBE-Element-Refs.json.gz"
DECIMALS = 5  # of an energy: what another machine agrees on, but for a rounding


def element_structures(packages: Path) -> list[Structure]:
    """The ground state of each element, from the wheel in folder `packages`."""
    with zipfile.ZipFile(packages / WHEEL) as wheel:
        records = json.loads(gzip.decompress(wheel.read(ELEMENTS)))
    return [Structure.from_dict(records[e]["structure"]) for e in sorted(records)]


def build_hull(packages: Path, out: Path) -> None:
    """Evaluate crystals and elements, write the hull to the file `out`, and report."""
    potential = load_potential("chgnet")
    dataset = load_dataset("mp_mini")
    elements = from_structures(element_structures(packages))
    counts, energies = [], []
    for crystals in (dataset.crystals, elements):
        energy, status = evaluate(potential, crystals)
        for code, number in zip(*np.unique(status, return_counts=True), strict=True):
            print(f"{number:6d} crystals: {Status(code).name.lower()}")
        energy = np.where(status == Status.OK, energy, np.nan).astype(np.float64)
        energies.append(np.round(energy, DECIMALS))
        counts.append(composition_counts(crystals.atom_types))
    hull = Hull(np.concatenate(counts), np.concatenate(energies), potential.digest)
    save_hull(out, hull)
    print(f"{len(hull)} compositions")
    print(f'HULL_SHA256 = "{hashlib.sha256(out.read_bytes()).hexdigest()}"')
    report(hull, dataset, counts[0], energies[0])


def report(hull: Hull, dataset, counts, energies) -> None:
    """Print how CHGNet compares with the DFT labels of the data set."""
    pure = (hull.fractions == 1).any(1)
    reference = np.full(counts.shape[1], np.nan)
    reference[hull.fractions[pure].argmax(1)] = hull.energies[pure]
    fractions = counts / counts.sum(1, keepdims=True)
    formation = energies - np.nansum(fractions * reference, 1)
    above = hull.e_above_hull(dataset.crystals.atom_types, energies)
    for name, values in (("formation_energy", formation), ("e_above_hull_dft", above)):
        labels = dataset.labels[name]
        known = np.isfinite(labels) & np.isfinite(values)
        mae = np.abs(values - labels)[known].mean()
        rank = spearmanr(values[known], labels[known]).statistic
        print(
            f"{name}: {known.sum()} labels, MAE {mae:.3f} eV/atom, Spearman {rank:.3f}"
        )

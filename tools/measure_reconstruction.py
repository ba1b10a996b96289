"""How many unseen crystals a VAE gives back.

    python tools/measure_reconstruction.py mini:vae
    python tools/measure_reconstruction.py mini:vae --files seekpath/*/POSCAR*

Encodes the test split of mp_mini (posterior mean), decodes, and asks pymatgen's
`StructureMatcher` with its defaults, and CHGNet for the energy above the hull; then
again with noise on the latents, which says how much of a denoiser's error the decoder
mends. Of files, takes what is not in mp_mini and has no more atoms than its crystals.
"""

import argparse

import jax
import numpy as np
from build_crystals import canonicalise
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

from chemeleon_jax.data.crystals import from_structures, to_structures
from chemeleon_jax.data.dataset import MAX_ATOMS, load_dataset
from chemeleon_jax.models.loading import load_checkpoint
from chemeleon_jax.models.vae import make_vae, to_crystals
from chemeleon_jax.potentials.hull import load_hull
from chemeleon_jax.potentials.loading import load_potential
from chemeleon_jax.rewards.stability import METASTABLE

KEY = jax.random.key(0)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("vae", help="mini:vae, hub:NAME or a model directory")
    parser.add_argument("--files", nargs="+", help="that pymatgen reads")
    args = parser.parse_args()
    checkpoint = load_checkpoint(args.vae)
    vae = make_vae(checkpoint.config["vae"])
    variables = {"params": checkpoint.params["vae"]}
    known = load_dataset("mp_mini").select("test").crystals
    if args.files:
        known = from_structures(read_unknown(args.files), MAX_ATOMS)

    structures, matcher = to_structures(known), StructureMatcher()
    potential = load_potential("chgnet")
    hull, energies = load_hull(potential), jax.jit(potential.energies)

    @jax.jit
    def reconstruct(crystals, noise):
        _, posterior = vae.apply(variables, crystals, method="encode")
        atoms = crystals.mask[..., None]
        std = posterior.mean.std(where=atoms)
        z = posterior.mean + noise * std * jax.random.normal(KEY, posterior.mean.shape)
        decoded = vae.apply(variables, z, crystals.mask, method="decode")
        return to_crystals(decoded, crystals.mask)

    print(f"{len(structures)} crystals; energies above the hull in eV/atom")
    print("noise / latent std   matched   types right   median energy   metastable")
    for noise in (0.0, 0.1, 0.2, 0.3):
        found = jax.device_get(reconstruct(known, noise))
        matched = [
            b is not None and matcher.fit(a, b)
            for a, b in zip(structures, to_structures(found), strict=True)
        ]
        types_right = (found.atom_types == known.atom_types)[known.mask]
        energy, status = jax.device_get(energies(found))
        above = hull.e_above_hull(
            found.atom_types, np.where(status == 0, energy, np.nan)
        )
        shares = f"{np.mean(matched):10.2%}{types_right.mean():14.2%}"
        metastable = np.mean(above <= METASTABLE)
        print(
            f"{noise:18.1f}{shares}{np.nanmedian(above):16.2f}{metastable:13.1%}",
            flush=True,
        )


def read_unknown(files: list[str]) -> list[Structure]:
    """Crystals of files as the data set writes them down, without those it has."""
    data_set: dict[str, list[Structure]] = {}
    for structure in to_structures(load_dataset("mp_mini").crystals):
        data_set.setdefault(structure.reduced_formula, []).append(structure)
    matcher, unknown = StructureMatcher(), []
    for file in files:
        structure = canonicalise(Structure.from_file(file))
        alike = [*data_set.get(structure.reduced_formula, []), *unknown]
        if len(structure) <= MAX_ATOMS and not any(
            matcher.fit(structure, other) for other in alike
        ):
            unknown.append(structure)
    print(f"{len(unknown)} of {len(files)} crystals are not in mp_mini")
    return unknown


if __name__ == "__main__":
    main()

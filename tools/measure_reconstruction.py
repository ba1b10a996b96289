"""How many unseen crystals a VAE gives back.

    python tools/measure_reconstruction.py mini:vae

Encodes the test split of mp_mini (posterior mean), decodes, and asks pymatgen's
`StructureMatcher` with its defaults.
"""

import argparse

import jax
import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher

from chemeleon_jax import checkpoints
from chemeleon_jax.crystals import to_structures
from chemeleon_jax.data import load_dataset
from chemeleon_jax.models.vae import make_vae, to_crystals


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("vae", help="mini:vae, hub:NAME or a model directory")
    checkpoint = checkpoints.load(parser.parse_args().vae)
    vae = make_vae(checkpoint.config["vae"])
    variables = {"params": checkpoint.params["vae"]}
    known = load_dataset("mp_mini").select("test").crystals

    @jax.jit
    def reconstruct(crystals):
        _, posterior = vae.apply(variables, crystals, method="encode")
        decoded = vae.apply(variables, posterior.mean, crystals.mask, method="decode")
        return to_crystals(decoded, crystals.mask)

    found = jax.device_get(reconstruct(known))
    matcher = StructureMatcher()
    matched = [
        b is not None and matcher.fit(a, b)
        for a, b in zip(to_structures(known), to_structures(found), strict=True)
    ]
    types_right = (found.atom_types == known.atom_types)[known.mask]
    print(f"{len(matched)} test crystals")
    print(f"matched           {100 * np.mean(matched):6.2f} %")
    print(f"atom types right  {100 * types_right.mean():6.2f} %")


if __name__ == "__main__":
    main()

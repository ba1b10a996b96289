"""Chemeleon2's own reward, where its code is at hand, of what this project has at hand.

Its references, phase diagram and potential come from the network. Here the references
are the embedded ones, the phase diagram is of the embedded hull, the VAE has random
weights, and the potential is CHGNet by its own package (0.4, in the place of MACE,
which has more weights and takes longer).
"""

import gzip
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
from monty.serialization import dumpfn
from pymatgen.analysis.phase_diagram import PatchedPhaseDiagram, PDEntry
from pymatgen.core import Composition, Element, Structure

from chemeleon_jax.data.crystals import to_structures
from chemeleon_jax.data.dataset import load_dataset
from chemeleon_jax.potentials.hull import ASSETS, HULLS, read_hull

WEIGHTS = {  # configs/experiment/mp_20/rl_dng.yaml: weight, normalisation
    "CreativityReward": (1.0, None),
    "EnergyReward": (1.0, "norm"),
    "StructureDiversityReward": (0.1, "norm"),
    "CompositionDiversityReward": (1.0, "norm"),
}


def build(vae: Any, folder: Path) -> Any:
    """Its `ReinforceReward` for de novo generation.

    Args:
      vae: its VAE module, whose features both diversities compare.
      folder: an empty one, for the files that it reads.
    """
    _stand_in_for_downloads(vae)
    from src.rl_module import components, reward
    from src.utils import metrics

    names = ("structures.json.gz", "diagram.pkl.gz", "structure.pt", "composition.pt")
    structures, diagram, *features = (folder / name for name in names)
    dumpfn(to_structures(load_dataset("mp_mini").crystals), structures)
    with gzip.open(diagram, "wb") as file:
        pickle.dump(phase_diagram(), file)
    _save_features(vae, features)
    metrics.PATH_REFERENCE_STRUCTURES["mp-20"] = structures
    metrics.PATH_PHASE_DIAGRAM["mp-all"] = diagram
    metrics.PATH_REFERENCE_STRUCTURE_FEATURES["mp"] = features[0]
    metrics.PATH_REFERENCE_COMPOSITION_FEATURES["mp"] = features[1]
    parts = [
        getattr(components, name)(weight=weight, normalize_fn=normalize)
        for name, (weight, normalize) in WEIGHTS.items()
    ]
    return reward.ReinforceReward(parts, normalize_fn="std")


def score(reward: Any, structures: list[Structure]) -> np.ndarray:
    """Rewards [B] of structures, from its batch on, as in its `compute_rewards`."""
    from src.data.dataset_util import pmg_structure_to_pyg_data
    from src.data.schema import CrystalBatch

    crystals = [pmg_structure_to_pyg_data(structure) for structure in structures]
    return reward(CrystalBatch.from_data_list(crystals)).numpy()


def phase_diagram() -> PatchedPhaseDiagram:
    """Of the embedded hull of CHGNet."""
    hull = read_hull(ASSETS / HULLS["chgnet"][0])
    entries = []
    for counts, energy in zip(hull.counts, hull.energies, strict=True):
        atoms = {
            Element.from_Z(int(z) + 1): int(counts[z]) for z in counts.nonzero()[0]
        }
        entries.append(PDEntry(Composition(atoms), energy * counts.sum()))
    return PatchedPhaseDiagram(entries)


def _stand_in_for_downloads(vae) -> None:
    from src.utils import checkpoint
    from src.vae_module.vae_module import VAEModule

    checkpoint.get_checkpoint = lambda name: name
    VAEModule.load_from_checkpoint = lambda *args, **kwargs: vae

    def chgnet(**kwargs):
        from chgnet.model.dynamics import CHGNetCalculator

        return CHGNetCalculator(use_device="cpu", check_cuda_mem=False)

    calculators: Any = types.ModuleType("mace.calculators")
    calculators.mace_mp = chgnet
    sys.modules |= {"mace": types.ModuleType("mace"), "mace.calculators": calculators}


def _save_features(vae, files: list[Path]) -> None:
    """Random ones, as many as there are references: what they are costs no time."""
    import torch

    count = len(load_dataset("mp_mini").crystals.mask)
    embedding = vae.encoder.atom_type_embedder.weight.shape[1]
    for width, file in zip((8, embedding), files, strict=True):
        torch.save(torch.randn(count, width), file)

"""How tests/fixtures/nequix.npz was made: checkpoints of random weights, and numbers.

pip install nequix==0.4.5
python -m tools.record_nequix tests/fixtures/nequix.npz
"""

import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
from nequix.calculator import NequixCalculator
from nequix.model import Nequix, save_model

from chemeleon_jax.data.crystals import take, to_structures
from chemeleon_jax.data.dataset import load_dataset

NUM_CRYSTALS, SEED = 12, 7
COMMON = {
    "cutoff": 5.0,
    "radial_basis_size": 8,
    "radial_mlp_size": 8,
    "radial_mlp_layers": 2,
    "mlp_init_scale": 4.0,
    "shift": -0.1,
    "avg_n_neighbors": 30.0,
}
MODELS = {
    "norm": COMMON
    | {
        "hidden_irreps": "8x0e + 4x1o + 2x2e + 2x3o",
        "lmax": 3,
        "n_layers": 4,
        "radial_polynomial_p": 6.0,
        "index_weights": False,
        "layer_norm": True,
        "scale": 1.3,
    },
    "indexed": COMMON
    | {
        "hidden_irreps": "8x0e + 4x1o + 2x2e",
        "lmax": 2,
        "n_layers": 3,
        "radial_polynomial_p": 2.0,
        "index_weights": True,
        "layer_norm": False,
        "scale": 0.7,
    },
}


def main(out: str) -> None:
    """Record checkpoints, energies, forces and stresses in the file `out`."""
    crystals = load_dataset("mp_mini").crystals
    small = np.flatnonzero(crystals.mask.sum(1) <= 8)
    rng = np.random.default_rng(SEED)
    crystals = take(crystals, np.sort(rng.choice(small, NUM_CRYSTALS, replace=False)))
    elements = np.unique(crystals.atom_types[crystals.mask]).tolist()
    arrays = {
        "atom_types": crystals.atom_types[:, :8].astype(np.uint8),
        "frac_coords": crystals.frac_coords[:, :8],
        "lengths": crystals.lengths,
        "angles": crystals.angles,
    }
    for seed, (name, config) in enumerate(MODELS.items()):
        reference = rng.uniform(-8, -1, len(elements))
        model = Nequix(
            jax.random.key(seed),
            n_species=len(elements),
            atom_energies=reference.tolist(),
            **config,
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.nqx"
            save_model(str(path), model, config | {"atomic_numbers": elements})
            content = path.read_bytes()
            calculator = NequixCalculator(model_path=str(path), use_kernel=False)
            energy, forces, stress = evaluate(calculator, to_structures(crystals))
        arrays |= {
            f"model_{name}": np.frombuffer(content, np.uint8),
            f"energy_{name}": energy,
            f"forces_{name}": forces,
            f"stress_{name}": stress,
        }
    np.savez_compressed(out, **arrays)


def evaluate(calculator, structures):
    """Energies [B] eV/atom, forces [B, 8, 3] eV/Å, stresses [B, 3, 3] eV/Å^3."""
    energy = np.zeros(len(structures), np.float32)
    forces = np.zeros((len(structures), 8, 3), np.float32)
    stress = np.zeros((len(structures), 3, 3), np.float32)
    for k, structure in enumerate(structures):
        atoms = structure.to_ase_atoms()
        atoms.calc = calculator
        energy[k] = atoms.get_potential_energy() / len(atoms)
        forces[k, : len(atoms)] = atoms.get_forces()
        stress[k] = atoms.get_stress(voigt=False)
    return energy, forces, stress


if __name__ == "__main__":
    main(sys.argv[1])

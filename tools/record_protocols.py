"""How tests/fixtures/protocols.npz was made: numbers of the packages themselves.

    python -m tools.record_protocols prepare DATA --samples=SAMPLES
    python -m tools.record_protocols record DATA --lemat=A --mattergen=B --hasher=C
    python -m tools.record_protocols fixture DATA tests/fixtures/protocols.npz

The directories hold checkouts of LeMaterial/lemat-genbench, microsoft/mattergen and
LeMaterial/material-hasher. Of their dependencies lmdb, cachetools and pydantic are
needed beside this package's own; modules that only models and downloads need are left
empty. Data sets and potentials of theirs are not used: novelty, distributions and hulls
are of the known crystals in DATA, energies this package's.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from pymatgen.core import Structure

from tools.protocol_packages import JUDGES, read, record, structures_of

NUM_KNOWN, NUM_SAMPLED, SEED = 1000, 130, 5
NUM_TAKEN, NUM_COPIES, NUM_SWAPPED = 35, 20, 15  # of the known ones, of samples
RELAX_STEPS = 25


NAMES = {  # ours: theirs
    "lemat": {
        "uniqueness_score": "Uniqueness",
        "novelty_score": "novelty_score",
        "stable_ratio": "stable_ratio",
        "metastable_ratio": "metastable_ratio",
        "mean_e_above_hull": "mean_e_above_hull",
        "stable_ratio:chgnet": "stable_ratio_chgnet",
        "metastable_ratio:sevennet-l3i5": "metastable_ratio_sevennet-l3i5",
        "mean_relaxation_rmse": "mean_relaxation_RMSE",
        "sun_rate": "sun_rate",
        "msun_rate": "msun_rate",
        "combined_sun_msun_rate": "combined_sun_msun_rate",
        "js_space_group": "SpaceGroup",
        "js_crystal_system": "CrystalSystem",
        "js_composition": "Composition",
        "js_composition_counts": "CompositionCounts",
        "js_average": "Average_Jensen_Shannon_Distance",
        "mmd_volume": "Volume",
        "mmd_density": "Density(g/cm^3)",
        "mmd_atom_density": "Density(atoms/A^3)",
        "mmd_average": "Average_MMD",
        "element_vendi": "element_diversity_vendi_score",
        "space_group_vendi": "spacegroup_diversity_vendi_score",
        "site_number_vendi": "site_number_diversity_vendi_score",
        "element_coverage": "element_coverage_ratio",
        "space_group_coverage": "space_group_coverage",
        "physical_size_entropy": "avg_norm_shannon_entropy",
        "hhi_production": "hhiproduction_mean",
        "hhi_reserve": "hhireserve_mean",
    },
    "mattergen": {
        name: name
        for name in (
            "frac_unique_structures",
            "frac_novel_structures",
            "frac_novel_unique_structures",
            "avg_structure_validity",
            "avg_comp_validity",
            "avg_structure_comp_validity",
            "precision",
            "recall",
            "frac_unique_systems",
            "frac_novel_systems",
            "frac_successful_jobs",
            "frac_stable_structures",
            "frac_novel_unique_stable_structures",
            "avg_energy_above_hull_per_atom",
            "avg_rmsd_from_relaxation",
        )
    },
}


# ------------------------------------------------------------------ the crystals


def prepare(data: Path, samples: Path) -> None:
    """200 crystals, what becomes of them, and known ones, with their energies."""
    from chemeleon_jax.data.crystals import from_structures, to_structures
    from chemeleon_jax.data.dataset import load_dataset
    from chemeleon_jax.data.readers.files import read_crystals
    from chemeleon_jax.evaluation.relaxation import relax_structures
    from chemeleon_jax.potentials.hull import evaluate
    from chemeleon_jax.potentials.loading import load_potential

    rng = np.random.default_rng(SEED)
    every = to_structures(load_dataset("mp_mini").crystals)
    rows = known_rows(every, rng)
    known = [every[i] for i in rows]
    covered = set().union(*(s.composition.elements for s in known))
    sampled = [i.structure for i in read_crystals(samples) if i.structure is not None]
    sampled = [s for s in sampled if covered.issuperset(s.composition.elements)]
    chosen = sampled[:NUM_SAMPLED]
    taken = [known[i] for i in rng.choice(len(known), NUM_TAKEN, replace=False)]
    copies = [chosen[i].copy() for i in rng.choice(NUM_SAMPLED, NUM_COPIES, False)]
    for copy in copies:
        copy.perturb(0.05, seed=SEED)
    chosen += taken + copies + swapped([*known, *chosen], rng)
    potentials = {name: load_potential(name) for name in JUDGES}
    relaxed = relax_structures(
        chosen, potential=potentials[JUDGES[0]], max_steps=RELAX_STEPS, max_force=0.02
    )
    after = [result.structure for result in relaxed]
    moved = [deformed(s, np.random.default_rng(i)) for i, s in enumerate(chosen)]
    found = {"structures": chosen, "relaxed": after, "known": known}
    out = {"known_rows": rows}
    out |= {name: [s.as_dict() for s in some] for name, some in found.items()}
    out["deformed"] = [s.as_dict() for s in moved]
    for name, potential in potentials.items():
        for kind, some in found.items():
            energies, _ = evaluate(potential, from_structures(some, 20), batch_size=64)
            out[f"energy:{kind}:{name}"] = energies.astype(float).tolist()
        hull = hull_of(out, name)
        for kind in ("structures", "relaxed"):
            types = from_structures(found[kind], 20).atom_types
            above = hull.e_above_hull(types, out[f"energy:{kind}:{name}"])
            out[f"above:{kind}:{name}"] = above.tolist()
    (data / "set.json").write_text(json.dumps(out))


def known_rows(structures: list[Structure], rng) -> list[int]:
    """Some of mp_mini: all its elements, and others made of them."""
    elements = {i for i, s in enumerate(structures) if len(s.composition) == 1}
    covered = {structures[i].composition.elements[0] for i in elements}
    some = rng.choice(len(structures), NUM_KNOWN, replace=False).tolist()
    return [
        i
        for i in sorted({*some, *elements})
        if covered.issuperset(structures[i].composition.elements)
    ]


def deformed(structure: Structure, rng) -> Structure:
    """A crystal as after a relaxation: strained, not rotated, its atoms moved."""
    strain = rng.normal(0, 0.02, (3, 3))
    matrix = structure.lattice.matrix @ (np.eye(3) + (strain + strain.T) / 2)
    frac = structure.frac_coords + rng.normal(0, 0.01, (len(structure), 3))
    return Structure(matrix, structure.species, frac)


def hull_of(crystals: dict, name: str):
    """The hull of the known crystals by one potential."""
    from chemeleon_jax.data.crystals import from_structures
    from chemeleon_jax.potentials.hull import Hull, composition_counts

    batch = from_structures(structures_of(crystals["known"]), 20)
    energies = crystals[f"energy:known:{name}"]
    return Hull(composition_counts(batch.atom_types), energies)


def swapped(structures, rng) -> list[Structure]:
    """Crystals of two like metals, and the same with the two changing places."""
    from chemeleon_jax.evaluation.protocols.disorder import may_substitute

    pairs = []
    for structure in structures:
        elements = structure.composition.elements
        for one in elements:
            for other in elements:
                alike = one.Z < other.Z and may_substitute(one.Z, other.Z)
                even = structure.composition[one] == structure.composition[other]
                if alike and even and len(structure) <= 12:
                    pairs.append((structure, one, other))
    picked = [pairs[i] for i in rng.choice(len(pairs), NUM_SWAPPED, replace=False)]
    out = []
    for structure, one, other in picked:
        copy = structure.copy()
        copy.replace_species({one: other, other: one})
        out.append(copy)
    return out


# ------------------------------------------------------------------- the fixture


def fixture(data: Path, out: Path) -> None:
    """What the tests need, as arrays: crystals, and the packages' numbers as JSON."""
    from chemeleon_jax.data.crystals import to_structures
    from chemeleon_jax.data.dataset import load_dataset
    from chemeleon_jax.evaluation.protocols.lemat_checks import space_group_number

    crystals, recorded = read(data / "set.json"), read(data / "record.json")
    arrays = {}
    for kind in ("structures", "relaxed", "deformed"):
        some = structures_of(crystals[kind])
        padding = [20 - len(s) for s in some]
        arrays |= {
            f"{kind}:matrix": np.array([s.lattice.matrix for s in some]),
            f"{kind}:frac": np.array(
                [
                    np.pad(s.frac_coords, ((0, n), (0, 0)))
                    for s, n in zip(some, padding, strict=True)
                ]
            ),
            f"{kind}:types": np.array(
                [
                    np.pad(s.atomic_numbers, (0, n))
                    for s, n in zip(some, padding, strict=True)
                ],
                np.uint8,
            ),
        }
    arrays.pop("relaxed:types")
    arrays.pop("deformed:types")
    every = to_structures(load_dataset("mp_mini").crystals)
    rows = known_rows(every, np.random.default_rng(SEED))
    known = structures_of(crystals["known"])
    arrays["known_rows"] = np.array(rows, np.int16)
    groups = [space_group_number(s) for s in known]
    arrays["known_space_group"] = np.array(groups, np.uint8)
    for kind, name in (("structures", 0), ("structures", 1), ("relaxed", 0)):
        key = f"above:{kind}:{JUDGES[name]}"
        arrays[key] = np.array(crystals[key], float)
    for name in JUDGES:
        arrays[f"energy:known:{name}"] = np.array(crystals[f"energy:known:{name}"])
    recorded["names"] = NAMES
    text = json.dumps(recorded).encode()
    np.savez_compressed(out, recorded=np.frombuffer(text, np.uint8), **arrays)


def main() -> None:
    """Runs the step that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=["prepare", "record", "fixture"])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    for name in ("samples", "lemat", "mattergen", "hasher"):
        parser.add_argument(f"--{name}", type=Path)
    args = parser.parse_args()
    if args.step == "prepare":
        prepare(args.data, args.samples)
    elif args.step == "record":
        record(args.data, args.lemat, args.mattergen, args.hasher)
    else:
        fixture(args.data, args.out)


if __name__ == "__main__":
    main()

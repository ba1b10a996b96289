"""LeMat-GenBench's and MatterGen's own functions, run on the crystals of a file.

Part of `tools.record_protocols`, which says what it needs.
"""

import importlib.metadata
import json
import sys
import types
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
from pymatgen.core import Structure
from pymatgen.entries.computed_entries import ComputedStructureEntry

JUDGES = ("chgnet", "sevennet-l3i5")


def read(path: Path) -> dict:
    """The content of a JSON file."""
    return json.loads(path.read_text())


def structures_of(values) -> list[Structure]:
    """Structures of what `as_dict` gave."""
    return [Structure.from_dict(value) for value in values]  # noqa: TID251


def bare(name: str, path: Path) -> None:
    """A package whose own __init__, with all that it would import, is left out."""
    package = types.ModuleType(name)
    package.__path__ = [str(path)]
    sys.modules[name] = package


def record(data: Path, lemat: Path, mattergen: Path, hasher: Path) -> None:
    """Runs the packages' functions on the crystals of `prepare`."""
    for name in ("datasets", "torch", "func_timeout", "material_hasher.hasher.bawl"):
        sys.modules[name] = MagicMock()
    source = lemat / "src" / "lemat_genbench"
    bare("lemat_genbench", source)
    bare("lemat_genbench.preprocess", source / "preprocess")
    sys.path += [str(hasher / "src"), str(mattergen)]
    crystals = read(data / "set.json")
    packages = ("pymatgen", "pymatgen-core", "smact", "spglib", "numpy", "scipy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    out = {"versions": versions, "mattergen": record_mattergen(crystals)}
    out["lemat"] = record_lemat(crystals, data)
    (data / "record.json").write_text(json.dumps(out, indent=1))


def plain(values: dict) -> dict:
    """The numbers of a result, JSON's own."""
    kinds = (int, float, np.integer, np.floating)
    return {k: float(v) for k, v in values.items() if isinstance(v, kinds)}


def record_lemat(crystals: dict, data: Path) -> dict:
    """LeMat-GenBench: as `run_benchmarks.py`, without its models and data sets."""
    from lemat_genbench.metrics.validity_metrics import (
        ChargeNeutralityMetric,
        MinimumInteratomicDistanceMetric,
        PhysicalPlausibilityMetric,
    )
    from lemat_genbench.preprocess.distribution_preprocess import (
        DistributionPreprocessor,
    )
    from lemat_genbench.preprocess.multi_mlip_preprocess import (
        _calculate_ensemble_statistics,
        _calculate_rmse,
    )

    structures = structures_of(crystals["structures"])
    moved = structures_of(crystals["deformed"])
    metrics = ChargeNeutralityMetric(), MinimumInteratomicDistanceMetric()
    metrics += (PhysicalPlausibilityMetric(),)
    columns = []
    for metric in metrics:
        arguments, values = metric._get_compute_attributes(), []
        for structure in structures:
            try:
                values.append(float(metric.compute_structure(structure, **arguments)))
            except Exception as error:
                print(f"{structure.formula}: {metric.name}: {error!r}")
                values.append(None)
        columns.append(values)
    charge = [x is not None and x <= 0.1 for x in columns[0]]
    distance, plausible = ([x == 1.0 for x in column] for column in columns[1:])
    checks = zip(charge, distance, plausible, strict=True)
    valid = np.flatnonzero([all(some) for some in checks]).tolist()
    process = DistributionPreprocessor.process_structure
    some = [process(structures[i]) for i in valid]
    for i, structure in zip(valid, some, strict=True):
        scalars = {"e_above_hull": [], "relaxation_rmse": []}
        for name in JUDGES:
            above = crystals[f"above:structures:{name}"][i]
            if np.isfinite(above):
                structure.properties[f"e_above_hull_{name}"] = above
                scalars["e_above_hull"].append(above)
        rmse = float(_calculate_rmse(structures[i], moved[i]))
        scalars["relaxation_rmse"] += [rmse, rmse]
        _calculate_ensemble_statistics(structure, scalars, {})
    known = [process(s) for s in structures_of(crystals["known"])]
    out = {
        "charge": charge,
        "distance": distance,
        "plausible": plausible,
        "space_group": [
            s.properties["distribution_properties"]["SpaceGroup"] for s in some
        ],
        "rmse": [s.properties["relaxation_rmse_mean"] for s in some],
    }
    return out | {"scores": lemat_scores(some, known, data)}


def lemat_scores(some: list[Structure], known: list[Structure], data: Path) -> dict:
    """Every score of valid crystals against known ones."""
    import pickle

    from lemat_genbench.metrics.distribution_metrics import MMD, JSDistance
    from lemat_genbench.metrics.diversity_metric import (
        ElementDiversityMetric,
        PhysicalSizeComponentMetric,
        SiteNumberComponentMetric,
        SpaceGroupDiversityMetric,
    )
    from lemat_genbench.metrics.hhi_metrics import HHIProductionMetric, HHIReserveMetric
    from lemat_genbench.metrics.multi_mlip_stability_metrics import (
        MetastabilityMetric,
        RelaxationStabilityMetric,
        StabilityMetric,
    )
    from lemat_genbench.metrics.sun_metric import SUNMetric
    from lemat_genbench.metrics.uniqueness_metric import UniquenessMetric
    from lemat_genbench.utils.distribution_utils import generate_probabilities
    from pandas import DataFrame

    frame = DataFrame([s.properties["distribution_properties"] for s in known])
    kinds = {"SpaceGroup": np.int64, "CrystalSystem": np.int64}
    kinds |= {"Composition": np.ndarray, "CompositionCounts": np.ndarray}
    shares = {
        name: {
            k: float(v) for k, v in generate_probabilities(frame, name, kind).items()
        }
        for name, kind in kinds.items()
    }
    (data / "js.json").write_text(json.dumps(shares))
    names = ("Volume", "Density(g/cm^3)", "Density(atoms/A^3)")
    with open(data / "mmd.pkl", "wb") as file:
        pickle.dump({name: frame[name].to_numpy() for name in names}, file)
    out = {}
    for metric in (
        JSDistance(str(data / "js.json")),
        MMD(str(data / "mmd.pkl")),
        ElementDiversityMetric(),
        SpaceGroupDiversityMetric(),
        SiteNumberComponentMetric(),
        HHIProductionMetric(),
        HHIReserveMetric(),
        StabilityMetric(mlip_names=list(JUDGES)),
        MetastabilityMetric(mlip_names=list(JUDGES)),
        RelaxationStabilityMetric(mlip_names=list(JUDGES)),
        UniquenessMetric(fingerprint_method="structure-matcher"),
    ):
        metric.verbose = False
        out |= plain(metric.compute(some).metrics)
    physical = PhysicalSizeComponentMetric()
    physical._init_reference_packing_factor_histogram()
    out |= plain(physical.compute(some).metrics)
    sun = SUNMetric(fingerprint_method="structure-matcher")
    fingerprinter, novel = sun.uniqueness_metric.fingerprinter, {}

    def novel_ones(structures):
        found = []
        for i, structure in enumerate(structures):
            formula = structure.composition.reduced_formula
            others = [s for s in known if s.composition.reduced_formula == formula]
            match = [fingerprinter.is_equivalent(structure, s) for s in others]
            novel[id(structure)] = not any(match)
            found += [] if any(match) else [i]
        return found

    sun._compute_novelty_within_set = novel_ones
    out |= plain(sun.compute(some).metrics)
    novel_ones(some)
    out["novelty_score"] = float(np.mean([novel[id(s)] for s in some]))
    return out


def record_mattergen(crystals: dict) -> dict:
    """MatterGen's `MetricsEvaluator`, given energies, structures and a reference."""
    import smact
    from mattergen.evaluation.metrics.evaluator import MetricsEvaluator
    from mattergen.evaluation.reference.reference_dataset import ReferenceDataset
    from mattergen.evaluation.utils.structure_matcher import (
        DefaultDisorderedStructureMatcher,
    )

    from chemeleon_jax.potentials.corrections import mp2020_correction

    ratios = smact.neutral_ratios  # until SMACT 4 it told first whether there are any

    def neutral_ratios(*args, **kwargs):
        found = ratios(*args, **kwargs)
        return bool(found), found

    smact.neutral_ratios = neutral_ratios
    name = JUDGES[0]
    relaxed, known = (structures_of(crystals[k]) for k in ("relaxed", "known"))
    energies = np.array(crystals[f"energy:relaxed:{name}"])
    kept = np.flatnonzero(np.isfinite(energies)).tolist()
    entries = [
        ComputedStructureEntry(s, energy * len(s), data={"material_id": i})
        for i, (s, energy) in enumerate(
            zip(known, crystals[f"energy:known:{name}"], strict=True)
        )
    ]
    originals = structures_of(crystals["structures"])
    uncorrected = [
        len(s) * (energies[i] - correction_of(s, mp2020_correction))
        for i, s in enumerate(relaxed)
    ]
    evaluator = MetricsEvaluator.from_structures_and_energies(
        structures=[relaxed[i] for i in kept],
        energies=[uncorrected[i] for i in kept],
        original_structures=[originals[i] for i in kept],
        reference=ReferenceDataset.from_entries("known", entries),
    )
    matcher, pairs = DefaultDisorderedStructureMatcher(), []
    for i, one in enumerate(relaxed):
        for j, other in enumerate(relaxed[:i]):
            if one.composition.reduced_formula == other.composition.reduced_formula:
                pairs.append([i, j, bool(matcher.fit(one, other))])
    frame = evaluator.as_dataframe("all")
    columns = {
        column: [float(x) for x in frame[column]]
        for column in frame.columns
        if column != "entry"
    }
    corrected = [float(e.energy_per_atom) for e in frame["entry"]]
    scores = evaluator.compute_metrics("all")
    return {
        "kept": kept,
        "pairs": pairs,
        "corrected": corrected,
        "columns": columns,
        "scores": plain(scores),
    }


def correction_of(structure: Structure, function) -> float:
    """MP2020 correction of a structure, eV/atom."""
    return function(
        np.array(structure.atomic_numbers),
        structure.frac_coords,
        structure.lattice.matrix,
    )

"""How well a conditional model makes the composition that it is asked for.

    python tools/measure_conditional.py mini:ldm_conditional

Takes crystals of the test split, asks for the composition of each with its atom count,
and counts the samples that have it, and the crystals of which one sample matches the
real structure (pymatgen's `StructureMatcher` with its defaults). With
`--ask=chemical_system` it asks for the elements alone.

METRe and cRMSE (Martirossyan et al., arXiv:2509.12178, 2025) are of the wider
tolerances that predictions of structures are measured with: the share of real
structures that one of their samples matches, and the mean over all of the smallest root
mean square displacement, in units of (volume / atom)^(1/3), or the tolerance of 0.5
where none matches.

With `--symmetric` each sample has the symmetry of some crystal of the training split
that has the stoichiometry, and as many atoms; a composition without such a crystal has
no samples.

With `--list=FILE` it only writes these compositions, one in a line with its atom count,
which is what `config.data.compositions` of `rl_composition` takes.

With `--relax_with=chgnet` the samples are also relaxed, and so are the real structures:
the same again, and how the lowest of the samples lies to the real one in energy.
"""

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

from chemeleon_jax.data.crystals import to_structures, validity
from chemeleon_jax.data.dataset import MAX_ATOMS, load_dataset
from chemeleon_jax.data.templates import ANY, AskedSymmetry, draw_templates
from chemeleon_jax.data.types import SymmetryTemplate
from chemeleon_jax.devices.sharding import make_mesh
from chemeleon_jax.errors import UserError
from chemeleon_jax.evaluation.relaxation import relax_structures
from chemeleon_jax.interface.request import DEFAULTS
from chemeleon_jax.models.generator import combine_checkpoints, make_generator
from chemeleon_jax.models.loading import load_checkpoint
from chemeleon_jax.potentials.loading import load_potential
from chemeleon_jax.rl.bulk import compile_sampling, group_prompts, sample_in_bulk
from chemeleon_jax.rl.prompts import condition_values, condition_vectors_from_cli
from chemeleon_jax.rl.sampler import make_sampler

BATCH = 10  # compositions at once
MOST_OPERATIONS = 96  # of a cell in mp_mini: the same shapes for all
TOLERANCE = 0.5  # of displacements, in units of (volume / atom)^(1/3)
PREDICTION = StructureMatcher(ltol=0.3, stol=TOLERANCE, angle_tol=10)  # CDVAE's


class Prediction(NamedTuple):
    """What is known of a structure's samples."""

    found: bool  # by pymatgen's defaults
    displacement: float | None  # the smallest; None where none matches


def ask(specs, structure: Structure, kind: str) -> dict[str, np.ndarray]:
    """For a structure's composition, or its chemical system alone, as `sample` asks."""
    if kind == "composition":
        by_kind, by_name = condition_values(structure.formula, None, {})
    else:
        by_kind, by_name = condition_values(None, structure.chemical_system, {})
    return condition_vectors_from_cli(specs, by_kind, by_name)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ldm", help="a conditional model")
    parser.add_argument("--vae", default="mini:vae")
    parser.add_argument("--num_compositions", type=int, default=100)
    parser.add_argument("--num_samples", type=int, default=20, help="of each")
    parser.add_argument("--sampling_steps", type=int, default=25, help="DDIM")
    for *names, default in (
        ("--cfg_scale", "--guidance_scale", DEFAULTS["cfg_scale"]),
        ("--decoder_guidance", DEFAULTS["decoder_guidance"]),
    ):
        parser.add_argument(*names, type=float, default=default)
    kinds = ("composition", "chemical_system")
    parser.add_argument("--ask", choices=kinds, default="composition")
    parser.add_argument("--symmetric", action="store_true")
    parser.add_argument("--relax_with", metavar="POTENTIAL")
    parser.add_argument("--list", metavar="FILE", type=Path)
    args = parser.parse_args()
    real = distinct_compositions(args.num_compositions)
    if args.list:
        lines = [f"{s.formula.replace(' ', '')} {len(s)}" for s in real]
        args.list.write_text("\n".join(lines) + "\n")
        return
    samples, valid = sample_for(real, args)
    right = [
        [s for s in some if s and getattr(s, args.ask) == getattr(structure, args.ask)]
        for structure, some in zip(real, samples, strict=True)
    ]
    hits = [
        len(some) / len(all_of_it)
        for some, all_of_it in zip(right, samples, strict=True)
        if all_of_it
    ]
    print(f"right in {np.mean(hits):.1%} of samples, {valid:.1%} valid")
    report("as sampled", compare_all(real, right))
    if args.relax_with:
        report_relaxed(real, right, args.relax_with)


def sample_for(real: list[Structure], args) -> tuple[list[list[Structure]], float]:
    """Samples for each of some structures, and the share of them that are valid."""
    model, policy = make_generator(
        combine_checkpoints(load_checkpoint(args.ldm), load_checkpoint(args.vae)),
        MAX_ATOMS,
    )
    sampler = make_sampler(
        model,
        sampling_steps=args.sampling_steps,
        cfg_scale=args.cfg_scale,
        decoder_guidance=None if args.symmetric else args.decoder_guidance,
    )
    sample = compile_sampling(sampler, make_mesh(1))
    templates = draw_all(real, args) if args.symmetric else None
    found: dict[int, list[Structure]] = {}
    valid = []
    numbers = [*range(len(real))] if templates is None else [*templates]
    for start in range(0, len(numbers), BATCH):
        some = numbers[start : start + BATCH]
        asked = [real[i] for i in some]
        prompts = group_prompts(
            jax.random.fold_in(jax.random.key(0), start),
            np.array([len(structure) for structure in asked]),
            jax.tree.map(
                lambda *vectors: np.concatenate(vectors),
                *(ask(model.condition.specs, s, args.ask) for s in asked),
            ),
            args.num_samples,
        )
        if templates is not None:
            own = jax.tree.map(
                lambda *x: np.concatenate(x), *(templates[i] for i in some)
            )
            prompts = prompts._replace(template=own)
        crystals = sample_in_bulk(
            policy, prompts, sample=sample, batch_size=BATCH * args.num_samples
        )
        valid.extend(validity(crystals) == 0)
        structures = to_structures(crystals)
        for j, i in enumerate(some):
            found[i] = structures[j * args.num_samples : (j + 1) * args.num_samples]
    return [found.get(i, []) for i in range(len(real))], float(np.mean(valid))


def draw_all(real: list[Structure], args) -> dict[int, SymmetryTemplate]:
    """Templates for the samples of each structure's composition, if there are any."""
    train, found = load_dataset("mp_mini").select("train"), {}
    for i, structure in enumerate(real):
        elements = {args.ask: structure.formula.replace(" ", "")}
        if args.ask == "chemical_system":
            elements = {args.ask: structure.chemical_system}
        asked = AskedSymmetry(space_group=ANY, **elements)
        shares = (np.arange(1, MAX_ATOMS + 1) == len(structure)).astype(float)
        with contextlib.suppress(UserError):  # no such crystal
            key = jax.random.key(i)
            _, own = draw_templates(key, args.num_samples, train, shares, asked)
            missing = ((0, 0), (0, MOST_OPERATIONS - own.rotations.shape[1]))
            found[i] = own.replace(
                rotations=np.pad(own.rotations, (*missing, (0, 0), (0, 0))),
                images=np.pad(own.images, (*missing, (0, 0))),
            )
    return found


def compare_all(
    real: Sequence[Structure], samples: Sequence[Sequence[Structure]]
) -> list[Prediction]:
    """Each of some structures with its samples."""
    return [compare(*pair) for pair in zip(real, samples, strict=True)]


def compare(structure: Structure, samples: Sequence[Structure]) -> Prediction:
    """A structure with its samples."""
    matches = [PREDICTION.get_rms_dist(structure, sample) for sample in samples]
    return Prediction(
        any(StructureMatcher().fit(structure, sample) for sample in samples),
        min((match[0] for match in matches if match), default=None),
    )


def report(title: str, predictions: Sequence[Prediction]) -> None:
    """Prints the shares and means of all structures."""
    near = [p.displacement for p in predictions if p.displacement is not None]
    far = [TOLERANCE] * (len(predictions) - len(near))
    print(
        f"{title}: found {np.mean([p.found for p in predictions]):.1%}, METRe "
        f"{len(near) / len(predictions):.1%}, RMSE {np.mean(near or np.nan):.3f} of "
        f"these, cRMSE {np.mean(near + far):.3f}",
        flush=True,
    )


def report_relaxed(real, samples, potential: str) -> None:
    """Prints the same of relaxed structures, and how their energies compare."""
    network = load_potential(potential)
    relaxed = relax_structures([*real, *sum(samples, [])], potential=network)
    known, left = relaxed[: len(real)], iter(relaxed[len(real) :])
    mine = [[next(left) for _ in some] for some in samples]
    report(
        f"relaxed by {potential}",
        compare_all(
            [result.structure for result in known],
            [[result.structure for result in some] for some in mine],
        ),
    )
    above = [
        np.nanmin([result.energy for result in some]) - structure.energy
        for structure, some in zip(known, mine, strict=True)
        if np.isfinite([result.energy for result in some]).any()
    ]
    low = np.mean(np.array(above) <= 0.01)
    print(
        f"lowest sample above the real structure: median {np.median(above):.3f} "
        f"eV/atom; at most 0.01 in {low:.1%} of {len(above)}"
    )


def distinct_compositions(count: int):
    """Structures of the test split with distinct reduced formulas."""
    test = load_dataset("mp_mini").select("test")
    structures, seen = [], set()
    for index in np.random.default_rng(0).permutation(len(test)):
        [structure] = to_structures(test.subset(np.array([index])).crystals)
        if structure.reduced_formula not in seen:
            seen.add(structure.reduced_formula)
            structures.append(structure)
        if len(structures) == count:
            break
    return structures


if __name__ == "__main__":
    main()

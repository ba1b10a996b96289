"""How well a conditional model makes the composition that it is asked for.

    python tools/measure_conditional.py mini:ldm_conditional

Takes crystals of the test split, asks for the composition of each with its atom count,
and counts the samples that have it, and the crystals of which one sample matches the
real structure (pymatgen's `StructureMatcher` with its defaults). With
`--ask=chemical_system` it asks for the elements alone.
"""

import argparse

import jax
import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

from chemeleon_jax.data.crystals import to_structures, validity
from chemeleon_jax.data.dataset import MAX_ATOMS, load_dataset
from chemeleon_jax.devices.sharding import make_mesh
from chemeleon_jax.interface.request import DEFAULTS
from chemeleon_jax.models.generator import combine_checkpoints, make_generator
from chemeleon_jax.models.loading import load_checkpoint
from chemeleon_jax.rl.bulk import compile_sampling, group_prompts, sample_in_bulk
from chemeleon_jax.rl.prompts import condition_values, condition_vectors_from_cli
from chemeleon_jax.rl.sampler import make_sampler

BATCH = 10  # compositions at once


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
    args = parser.parse_args()
    model, policy = make_generator(
        combine_checkpoints(load_checkpoint(args.ldm), load_checkpoint(args.vae)),
        MAX_ATOMS,
    )
    wanted = distinct_compositions(args.num_compositions)
    sampler = make_sampler(
        model,
        sampling_steps=args.sampling_steps,
        cfg_scale=args.cfg_scale,
        decoder_guidance=args.decoder_guidance,
    )
    sample = compile_sampling(sampler, make_mesh(1))
    hits, found, valid = [], [], []
    for start in range(0, len(wanted), BATCH):
        asked = wanted[start : start + BATCH]
        prompts = group_prompts(
            jax.random.fold_in(jax.random.key(0), start),
            np.array([len(structure) for structure in asked]),
            jax.tree.map(
                lambda *vectors: np.concatenate(vectors),
                *(ask(model.condition.specs, s, args.ask) for s in asked),
            ),
            args.num_samples,
        )
        crystals = sample_in_bulk(
            policy, prompts, sample=sample, batch_size=BATCH * args.num_samples
        )
        samples = to_structures(crystals)
        valid.extend(validity(crystals) == 0)
        for i, structure in enumerate(asked):
            mine = samples[i * args.num_samples : (i + 1) * args.num_samples]
            wanted_here = getattr(structure, args.ask)
            right = [s for s in mine if s and getattr(s, args.ask) == wanted_here]
            hits.append(len(right) / args.num_samples)
            found.append(any(StructureMatcher().fit(structure, s) for s in right))
        print(
            f"{len(hits)} compositions: right in {np.mean(hits):.1%} of samples, "
            f"structure among {args.num_samples} for {np.mean(found):.1%}, "
            f"{np.mean(valid):.1%} of samples valid",
            flush=True,
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

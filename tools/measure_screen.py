"""How well a screening tells crystals that stand from those that do not.

    python -m tools.measure_screen vibrations --potential=sevennet-0
    python -m tools.measure_screen bar --number=100 --out=bar

`vibrations`: crystals known to be unstable in their cubic form, and known to be stable,
each relaxed from a cubic start and looked at, and where the unstable ones fall to.

`bar`: known compounds on the hulls of both judges, and the same compounds spoilt,
through the whole screening with --keep_known, the known ones first. What it should keep
is the known ones; of the spoilt it should keep none. One third of these is stretched
by 8 %, one third has its atoms moved by 0.35 Å, and of one third two elements change
places. Nothing keeps a stretched or moved crystal from relaxing back. If it does, it is
the known compound again, which stands before it, and "duplicate" is the right answer;
kept is what came to rest as another crystal that passes. An exchange of elements makes
another compound; if it is stable by both judges, keeping it is counted against the
screening all the same. See docs/screening.md.
"""

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from pymatgen.core import Lattice, Structure

from chemeleon_jax import screen
from chemeleon_jax.data.crystals import formula_keys, take, to_structures
from chemeleon_jax.data.dataset import load_dataset
from chemeleon_jax.potentials.hull import composition_counts, load_hull
from chemeleon_jax.potentials.loading import load_potential
from chemeleon_jax.screening.descent import descend_all
from chemeleon_jax.screening.sieve import is_another, total_drop, weaknesses
from chemeleon_jax.screening.stability import settle
from chemeleon_jax.screening.terms import MIN_FREQUENCY, STABILITY, ScreeningTerms
from chemeleon_jax.workers.pool import WorkerPool

JUDGES = "chgnet,sevennet-l3i5"
WAYS = ("stretched", "moved", "exchanged")
STRETCH, MOVE = 0.08, 0.35  # of lengths; Å
SEED = 0
CUBIC = [[0, 0, 0], [0.5, 0.5, 0.5]]
QUARTER = [[0, 0, 0], [0.25, 0.25, 0.25]]
PEROVSKITE = [*CUBIC, [0.5, 0.5, 0]]
# Name: space group, length in Å, elements, positions; whether it is stable at 0 K.
# BaTiO3 is ferroelectric, bcc Ti and Zr are hot phases, and so is cubic ZrO2.
CRYSTALS = {
    "BaTiO3": ("Pm-3m", 4.0, ["Ba", "Ti", "O"], PEROVSKITE, False),
    "Ti, bcc": ("Im-3m", 3.27, ["Ti"], CUBIC[:1], False),
    "Zr, bcc": ("Im-3m", 3.58, ["Zr"], CUBIC[:1], False),
    "ZrO2, fluorite": ("Fm-3m", 5.09, ["Zr", "O"], QUARTER, False),
    "Si": ("Fd-3m", 5.43, ["Si"], CUBIC[:1], True),
    "NaCl": ("Fm-3m", 5.64, ["Na", "Cl"], CUBIC, True),
    "MgO": ("Fm-3m", 4.21, ["Mg", "O"], CUBIC, True),
    "Al": ("Fm-3m", 4.05, ["Al"], CUBIC[:1], True),
    "GaAs": ("F-43m", 5.65, ["Ga", "As"], QUARTER, True),
}


def vibrations(args) -> None:
    """Prints the lowest frequency of each crystal, and whether it is as known."""
    potential = load_potential(args.potential)
    structures = [
        Structure.from_spacegroup(
            group, Lattice.cubic(length), elements, sites
        ).get_primitive_structure()
        for group, length, elements, sites, _ in CRYSTALS.values()
    ]
    settled = settle(structures, potential)
    limits = ScreeningTerms(min_frequency=args.min_frequency).limits
    with WorkerPool(1) as pool:
        fallen = descend_all(settled, limits, potential, pool, len(structures))
    for (name, (*_, stable)), crystal, after in zip(
        CRYSTALS.items(), settled, fallen, strict=True
    ):
        found = crystal.record
        if "problem" in found:
            print(f"{name:16}{found['problem']}")
            continue
        gamma = found["lowest_at_gamma"]
        is_right = stable == (not weaknesses(found, [], limits))
        print(
            f"{name:16}{'as known' if is_right else 'WRONG':9}"
            f"lowest {found['lowest_frequency']:6.2f} THz at {found['wave_vector']}, "
            f"at Gamma {'-' if gamma is None else f'{gamma:.2f}'}, "
            f"highest {found['highest_frequency']:.2f}; "
            f"stiffness {found['lowest_stiffness']:.0f}, bulk "
            f"{found['bulk_modulus']:.0f}, shear {found['shear_modulus']:.0f} GPa; "
            f"supercell {found['supercell']}{told(after['descents'])}",
            flush=True,
        )


def told(descents: list[dict]) -> str:
    """Where a crystal came to rest that was pushed off a saddle."""
    if not descents:
        return ""
    ways, last = ", ".join(d["along"] for d in descents), descents[-1]
    kind = "another crystal" if is_another(descents) else "the same crystal"
    end = "" if last["converged"] else ", not at rest"
    return (
        f"; falls {1000 * total_drop(descents):.1f} meV/atom along a {ways} to "
        f"{last['space_group']}, {kind}{end}"
    )


def known_compounds(number: int, max_atoms: int) -> list[Structure]:
    """Compounds on the hulls of both judges, the only known crystal of their formula.

    Of unequal numbers of two elements, so that an exchange makes another compound.
    """
    dataset = load_dataset("mp_mini")
    keys = formula_keys(dataset.crystals.atom_types)
    count = Counter(keys)
    hulls = [load_hull(load_potential(name)) for name in JUDGES.split(",")]
    picked: list[int] = []
    for i in np.random.default_rng(SEED).permutation(len(dataset)):
        types = dataset.crystals.atom_types[i]
        amounts = keys[i][1::2]
        usual = 1 < len(amounts) and len(set(amounts)) > 1 and count[keys[i]] == 1
        if usual and (types > 0).sum() <= max_atoms and on_hulls(types, hulls):
            picked.append(int(i))
        if len(picked) == number:
            break
    return [s for s in to_structures(take(dataset.crystals, picked)) if s]


def on_hulls(atom_types, hulls) -> bool:
    """Whether the lowest entry of a formula is on each of some hulls."""
    counts = composition_counts(atom_types[None])[0]
    fractions = counts / counts.sum()
    return all(
        hull.energies[np.abs(hull.fractions - fractions).sum(1) < 1e-6].min(initial=9)
        <= hull.hull_energy(atom_types) + 1e-6
        for hull in hulls
    )


def spoil(structure: Structure, how: str, rng) -> Structure:
    """A crystal stretched, with its atoms moved, or with two elements exchanged."""
    other = structure.copy()
    if how == "stretched":
        other.apply_strain(STRETCH)
    elif how == "moved":
        steps = rng.normal(size=(len(other), 3))
        steps *= MOVE / np.linalg.norm(steps, axis=1, keepdims=True)
        for i, step in enumerate(steps):
            other.translate_sites([i], step, frac_coords=False)
    else:
        amounts = structure.composition.get_el_amt_dict()
        one = min(amounts, key=amounts.__getitem__)
        two = max(amounts, key=amounts.__getitem__)
        other.replace_species({one: two, two: one})
    return other


def bar(args) -> None:
    """Screens known and spoilt crystals, and prints how many are kept."""
    rng, known = np.random.default_rng(SEED), known_compounds(args.number, args.atoms)
    spoilt = [spoil(s, WAYS[i % 3], rng) for i, s in enumerate(known)]
    args.out.mkdir(parents=True, exist_ok=True)
    samples = args.out / "samples.json"
    samples.write_text(json.dumps([s.as_dict() for s in known + spoilt]))
    flags = [f"--out={args.out / 'screened'}", "--keep_known", "--workers=1"]
    flags += [f"--num_candidates={2 * len(known)}", f"--potential={JUDGES}"]
    flags += [f"--stability_with={args.potential}"]
    start = time.process_time()
    if screen.main([str(samples), *flags]):
        raise SystemExit("the screening failed")
    rows = pd.read_csv(args.out / "screened" / "all.csv", keep_default_na=False)
    kinds = ["known"] * len(known) + [WAYS[i % 3] for i in range(len(known))]
    for kind in ("known", *WAYS):
        reasons = [r for k, r in zip(kinds, rows["reason"], strict=True) if k == kind]
        said = {name or "kept": n for name, n in Counter(reasons).most_common()}
        print(f"{kind:12}{len(reasons):4}  {said}")
    print(f"{time.process_time() - start:.0f} s of this process")


def main() -> None:
    """Measures one thing or the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("vibrations", "bar"))
    parser.add_argument("--potential", default=STABILITY)
    parser.add_argument("--min_frequency", type=float, default=MIN_FREQUENCY)
    parser.add_argument("--number", type=int, default=100)
    parser.add_argument("--atoms", type=int, default=20, help="at most, in a cell")
    parser.add_argument("--out", type=Path, default=Path("bar"))
    args = parser.parse_args()
    {"vibrations": vibrations, "bar": bar}[args.what](args)


if __name__ == "__main__":
    main()

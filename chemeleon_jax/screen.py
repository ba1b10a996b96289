"""Program: from sampled crystals to the few that are worth a DFT calculation.

    python -m chemeleon_jax.screen runs/rl_dng/samples --out=screened
    python -m chemeleon_jax.screen others.extxyz --out=screened --num_candidates=50

Drops what is invalid, twice there, known, disputed between potentials, far above the
hull or far below it; puts what is left under its symmetry, and drops what a vibration
or a strain would take away. Writes tables, CIFs, VASP inputs and a page, `index.html`,
of the best. The same command continues a screening that was cut off. See
docs/screening.md.
"""

import argparse
import dataclasses

from chemeleon_jax.cli import keep_compiled_programs
from chemeleon_jax.errors import ProgramParser, exit_status, run_program
from chemeleon_jax.evaluation.inputs import check_place, load_reference, read_set
from chemeleon_jax.evaluation.partial import check_out
from chemeleon_jax.runs.directory import work_directory
from chemeleon_jax.runs.files import replacing, user_path
from chemeleon_jax.screening.page import make_page
from chemeleon_jax.screening.results import FILES, FOLDERS, write_results
from chemeleon_jax.screening.steps import screen_items
from chemeleon_jax.screening.terms import ScreeningTerms

LOCK = ".lock"  # in the folder of results


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = ProgramParser("chemeleon_jax.screen", __doc__)
    add, default = parser.add_argument, ScreeningTerms()
    add("samples", type=user_path, metavar="SAMPLES", help="what evaluate reads")
    add("--out", type=user_path, required=True, help="folder of the results")
    for name, kind, words in (
        ("reference", str, "known crystals: mp_mini, DIR or FILE"),
        ("potential", str, "that judge, split by commas; the first relaxes"),
        ("stability_with", str, "potential of vibrations and stiffness, or none"),
        ("num_candidates", int, "that are wanted"),
        ("max_e_above_hull", float, "eV/atom, by every judge"),
        ("max_spread", float, "eV/atom, between the judges"),
        ("min_frequency", float, "THz; imaginary ones are below 0"),
        ("max_force", float, "eV/Å, to stop at"),
        ("relax_steps", int, "energies of a relaxation, at most"),
    ):
        value = getattr(default, name)
        words = f"{words} (default {value})"
        add(f"--{name}", type=kind, default=value, help=words)
    add("--keep_known", action="store_true", help="known crystals are no reason")
    add("--charge_balanced", action="store_true", help="drop what SMACT refuses")
    add("--workers", type=int, help="processes; by default as many as CPUs")
    return parser.parse_args(argv)


def terms_of(args: argparse.Namespace) -> ScreeningTerms:
    """The flags as terms; a `UserError` if one is out of range."""
    fields = dataclasses.fields(ScreeningTerms)
    return ScreeningTerms(**{field.name: getattr(args, field.name) for field in fields})


def screen(args: argparse.Namespace) -> None:
    """Takes crystals through the steps, and writes what is left."""
    terms = terms_of(args)
    check_place(args.samples, args.out)
    items = read_set(args.samples)
    dataset = load_reference(terms.reference)
    with work_directory(args.out, option="--out", lock=LOCK):
        check_out(args.out, (*FOLDERS, *FILES), "funnel")
        rows, candidates, summary = screen_items(
            items, terms, dataset, args.out / "partial"
        )
        summary["protocol"]["samples"] = str(args.samples)
        write_results(args.out, rows, candidates, summary)
        page = args.out / "index.html"
        with replacing(page) as file:
            text = make_page(rows, candidates, summary)
            file.write_text(text, encoding="utf-8", errors="backslashreplace")
    for name, count in summary["funnel"].items():
        print(f"  {name:28}{count:7}")
    for note in summary["notes"]:
        print(note)
    print(f"{page}: {len(candidates)} candidates")


def main(argv: list[str] | None = None) -> int:
    """Runs the program; what the user can put right is one line and status 2."""
    return exit_status(_run, argv)


def _run(argv: list[str] | None) -> None:
    args = parse(argv)
    keep_compiled_programs()  # second derivatives take minutes to compile
    screen(args)


if __name__ == "__main__":
    run_program(main)

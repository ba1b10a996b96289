"""Program: one HTML page of what RL runs have learnt and made.

    python -m chemeleon_jax.report runs/rl_dng
    python -m chemeleon_jax.report runs/a runs/b --out=comparison.html

The page needs no network and opens from disk. Curves come from the runs' TensorBoard
events. Comparisons, distributions and the gallery come from evaluated crystals in
RUN/samples (or --samples) and its base/, made by `chemeleon_jax.sample --base` and
`chemeleon_jax.evaluate`; what is missing is said on the page. See docs/report.md.
"""

import argparse
import sys
from pathlib import Path

from chemeleon_jax.errors import ProgramParser, UserError, exit_status, run_program
from chemeleon_jax.report.page import make_page
from chemeleon_jax.report.runs import load_run
from chemeleon_jax.runs.files import replacing, user_path


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = ProgramParser("chemeleon_jax.report", __doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=user_path, metavar="RUN", help="directory of an RL run")
    add(
        "--samples",
        action="append",
        type=user_path,
        metavar="DIR",
        help="evaluated crystals of a RUN, in their order; by default RUN/samples",
    )
    add("--out", type=user_path, help="the page; by default RUN/report.html")
    add("--num_crystals", type=int, default=12, help="in the gallery, of each set")
    return parser.parse_args(argv)


def report(args: argparse.Namespace) -> Path:
    """Writes the page, and says where.

    Raises:
      UserError: a RUN that is no directory, or as many --samples as there are no RUNs.
    """
    samples = args.samples or [run / "samples" for run in args.runs]
    if len(samples) != len(args.runs):
        raise UserError(
            f"{len(args.runs)} runs and {len(samples)} --samples: give one for each run"
        )
    if args.num_crystals < 1:
        raise UserError(f"--num_crystals={args.num_crystals}: must be at least 1")
    runs = [load_run(run, s) for run, s in zip(args.runs, samples, strict=True)]
    out = args.out or args.runs[0] / "report.html"
    with replacing(out) as file:
        text = make_page(runs, args.num_crystals)
        file.write_text(text, encoding="utf-8", errors="backslashreplace")
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, opens in any browser")
    return out


def main() -> None:
    """Runs the program; what the user can put right is one line and status 2."""
    sys.exit(exit_status(lambda: report(parse())))


if __name__ == "__main__":
    run_program(main)

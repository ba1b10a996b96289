"""The judged crystals as LeMat-GenBench's own scripts read them."""

import csv
import logging
import shutil
from pathlib import Path

from pymatgen.io.cif import CifWriter

from chemeleon_jax.data.crystals import read_structure
from chemeleon_jax.errors import UserError
from chemeleon_jax.evaluation.judge import Row

logger = logging.getLogger(__name__)


def check_export(out: Path) -> None:
    """Raises UserError where `export_lemat` would replace what it has not written."""
    folder = out / "lemat"
    if folder.exists() and not (folder / "structures.csv").is_file():
        raise UserError(
            f"{folder}: is there, and no export wrote it; move it away, or give --out"
        )


def export_lemat(out: Path, rows: list[Row]) -> None:
    """Writes `lemat/cifs/` and `lemat/structures.csv`, replacing what was there.

    For `run_benchmarks.py`, `--cifs` and `--csv`. Files are named by the number of the
    crystal in the set. Crystals that could not be read are left out, and those that
    cannot be written too, with a warning.
    """
    folder = out / "lemat"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "cifs").mkdir(parents=True)
    texts = {}
    for i, row in enumerate(rows):
        if "structure" not in row:
            continue
        try:
            texts[i] = str(CifWriter(read_structure(row["structure"])))
        except Exception as error:  # of a crystal, it ends no evaluation
            logger.warning("%s: not exported: %s", row["name"], error)
    for i, text in texts.items():
        (folder / "cifs" / f"{i:06d}.cif").write_text(text, encoding="utf-8")
    with open(folder / "structures.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["index", "name", "cif_string"])
        table.writerows([i, rows[i]["name"], text] for i, text in texts.items())

"""The benchmark assets of Chemeleon2's authors, made into this project's own files.

    python -m convert_checkpoints.reference_assets mp-20 --out assets/

fetches their archive (figshare article 30589436), or takes a local copy of it
(`--archive FILE`), and writes what this project can use: the MP-20 crystals as a data
set (`mp_20.npz`) and the hull of uncorrected Materials Project energies
(`hull_mp.npz`). Nothing in the archive is unpickled or extracted: two members are read
as data.
"""

import argparse
import json
import logging
import shutil
import sys
import tarfile
import urllib.request
import zlib
from pathlib import Path

import numpy as np
from pymatgen.core import Element

from chemeleon_jax.data import crystals, dataset
from chemeleon_jax.data.readers.content import unpack
from chemeleon_jax.errors import ProgramParser, UserError, exit_status
from chemeleon_jax.potentials.hull import NUM_ELEMENTS, Hull, save_hull
from chemeleon_jax.runs.files import MAX_UNPACKED, digest, replacing, user_path
from convert_checkpoints import opcodes
from convert_checkpoints.records import CheckpointError, Record

logger = logging.getLogger(__name__)

# Address, and SHA-256 once known.
ARCHIVES = {"mp-20": ("https://ndownloader.figshare.com/files/59462369", None)}
STRUCTURES = "mp_20_all_structure.json.gz"
PHASE_DIAGRAM_PREFIX = "ppd-mp_all_entries_uncorrected"
MAX_OPCODES = 1_000_000_000  # 150,000 entries and the facets between them
ENTRIES = (
    "pymatgen.analysis.phase_diagram.PDEntry",
    "pymatgen.entries.computed_entries.ComputedEntry",
    "pymatgen.entries.computed_entries.ComputedStructureEntry",
    "pymatgen.core.entries.ComputedEntry",  # where they are in newer versions
    "pymatgen.core.entries.ComputedStructureEntry",
)


def read_phase_diagram(content: bytes) -> Hull:
    """The hull of a pickled pymatgen `PhaseDiagram` or `PatchedPhaseDiagram`.

    Reads compositions and energies of the entries, and leaves out what pymatgen derived
    from them. Facets are not needed: `Hull` is a linear program over the entries. The
    pickle is read by a reader that can run nothing.

    Raises:
      UserError: damaged, hostile, or no phase diagram.
    """
    diagram = opcodes.load(content, max_opcodes=MAX_OPCODES)
    entries = diagram.get("all_entries") if isinstance(diagram, Record) else None
    if not isinstance(entries, list) or not entries:
        raise CheckpointError("the pickle is no phase diagram of pymatgen")
    counts = np.zeros((len(entries), NUM_ELEMENTS), np.int64)
    energies = np.zeros(len(entries))
    for i, entry in enumerate(entries):
        try:
            counts[i], energies[i] = _read_entry(entry)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"entry {i} of the phase diagram cannot be read: {error}"
            ) from None
    small = counts.max(1) < 256  # what a hull file holds
    return Hull(counts[small], energies[small])


def _read_entry(entry: Record) -> tuple[np.ndarray, float]:
    """Atoms of each element [118], and energy per atom in eV."""
    if not isinstance(entry, Record) or entry.name not in ENTRIES:
        raise ValueError(f"{entry!r} is no entry that is known here")
    if entry.get("energy_adjustments"):
        raise ValueError(
            "its energy is corrected, and a hull of corrected energies "
            "does not go with a potential's own"
        )
    composition = entry.get("composition", entry.get("_composition"))
    if not isinstance(composition, Record):
        raise ValueError("it has no composition")
    energy = entry.get("energy")
    energy = float(entry.get("_energy") if energy is None else energy)
    counts = np.zeros(NUM_ELEMENTS, np.int64)
    for element, amount in composition.get("_data", {}).items():
        (symbol,) = element.args
        counts[Element(symbol).Z - 1] = round(amount)
        if abs(amount - round(amount)) > 1e-6:
            raise ValueError(f"{amount} atoms of {symbol}")
    return counts, energy / counts.sum()


def read_structures(content: bytes) -> dataset.Dataset:
    """A data set from a JSON list of pymatgen structures.

    Class names in the file are not followed.
    """
    try:
        structures = [crystals.read_structure(s) for s in json.loads(content)]
        batch = crystals.from_structures(structures)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{STRUCTURES}: not a list of structures ({error})") from error
    ids = np.array([str(i) for i in range(len(structures))])
    split = dataset.split_by_chemical_system(batch.atom_types)
    return dataset.Dataset(batch, {}, ids, split, ())


def read_archive(path: Path) -> dict[str, bytes]:
    """The two members that are used, by their own names, unpacked in memory."""
    found = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = Path(member.name).name
                wanted = name == STRUCTURES or name.startswith(PHASE_DIAGRAM_PREFIX)
                if member.isreg() and wanted and name.endswith(".gz"):
                    file = archive.extractfile(member)
                    assert file is not None  # a regular file has one
                    found[name] = unpack(file.read(MAX_UNPACKED), name)
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UserError(f"{path}: damaged, or no tar.gz archive ({error})") from error
    return found


def download(name: str, path: Path) -> None:
    """Fetch an archive; a file that is there is not fetched again.

    Its SHA-256 must be the one that is known here. Where none is, the first file is
    taken at its word: its SHA-256 is kept beside it, for `sha256sum --check` too, and
    every later one must have the same.

    Raises:
      UserError: out of reach, or not the file that is known under that name.
    """
    address, sha256 = ARCHIVES[name]
    if not path.is_file():
        try:
            with (
                urllib.request.urlopen(address, timeout=60) as reply,
                replacing(path) as temporary,
                open(temporary, "wb") as file,
            ):
                shutil.copyfileobj(reply, file)
                size = reply.headers.get("Content-Length")
                if size is not None and file.tell() != int(size):
                    raise OSError(f"cut off after {file.tell()} of {size} bytes")
        except OSError as error:
            raise UserError(
                f"{name}: cannot fetch {address} ({error}). Without the network, bring "
                "the archive here and give it as --archive FILE"
            ) from error
    found = digest(path)
    pin = path.with_name(f"{path.name}.sha256")
    if sha256 is None and pin.is_file():
        sha256 = pin.read_text()[:64]
    if sha256 is None:
        pin.write_text(f"{found}  {path.name}\n")
        logger.warning(
            "%s: nobody has recorded its SHA-256 yet; %s, now kept in %s, is what a "
            "later one is compared with",
            path,
            found,
            pin.name,
        )
    elif found != sha256:
        raise UserError(f"{path}: its SHA-256 is {found}, not {sha256}: fetch it anew")


def make_assets(archive: Path, out: Path) -> list[Path]:
    """Write `mp_20.npz` and `hull_mp.npz` from the archive, whichever it holds."""
    members = read_archive(archive)
    if not members:
        raise UserError(f"{archive}: neither {STRUCTURES} nor a phase diagram in it")
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, content in members.items():
        if name == STRUCTURES:
            written.append(out / "mp_20.npz")
            dataset.save_npz(written[-1], read_structures(content))
        else:
            written.append(out / "hull_mp.npz")
            save_hull(written[-1], read_phase_diagram(content))
    return written


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = ProgramParser("convert_checkpoints.reference_assets", __doc__)
    parser.add_argument("name", choices=sorted(ARCHIVES))
    parser.add_argument("--out", required=True, type=user_path, metavar="DIR")
    parser.add_argument("--archive", type=user_path, metavar="FILE", help="if here")
    return exit_status(fetch_assets, parser.parse_args(argv))


def fetch_assets(args: argparse.Namespace) -> None:
    """Downloads the archive if no local copy is named, and prints what it became."""
    archive = args.archive or args.out / f"{args.name}.tar.gz"
    if args.archive is None:
        args.out.mkdir(parents=True, exist_ok=True)
        download(args.name, archive)
    for path in make_assets(archive, args.out):
        print(path)


if __name__ == "__main__":
    sys.exit(main())

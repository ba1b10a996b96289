"""CIF: each data block is a crystal.

pymatgen reads the blocks. What it leaves out without a word (sites of unknown symbol
or occupancy, hydrogens without coordinates, all blocks but the first) is read here, or
makes the block unreadable.
"""

import itertools
import math
import re
import warnings

from pymatgen.core import Element, Structure
from pymatgen.io.cif import CifParser, str2float

from chemeleon_jax.data.readers.item import Item, parse, unreadable

HEADER = re.compile(r"\s*data_(\S*)", re.IGNORECASE)
WATER = ("Ow", "Hw")  # symbols that pymatgen takes for O and H
NO_BLOCK = "no data_ block in it: not a CIF"
CELL = [f"_cell_length_{x}" for x in "abc"]
CELL += [f"_cell_angle_{x}" for x in ("alpha", "beta", "gamma")]


def read_cif(text: str, name: str) -> list[Item]:
    """The crystals of a CIF's text; those of a file with several are `name:block`."""
    crystals = crystal_blocks(text)
    if not crystals:
        return [unreadable(NO_BLOCK if text.strip() else "empty", name)]
    if len(crystals) == 1:
        return [parse(lambda: read_block(crystals[0][1]), name)]
    return [
        parse(lambda block=block: read_block(block), f"{name}:{header or i}")
        for i, (header, block) in enumerate(crystals, 1)
    ]


def crystal_blocks(text: str) -> list[tuple[str, str]]:
    """The data blocks with atoms in them; if there is none, the first.

    A block without atoms holds the journal's text, or a diffraction pattern.
    """
    blocks = split_blocks(text)
    return [b for b in blocks if "_atom_site_" in b[1].lower()] or blocks[:1]


def split_blocks(text: str) -> list[tuple[str, str]]:
    """Names and texts of the data blocks."""
    lines = text.split("\n")
    # Text stands between lines that begin with a semicolon, if each field is closed.
    closed = sum(line.startswith(";") for line in lines) % 2 == 0
    blocks: list[tuple[str, list[str]]] = []
    in_text = False
    for line in lines:
        in_text ^= closed and line.startswith(";")
        header = HEADER.match(line)
        if header and in_text:
            line = f". {line}"  # pymatgen would begin a block there
        elif header:
            blocks.append((header[1], []))
            line = f"data_{line[header.start(1) :]}"
        if blocks:
            blocks[-1][1].append(line)
    return [(name, "\n".join(block)) for name, block in blocks]


def read_structure(text: str) -> Structure:
    """The crystal of a CIF's first block.

    Raises:
      ValueError: in words, why there is none.
      Exception: of any kind; the parser's.
    """
    crystals = crystal_blocks(text)
    if not crystals:
        raise ValueError(NO_BLOCK)
    return read_block(crystals[0][1])


def read_block(block: str) -> Structure:
    """The crystal of a data block.

    Raises:
      ValueError: in words, why there is none.
      Exception: of any kind; the parser's.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        block = re.sub(r"(?im)^(\s*)loop_", r"\1loop_", block)
        try:
            parser = CifParser.from_str(block, check_cif=False)
        except KeyError as error:
            raise ValueError(f"no {error.args[0]}") from error
        except ZeroDivisionError as error:
            raise ValueError("a loop_ of columns without values") from error
        (values,) = parser.as_dict().values() or [{}]  # none of a powder pattern
        _check_sites(values)
        try:
            structures = parser.parse_structures(primitive=False, on_error="raise")
        except Exception as error:
            raise ValueError(_reason(error, values)) from error
    (structure,) = structures
    if "implicit_hydrogens" in structure.site_properties:
        raise ValueError("hydrogens without coordinates")
    return structure


def _check_sites(values: dict) -> None:
    """Writes a missing occupancy, which is 1, into the parser's own list.

    Raises:
      ValueError: the parser would leave out a site.
    """
    for name in ("_cell_length_a", "_atom_site_label", "_atom_site_fract_x"):
        if name not in values:
            raise ValueError(f"no {name}")
    occupancies = values.get("_atom_site_occupancy", [])
    if isinstance(occupancies, list):
        for i, text in enumerate(occupancies):
            if text.strip() in (".", "?", ""):
                occupancies[i] = "1"
            elif not _is_occupancy(text):
                raise ValueError(f"the occupancy of site {i + 1} is {text!r}")
    column = values.get("_atom_site_type_symbol", values.get("_atom_site_label", []))
    labelled = "_atom_site_type_symbol" not in values
    for i, symbol in enumerate(column if isinstance(column, list) else [column]):
        if not _is_symbol(symbol, labelled):
            raise ValueError(f"site {i + 1} is {symbol!r}, which is no element")
    for axis in "xyz":
        coordinates = values.get(f"_atom_site_fract_{axis}", [])
        for i, text in enumerate(coordinates if isinstance(coordinates, list) else []):
            if text.strip() in (".", "?", ""):
                raise ValueError(f"site {i + 1} has no coordinate {axis}")


def _is_occupancy(text: str) -> bool:
    try:
        value = str2float(text)
    except ValueError:
        return False
    return math.isfinite(value) and value >= 0


def _is_symbol(symbol: str, labelled: bool) -> bool:
    """Whether pymatgen finds the element that is meant."""
    letters = "".join(itertools.takewhile(str.isalpha, symbol))
    if letters in WATER:
        return True
    if labelled or len(letters) < len(symbol.strip("+-0123456789.")):
        # "C1A", "CQ1": an element, and anything behind it; but not "OH"
        known = Element.is_valid_symbol
        starts = known(letters[:2].title()) or known(letters[:1].upper())
        return bool(starts) and not symbol.upper().startswith(("OH", "WAT", "NO3"))
    return Element.is_valid_symbol(letters.title()) and not symbol.startswith("NO3")


def _reason(error: Exception, values: dict) -> str:
    """What pymatgen found wrong, which its error does not always tell."""
    reason = str(error).partition("in CIF.\n")[2] or str(error)
    missing = [name for name in CELL if name not in values]
    if "no structures" in reason:
        return "no site is occupied"
    if missing and ("reshape" in reason or missing[0] in reason):
        return f"no {missing[0]}"
    if type(error) is ValueError:
        return reason
    return f"{type(error).__name__}: {reason}"

"""A few known crystals, and some that are not among them."""

import json

from pymatgen.core import Lattice, Structure

CUBIC = [[0, 0, 0], [0.5, 0.5, 0.5]]
NACL = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], CUBIC)
NACL = NACL.get_primitive_structure()
CSCL_TYPE = Structure(Lattice.cubic(3.5), ["Na", "Cl"], CUBIC)
SODIUM = Structure(Lattice.cubic(4.2), ["Na", "Na"], CUBIC)
CHLORINE = Structure(Lattice.cubic(4.0), ["Cl"], [[0, 0, 0]])
KNOWN = [NACL, CSCL_TYPE, SODIUM, CHLORINE]
CLASH = Structure(Lattice.cubic(4.0), ["Na", "Cl"], [[0, 0, 0], [0.05, 0, 0]])
NEW = Structure(Lattice.cubic(3.9), ["K", "Br"], CUBIC)


def save(file, structures):
    file.write_text(json.dumps([s.as_dict() for s in structures]))
    return file

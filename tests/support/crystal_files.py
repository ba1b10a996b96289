"""Small files of crystals, and the crystals in them."""

from pymatgen.core import Lattice, Structure

from chemeleon_jax.data.readers.files import read_crystals

CUBIC = [[0, 0, 0], [0.5, 0.5, 0.5]]
NACL = Structure(Lattice.cubic(3.5), ["Na", "Cl"], CUBIC)
KBR = Structure(Lattice.cubic(3.9), ["K", "Br"], CUBIC)
CIF = """data_{name}
_cell_length_a 3.5
_cell_length_b 3.5
_cell_length_c 3.5
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
loop_
_symmetry_equiv_pos_as_xyz
'x, y, z'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
{sites}
"""
SITES = "Na1 Na 0 0 0 1\nCl1 Cl 0.5 0.5 0.5 1"
LATTICE = 'Lattice="3.5 0 0 0 3.5 0 0 0 3.5"'
ATOMS = "Na 0 0 0\nCl 1.75 1.75 1.75"
FRAME = f"2\n{LATTICE} Properties=species:S:1:pos:R:3\n{ATOMS}\n"


def cif(sites=SITES, name="x"):
    return CIF.format(sites=sites, name=name)


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        content = content.encode()
    path.write_bytes(content)
    return path


def shown(path):
    """Formula of each crystal, or what is wrong with it."""
    return [
        item.structure.composition.reduced_formula if item.structure else item.problem
        for item in read_crystals(path)
    ]


def names(path):
    return [item.name for item in read_crystals(path)]

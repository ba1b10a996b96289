"""A crystal as balls, sticks and a cell: for a 3D view, and as a flat picture.

NumPy and Pillow on the host, milliseconds a crystal. Colours are Jmol's, radii
Cordero's covalent ones, both as ASE has them.
"""

from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from PIL import Image, ImageDraw
from pymatgen.core import Element, Structure
from scipy.spatial import KDTree

BOUNDARY = 0.02  # fraction of a cell vector: closer to a face, an atom is on both
BOND_TOLERANCE = 1.15  # of the sum of covalent radii: bonded up to here
BALL = 0.42  # radius of a ball, of the covalent radius
AZIMUTH, ELEVATION = np.deg2rad(-68), np.deg2rad(14)  # a to the right, c up

STICK = 0.11  # Å, half the width of a bond
SUPERSAMPLING = 2  # pictures are drawn larger, then shrunk: smooth edges
MARGIN = 0.04  # of a picture, on each side
_METALS = np.array([False] + [Element.from_Z(z).is_metal for z in range(1, 119)])
EDGE_COLOR, OUTLINE_COLOR = "#8a93a3", "#39404d"


@dataclass(frozen=True)
class Scene:
    """What is drawn of a crystal; the viewer looks from +z, y is up.

    Axes: A drawn atoms, copies on the faces of the cell included; M halves of bonds. Of
    a bond to an atom that is not drawn, half is; but not from an atom with copies.
    """

    atomic_numbers: np.ndarray  # [A]
    positions: np.ndarray  # [A, 3]  Å, the centre of the cell at the origin
    halves: np.ndarray  # [M, 2, 3]  Å, from the surface of the ball to the middle
    half_of: np.ndarray  # [M]  index of the atom
    edges: np.ndarray  # [12, 2, 3]  Å, of the cell; the first three are c, b and a

    @property
    def radii(self) -> np.ndarray:
        """Radii of the balls, [A] in Å."""
        return BALL * covalent_radii[self.atomic_numbers]


class Shape(NamedTuple):
    """A disc (an atom) or a line (half a bond, a piece of an edge) of a picture."""

    kind: str  # atom, bond or edge
    points: np.ndarray  # [1 or 2, 3]  Å; x and y on the page
    atomic_number: int = 0
    radius: float = 0.0  # Å


def make_scene(structure: Structure) -> Scene:
    """Atoms in the cell and on its faces, their bonds, the cell's edges."""
    cell, turn = structure.lattice.matrix, _view()
    shifts = np.array(list(product((-1, 0, 1, 2), repeat=3)))
    images = (structure.frac_coords[:, None] % 1.0 + shifts).reshape(-1, 3)
    numbers = np.repeat([site.specie.Z for site in structure], len(shifts))
    drawn = np.all((images > -BOUNDARY) & (images < 1 + BOUNDARY), axis=-1)
    positions = (images - 0.5) @ cell @ turn.T
    atoms = np.flatnonzero(drawn)
    bonds = _bonds(numbers, positions, atoms)
    copies = drawn.reshape(len(structure), -1).sum(-1)  # of each atom
    alone = np.repeat(copies, len(shifts)) == 1
    bonds = bonds[alone[bonds[:, 0]] | drawn[bonds[:, 1]]]
    here, there = positions[bonds].swapaxes(0, 1)
    radius = BALL * covalent_radii[numbers[bonds[:, 0]]]
    length = np.maximum(np.linalg.norm(there - here, axis=-1), 1e-6)
    start = here + (there - here) * np.minimum(0.9 * radius / length, 0.5)[:, None]
    corners = np.array(list(product((0, 1), repeat=3)))
    edges = [(a, b) for a, b in combinations(corners, 2) if np.abs(a - b).sum() == 1]
    return Scene(
        atomic_numbers=numbers[atoms],
        positions=positions[atoms],
        halves=np.stack([start, (here + there) / 2], 1),
        half_of=np.searchsorted(atoms, bonds[:, 0]),
        edges=(np.array(edges) - 0.5) @ cell @ turn.T,
    )


def _view() -> np.ndarray:
    """Rows: the page's right, its up, and the direction to the viewer."""
    sin_a, cos_a = np.sin(AZIMUTH), np.cos(AZIMUTH)
    sin_e, cos_e = np.sin(ELEVATION), np.cos(ELEVATION)
    return np.array(
        [
            [-sin_a, cos_a, 0],
            [-sin_e * cos_a, -sin_e * sin_a, cos_e],
            [cos_e * cos_a, cos_e * sin_a, sin_e],
        ]
    )


def _bonds(numbers: np.ndarray, positions: np.ndarray, atoms: np.ndarray) -> np.ndarray:
    """Pairs (one of `atoms`, any atom) within their covalent radii, [M, 2].

    Two metals are not joined if the crystal has anything else: what their wide
    covalent radii would claim between two cations is no bond.
    """
    radii, metal = covalent_radii[numbers], _METALS[numbers]
    near = KDTree(positions[atoms]).sparse_distance_matrix(
        KDTree(positions), 2 * BOND_TOLERANCE * radii.max(), output_type="ndarray"
    )
    first, second = atoms[near["i"]], near["j"]
    bonded = near["v"] < BOND_TOLERANCE * (radii[first] + radii[second])
    bonded &= first != second
    if not metal.all():
        bonded &= ~(metal[first] & metal[second])
    return np.unique(np.stack([first[bonded], second[bonded]], 1), axis=0)


def color(atomic_number: int) -> str:
    """The colour of an element, as #rrggbb."""
    return "#" + "".join(f"{round(255 * c):02x}" for c in jmol_colors[atomic_number])


def draw_crystal(structure: Structure, size: int) -> Image.Image:
    """A picture of an ordered crystal with its bonds and its cell.

    RGBA, `size` pixels wide and high, the background transparent.
    """
    scene = make_scene(structure)
    shown = np.concatenate(
        [
            scene.positions - scene.radii[:, None],
            scene.positions + scene.radii[:, None],
            scene.halves.reshape(-1, 3),
            scene.edges.reshape(-1, 3),
        ]
    )[:, :2]
    low, high = shown.min(0), shown.max(0)
    width = size * SUPERSAMPLING
    scale = width * (1 - 2 * MARGIN) / (high - low).max()  # pixels per Å
    picture = Image.new("RGBA", (width, width))
    draw = ImageDraw.Draw(picture)
    stick = max(2 * STICK * scale, 2 * SUPERSAMPLING)
    for kind, points, number, radius in _flatten(scene):
        at = (points[:, :2] - (low + high) / 2) * scale * [1, -1] + width / 2
        line = [tuple(point) for point in at]
        if kind == "edge":
            draw.line(line, EDGE_COLOR, SUPERSAMPLING)
        elif kind == "bond":
            draw.line(line, OUTLINE_COLOR, round(stick + 2 * SUPERSAMPLING))
            draw.line(line, color(number), round(stick))
        else:
            ball = _ball(number, max(round(2 * radius * scale), 3))
            corner = np.round(at[0] - ball.width / 2).astype(int)
            picture.alpha_composite(ball, tuple(np.clip(corner, 0, None).tolist()))
    return picture.resize((size, size), Image.Resampling.BOX)


def _flatten(scene: Scene, pieces: int = 4) -> list[Shape]:
    """The shapes of a flat picture, from the farthest to the nearest.

    Bonds are halves that start at the surfaces of the balls, edges a few pieces: so
    sorting by depth is enough to hide what is behind.
    """
    shapes = []
    for start, end in scene.edges:
        stops = start + np.linspace(0, 1, pieces + 1)[:, None] * (end - start)
        shapes += [Shape("edge", stops[i : i + 2]) for i in range(pieces)]
    atoms = zip(scene.positions, scene.atomic_numbers, scene.radii, strict=True)
    for position, number, radius in atoms:
        shapes.append(Shape("atom", position[None], int(number), float(radius)))
    for half, atom in zip(scene.halves, scene.half_of, strict=True):
        shapes.append(Shape("bond", half, int(scene.atomic_numbers[atom])))
    return sorted(shapes, key=lambda shape: shape.points[:, 2].mean())


@cache
def _ball(atomic_number: int, diameter: int) -> Image.Image:
    """A shaded ball, lit from the upper left (Blinn and Phong's model)."""
    axis = (np.arange(diameter) + 0.5) / diameter * 2 - 1
    x, y = np.meshgrid(axis, -axis)
    height = np.sqrt(np.clip(1 - x**2 - y**2, 0, None))
    light = np.array([-0.45, 0.55, 0.7])
    light /= np.linalg.norm(light)
    halfway = light + [0, 0, 1]
    halfway /= np.linalg.norm(halfway)
    normal = np.stack([x, y, height], -1)
    diffuse = 0.45 + 0.6 * np.clip(normal @ light, 0, None)
    gloss = 0.55 * np.clip(normal @ halfway, 0, None) ** 40
    rim = np.clip(height / 0.35, 0.55, 1)  # darker where the surface turns away
    rgb = jmol_colors[atomic_number] * (diffuse * rim)[..., None] + gloss[..., None]
    alpha = np.clip((1 - np.hypot(x, y)) * diameter / 2 + 0.5, 0, 1)
    rgba = np.concatenate([np.clip(rgb, 0, 1), alpha[..., None]], -1)
    return Image.fromarray(np.round(255 * rgba).astype(np.uint8), "RGBA")

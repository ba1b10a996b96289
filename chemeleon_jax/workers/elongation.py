"""Cells that pymatgen should not be asked to reduce.

pymatgen and NumPy only: worker processes import it.
"""

import numpy as np
from pymatgen.core import Lattice

MAX_LATTICE_POINTS = 1e6  # 100 MB; the most elongated cell of mp_mini has 751


def check_elongation(lattice: Lattice) -> None:
    """Refuses a cell whose Niggli reduction would take all the memory.

    pymatgen lists the lattice points within the length of the longest reduced vector.

    Raises:
      ValueError: they are too many.
    """
    reduced = lattice.get_lll_reduced_lattice()
    with np.errstate(all="ignore"):
        points = 4 / 3 * np.pi * np.float64(max(reduced.abc)) ** 3 / reduced.volume
    if not points < MAX_LATTICE_POINTS:
        a, b, c = reduced.abc
        raise ValueError(f"a cell of {a:.3g} x {b:.3g} x {c:.3g} Å is no crystal's")

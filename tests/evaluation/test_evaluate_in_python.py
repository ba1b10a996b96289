"""`interface.evaluate`, and what the program says of the same crystals."""

import io

import numpy as np
import pandas as pd
import pytest
from evaluating import run
from known_crystals import CLASH, CSCL_TYPE, NACL, save
from pymatgen.core import Lattice, Structure

from chemeleon_jax import interface
from chemeleon_jax.errors import UserError
from chemeleon_jax.interface import result


def test_python_gives_the_rows_of_the_program(folder):
    """Relaxed and judged by a hull, with one crystal that is none: every column."""
    potential = "ase:argon:lennard_jones"
    fcc = Lattice([[0, 2.75, 2.75], [2.75, 0, 2.75], [2.75, 2.75, 0]])
    given = [Structure(fcc, ["Na"], [[0, 0, 0]]), CLASH, CSCL_TYPE]
    save(folder / "some.json", given)
    (folder / "hull.csv").write_text("composition,energy_per_atom\nNa,-5.0\n")
    hull, flags = folder / "hull.csv", ["--relax", "--relax_steps=3"]
    _, summary = run(folder, "some.json", f"--hull={hull}", *flags, potential=potential)
    terms = {"potential": potential, "relax_steps": 3, "workers": 1}
    found = interface.evaluate(
        given, reference=folder / "known.json", hull=hull, **terms
    )
    written = pd.read_csv(folder / "out" / "crystals.csv")
    # The program names crystals by their file, and CSV has no dtypes.
    text = io.StringIO(found.table.assign(name=written["name"]).to_csv(index=False))
    pd.testing.assert_frame_equal(pd.read_csv(text), written)
    assert found.protocol == summary["protocol"]
    for name, score in summary["scores"].items():
        expected = [np.nan if x is None else x for x in score.values()]
        np.testing.assert_array_equal(found.scores.loc[name].to_numpy(), expected)
    relaxed = interface.relax([*given, None], **terms)
    names = ["energy_unrelaxed", "relax_steps", "relaxed", "relax_rmsd"]
    pd.testing.assert_frame_equal(
        relaxed.table[names][:3], found.table[names], check_dtype=False
    )
    assert relaxed.structures[:3] == found.structures
    assert relaxed.structures[1] == CLASH and relaxed.structures[3] is None
    assert list(relaxed.table["reason"]) == [
        *("valid", "min_distance", "valid", "unreadable")
    ]


def test_what_is_no_crystal_is_a_row(caplog):
    """The decoder's reason is kept; nothing raises but an empty list."""
    table = pd.DataFrame({"reason": ["valid", "volume"]})
    items = result.items_of(interface.Crystals([NACL, None], table))
    assert [item.problem for item in items] == ["", "volume"]
    mixed = Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])
    items = result.items_of([mixed, NACL * (8, 8, 8), "NaCl", None])
    assert [item.problem for item in items] == [
        "unreadable: disordered",
        "unreadable: more than 1000 atoms",
        "unreadable: str is no pymatgen structure",
        "unreadable: no structure",
    ]
    assert "structures: 4 of 4 crystals cannot be read" in caplog.text
    table = pd.DataFrame({"reason": ["valid"]})  # of one that was taken out since
    dropped = result.items_of(interface.Crystals([None, NACL], table))
    assert [item.problem for item in dropped] == ["unreadable: no structure", ""]
    others = ("runs/samples", {"a": NACL}, table, None, 5)
    for wrong in others:
        with pytest.raises(UserError, match="a list of pymatgen structures, not"):
            result.items_of(wrong)
    for wrong, message in (([], "there are none"), (NACL, "a list of")):
        with pytest.raises(UserError, match=message):
            result.items_of(wrong)
    with pytest.raises(UserError, match="at odds with --no-relax"):
        interface.evaluate([NACL], relax=False, relax_with="chgnet")

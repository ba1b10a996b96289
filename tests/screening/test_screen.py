"""The program on a few crystals, whole and cut off; and each reason to drop one."""

import json
from dataclasses import replace

import ase.db
import ase.io
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from crystal_sets import disguised
from known_crystals import CLASH, CSCL_TYPE, CUBIC, KNOWN, NACL, NEW, SODIUM, save
from pymatgen.core import Lattice, Structure

from chemeleon_jax import screen
from chemeleon_jax.data.readers.files import read_crystals
from chemeleon_jax.errors import UserError
from chemeleon_jax.evaluation.judge import EvaluationContext
from chemeleon_jax.interface import screen as screen_structures
from chemeleon_jax.potentials.hull import Hull
from chemeleon_jax.potentials.types import Potential, Status
from chemeleon_jax.rewards.matches import References
from chemeleon_jax.screening import sieve, steps

QUICK = "ase:ase.calculators.lj:LennardJones"  # any elements, and quick
SALT = Structure(Lattice.cubic(4.2), ["Na", "Br"], CUBIC)
SAMPLES = [NEW, CLASH, NACL, NEW, SALT, SODIUM]


SOFT = {"lowest_frequency": -6.0, "lowest_stiffness": 2.0}
WEAK = {"lowest_frequency": 1.0, "lowest_stiffness": -2.0}
FELL = {"along": "vibration", "converged": True, "drop": 0.013, "same": True}
FELL |= {"space_group": "R3m"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(steps, "CHUNK", 2)
    monkeypatch.setattr(steps, "EXAMINED", 1)
    save(tmp_path / "known.json", KNOWN)
    rng = np.random.default_rng(0)
    copies = [disguised(s, rng) if s is not CLASH else s for s in SAMPLES]
    save(tmp_path / "some.json", copies)
    return tmp_path


def arguments(folder, *flags):
    return [
        str(folder / "some.json"),
        f"--out={folder / 'out'}",
        f"--reference={folder / 'known.json'}",
        f"--potential={QUICK}",
        f"--stability_with={QUICK}",
        "--max_force=1000",  # where they are
        "--max_e_above_hull=1",
        "--workers=1",
        *flags,  # the last of two counts
    ]


def test_from_samples_to_candidates_also_when_it_is_cut_off(folder, monkeypatch):
    judged, judge_chunk = [], steps.judge_chunk

    def judge_some(items, *args):
        judged.append(len(items))
        if len(judged) == 2:
            raise KeyboardInterrupt
        return judge_chunk(items, *args)

    monkeypatch.setattr(steps, "judge_chunk", judge_some)
    with pytest.raises(KeyboardInterrupt):
        screen.main(arguments(folder))
    assert screen.main(arguments(folder)) == 0
    assert judged == [2, 2, 2]  # 4 to judge; those of the first chunk only once

    out = folder / "out"
    rows = pd.read_csv(out / "all.csv", keep_default_na=False)
    assert list(rows["reason"]) == ["", "invalid", "known", "duplicate", "", "known"]
    assert list(rows["formula"]) == ["KBr", "NaCl", "NaCl", "KBr", "NaBr", "Na"]
    assert list(rows["stage"][:4]) == ["candidate", "read", "relaxed", "read"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["num_candidates"] == 2
    assert list(summary["funnel"].values())[:5] == [6, 5, 5, 4, 2]
    assert "no second derivatives" in summary["notes"][0]

    table = pd.read_csv(out / "candidates.csv")
    assert set(table["formula"]) == {"KBr", "NaBr"} and list(table["rank"]) == [1, 2]
    assert table["e_above_hull:mean"].is_monotonic_increasing
    pd.testing.assert_frame_equal(
        pd.read_parquet(out / "candidates.parquet")["e_above_hull:mean"].to_frame(),
        table["e_above_hull:mean"].to_frame(),
    )
    frames = ase.io.read(out / "candidates.extxyz", ":")
    with ase.db.connect(out / "candidates.db") as database:
        entries = list(database.select())
    for frame, entry, line in zip(frames, entries, table.iloc, strict=True):
        energy = frame.get_potential_energy()
        assert energy == pytest.approx(line[f"energy:{QUICK}"] * len(frame))
        assert entry.energy == pytest.approx(energy)
        assert entry.data["formula"] == line["formula"]
        label = f"{line['rank']:03d}_{line['formula']}"
        for cell in ("conventional", "primitive"):
            cif = Structure.from_file(out / "cif" / f"{label}_{cell}.cif")
            assert cif.composition.reduced_formula == line["formula"]
        for name in ("MPRelaxSet", "MPScanRelaxSet"):
            place = out / "vasp" / label / name
            incar = (place / "INCAR").read_text()
            assert ("METAGGA" in incar) == (name == "MPScanRelaxSet")
            assert (place / "KPOINTS").is_file() or "KSPACING" in incar
            assert "Br" in (place / "POTCAR.txt").read_text()
            assert not (place / "POTCAR").exists()
    page = (out / "index.html").read_text(encoding="utf-8")
    for words in ("Funnel", "no second derivatives", "<strong>KBr</strong>", "Pm-3m"):
        assert words in page


def test_python_gives_the_candidates_of_the_program(folder):
    assert screen.main(arguments(folder, "--num_candidates=1")) == 0
    copies = [item.structure for item in read_crystals(folder / "some.json")]
    found = screen_structures(
        copies,
        reference=KNOWN,
        potential=QUICK,
        stability_with="none",
        max_force=1000,
        max_e_above_hull=1,
        num_candidates=1,
        workers=1,
    )
    table = pd.read_csv(folder / "out" / "candidates.csv")
    same = ["rank", "index", "formula", "space_group", "e_above_hull:mean"]
    pd.testing.assert_frame_equal(found.table[same], table[same])
    rows = pd.read_csv(folder / "out" / "all.csv", keep_default_na=False)
    assert list(found.all["reason"]) == list(rows["reason"])
    (structure,) = found.structures
    assert structure.composition.reduced_formula == table["formula"][0]


def test_known_crystals_can_stay_and_few_are_wanted(folder, monkeypatch):
    assert screen.main(arguments(folder, "--keep_known", "--num_candidates=1")) == 0
    rows = pd.read_csv(folder / "out" / "all.csv", keep_default_na=False)
    assert sorted(rows["reason"]) == sorted(
        ["", "invalid", "ranked_lower", "duplicate", "ranked_lower", "ranked_lower"]
    )
    (line,) = pd.read_csv(folder / "out" / "candidates.csv").to_dict("records")
    assert rows["stage"][line["index"]] == "candidate"
    # Nobody passes narrower limits; what is relaxed is not relaxed again.
    monkeypatch.setattr(steps, "judge_chunk", None)
    assert screen.main(arguments(folder, "--max_e_above_hull=1e-9")) == 0
    assert len(pd.read_csv(folder / "out" / "candidates.csv")) == 0
    assert not (folder / "out" / "candidates.db").exists()


LIMITS = sieve.Limits(
    max_e_above_hull=0.1, max_spread=0.15, min_frequency=-0.5, charge_balanced=True
)
GOOD = {
    "valid": True,
    "unique": True,
    "novel": True,
    "relaxed": True,
    "smact_valid": True,
    "relax_steps": 9,
    "relaxed_reason": "valid",
    "status": "ok",
    "e_above_hull:a": 0.05,
    "e_above_hull:b": -0.01,
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"valid": False}, "invalid"),
        ({"unique": False}, "duplicate"),
        ({"novel": False}, "known"),
        ({"novel": False, "status": "matching: timed_out"}, "not_compared"),
        ({"e_above_hull:b": None}, "no_energy"),
        ({"e_above_hull:b": 0.3}, "disputed"),
        ({"e_above_hull:b": 0.11}, "unstable"),  # by one judge is enough
        ({"e_above_hull:a": -0.25, "e_above_hull:b": -0.15}, "far_below_hull"),
        ({"relaxed": False}, "not_converged"),
        ({"novel": False, "relaxed": False}, "known"),  # the first that applies
        ({"smact_valid": False}, "unbalanced"),
        ({"smact_valid": None}, ""),  # SMACT has no answer
    ],
)
def test_reasons_of_relaxed_crystals(change, reason):
    found, _ = sieve.second_look(GOOD | change, ["a", "b"], LIMITS)
    assert found == reason and (found == "" or found in sieve.REASONS)


@pytest.mark.parametrize(
    ("stability", "reason"),
    [
        (None, ""),
        ({"lowest_frequency": -0.4, "lowest_stiffness": 2.0}, ""),
        ({"lowest_frequency": -0.6, "lowest_stiffness": 2.0}, "dynamically_unstable"),
        (SOFT | {"descents": [FELL | {"drop": 0.0009}]}, ""),
        (SOFT | {"descents": [FELL]}, "dynamically_unstable"),
        (SOFT | {"descents": [FELL | {"converged": False}]}, "dynamically_unstable"),
        ({"lowest_frequency": 1.0, "lowest_stiffness": -0.9}, ""),
        ({"lowest_frequency": 1.0, "lowest_stiffness": -2.0}, "elastically_unstable"),
        (WEAK | {"descents": [FELL | {"drop": 0.0}]}, "elastically_unstable"),
        (WEAK | {"descents": [FELL | {"drop": 0.0, "along": "strain"}]}, ""),
        ({"problem": "no graph"}, "not_converged"),
    ],
)
def test_reasons_of_examined_crystals(stability, reason):
    record = {} if stability is None else {"stability": stability}
    record |= {"descents": (stability or {}).get("descents", [])}
    assert sieve.third_look(record, [], LIMITS)[0] == reason


def test_what_came_to_rest_is_judged_like_any_other(pool):
    """Known, or the likeness of a better one: also once it has left a saddle."""
    fell = FELL | {"same": False, "space_group": "R3m"}
    record = {"stability": SOFT, "descents": [fell | {"same": True}, fell]}
    said = "-6.00 THz; off a saddle by 26.0 meV/atom, to R3m"
    assert sieve.third_look(record, [], LIMITS) == ("dynamically_unstable", said)
    stable = {"stability": {"lowest_frequency": 1.0}, "descents": [fell]}
    stable["e_above_hull:a"] = 0.05
    known = stable | {"new_at_rest": False}
    said = "off a saddle by 13.0 meV/atom, to R3m"
    assert sieve.third_look(known, [], LIMITS) == ("known", said)
    keep = replace(LIMITS, keep_known=True)
    far = known | {"e_above_hull:a": 0.05, "e_above_hull:b": 0.12}
    assert sieve.third_look(far, ["a"], keep) == ("", "")
    said = "0.120 eV/atom by b, " + said
    assert sieve.third_look(far, ["a", "b"], keep) == ("unstable", said)

    crystals = [NACL, CSCL_TYPE, NACL, CSCL_TYPE]
    still = {"stability": {"lowest_frequency": 1.0}, "descents": []}
    records = [
        record | {"primitive": structure.as_dict()}
        for record, structure in zip(
            [still, still, stable | {"new_at_rest": True}, still], crystals, strict=True
        )
    ]
    found = sieve.last_look(records, ["a"], LIMITS, pool)
    assert [reason for reason, _ in found] == ["", "", "duplicate", ""]


def test_energies_are_of_where_a_crystal_came_to_rest():
    """By each potential, and in a cell larger than any sample's; of no other crystal.

    Here by the mean of the cell's lengths, 17.1, 17.1 and 11.4, and by twice that.
    """

    def context(second_status):
        def judge(name, factor, status):
            def energies(crystals):
                count = len(crystals.mask)
                return factor * crystals.lengths.mean(-1), jnp.full(count, status)

            return Potential(name, name, energies), elements

        elements = Hull(np.eye(118, dtype=int), np.zeros(118))
        judges = {"a": judge("a", 1, 0), "b": judge("b", 2, second_status)}
        parts = {"references": References({}, {}), "pool": None, "vae": None}
        size = {"width": 20, "chunk": 2}
        return EvaluationContext(
            **parts, judges=judges, relax=None, relaxer="a", **size
        )

    row = GOOD | {"diluted": False}
    large = Structure(Lattice.cubic(5.7), ["Na", "Cl"], CUBIC)
    large.make_supercell((3, 3, 2))
    record = {"primitive": large.as_dict(), "descents": [FELL]}
    flat = {"primitive": large.as_dict(), "descents": [FELL | {"drop": 0.0}]}
    records = [dict(flat), dict(record)]
    steps.judge_at_rest([row, row], records, context(0))
    assert records[0] == flat
    assert records[1]["e_above_hull:a"] == pytest.approx(15.2)
    assert records[1]["energy:b"] == pytest.approx(30.4)
    assert records[1]["e_above_hull:mean"] == pytest.approx(22.8)
    assert not records[1]["metastable:all"]
    steps.judge_at_rest([row], [record], context(Status.TOO_DENSE))
    stable = record | {"stability": {"lowest_frequency": 1.0}}
    reason, detail = sieve.third_look(stable, ["a", "b"], LIMITS)
    assert reason == "no_energy" and "at rest: energy by b: too_dense" in detail


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--potential=none", "needs one"),
        ("--potential=chgnet,chgnet", "once"),
        ("--num_candidates=0", "above 0"),
        ("--min_frequency=1", "below 0"),
    ],
)
def test_errors_of_the_command_line(tmp_path, flag, message):
    args = screen.parse([str(tmp_path), f"--out={tmp_path}", flag])
    with pytest.raises(UserError, match=message):
        screen.terms_of(args)


def test_crystals_kept_by_the_first_look_are_the_first_of_their_kind(pool):
    from chemeleon_jax.data.readers.item import Item

    items = [Item(s) for s in (NACL, CLASH, CSCL_TYPE, NACL)] + [Item(None, "torn")]
    found = [look["reason"] for look in sieve.first_look(items, pool)]
    assert found == ["", "invalid", "", "duplicate", "invalid"]

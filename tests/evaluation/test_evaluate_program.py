"""The program's flags, places and interruptions."""

import pytest
from evaluating import run
from known_crystals import CLASH, KNOWN, NACL, NEW, save

from chemeleon_jax import evaluate
from chemeleon_jax.errors import UserError
from chemeleon_jax.evaluation import terms
from chemeleon_jax.runs.directory import work_directory


@pytest.mark.parametrize(
    ("flags", "potential", "relax"),
    [
        ([], "chgnet,sevennet-0:uncorrected", True),
        (["--no-relax"], "chgnet,sevennet-0:uncorrected", False),
        (["--hull=mine.csv"], "chgnet", True),
        (["--potential=none"], "none", False),
    ],
)
def test_crystals_are_relaxed_and_judged_twice_by_default(flags, potential, relax):
    args = evaluate.parse(["some.json", *flags])
    found = evaluate.read_terms(args)
    assert (found.potential, found.relax) == (potential, relax)
    assert found.relax_with == potential.partition(",")[0]


def test_an_evaluation_cut_off_goes_on(folder, monkeypatch):
    save(folder / "some.json", [NEW, NACL, NEW, CLASH, NEW])
    monkeypatch.setattr(terms, "CHUNK", 2)
    judged, judge_chunk = [], evaluate.judge_chunk

    def judge_some(items, *args):
        if len(judged) == 2:
            judged.append(None)
            raise KeyboardInterrupt
        judged.append(items)
        return judge_chunk(items, *args)

    monkeypatch.setattr(evaluate, "judge_chunk", judge_some)
    with pytest.raises(KeyboardInterrupt):
        run(folder, "some.json")
    rows, _ = run(folder, "some.json")
    assert [len(items) for items in judged if items] == [2, 2, 1]
    assert [row["formula"] for row in rows] == ["KBr", "NaCl", "KBr", "NaCl", "KBr"]
    flags = [[row[name] == "True" for row in rows] for name in ("unique", "novel")]
    assert flags[0] == [True, True, False, False, False]
    assert flags[1] == [True, False, True, False, True]
    assert not (folder / "out" / "partial").exists()


def test_two_sets_do_not_share_a_place(folder):
    for name in ("a.json", "b.json"):
        save(folder / name, KNOWN)
    paths = [folder / "a.json", folder / "b.json"]
    with pytest.raises(UserError, match="one by one"):
        evaluate.find_sets(paths, None)
    places = evaluate.find_sets(paths, folder / "out").values()
    assert [p.name for p in places] == ["a", "b"]
    (folder / "run" / "base").mkdir(parents=True)
    (folder / "run" / "base" / "crystals.jsonl").write_text("")
    assert list(evaluate.find_sets([folder / "run"], None).values()) == [
        folder / "run" / "evaluation",
        folder / "run" / "base" / "evaluation",
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--potential=mace"], "unknown potential"),
        (["--relax", "--potential=none"], "--relax"),
        (["--hull=x.csv", "--potential=none"], "--hull"),
        (["--hull=nowhere.csv"], "nowhere.csv"),
        (["--potential=chgnet,none"], "several must differ"),
        (["--relax_with=chgnet", "--no-relax"], "at odds with --no-relax"),
        (["--relax_with=chgnet", "--potential=none"], "at odds with --potential=none"),
        (["--vae=mini:predictor"], "holds no VAE"),
        (["--reference=nowhere.json"], "nowhere.json"),
        (["--workers=0"], "--workers=0: must be above 0"),
        (["--relax_steps=-1"], "--relax_steps=-1: must be above 0"),
        (["--max_force=nan"], "--max_force=nan: must be above 0"),
    ],
)
def test_errors_of_the_command_line(folder, capsys, flags, message):
    argv = [str(folder / "known.json"), f"--reference={folder / 'known.json'}"]
    assert evaluate.main([*argv, *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_named_before_the_work(
    folder, capsys, monkeypatch
):
    monkeypatch.setattr(evaluate, "load_judges", None)  # would fail if it were called
    (folder / "file").write_text("")
    argv = [str(folder / "known.json"), f"--reference={folder / 'known.json'}"]
    assert evaluate.main([*argv, f"--out={folder / 'file' / 'out'}"]) == 2
    shown = capsys.readouterr().err
    assert "Not a directory" in shown and "give another --out" in shown
    assert shown.count("\n") == 1
    # The folder beside the crystals, which nobody named.
    (folder / "evaluation").write_text("")
    assert evaluate.main(argv) == 2
    assert "give another --out" in capsys.readouterr().err


def test_one_evaluation_at_a_time_in_a_folder(folder, capsys):
    with work_directory(folder / "out", option="--out", lock=evaluate.LOCK):
        argv = [str(folder / "known.json"), f"--reference={folder / 'known.json'}"]
        argv += ["--potential=none", f"--out={folder / 'out'}"]
        assert evaluate.main(argv) == 2
    shown = capsys.readouterr().err
    assert "another process runs here" in shown and "another --out" in shown


def test_results_take_the_place_of_nothing_else(folder):
    """Not of crystals that are judged, of other files, or of another program's."""
    (folder / "crystals").mkdir()
    with pytest.raises(UserError, match="is the folder of the crystals"):
        evaluate.find_sets([folder / "crystals"], folder / "crystals" / ".")
    table = folder / "crystals.csv"
    table.write_text("mine\n")
    names = evaluate.RESULTS
    with pytest.raises(UserError, match="holds crystals.csv, which this program has"):
        evaluate.check_out(folder, names, "scores")
    (folder / "summary.json").write_text('{"funnel": {}}')
    with pytest.raises(UserError, match="has not written"):
        evaluate.check_out(folder, names, "scores")
    (folder / "summary.json").write_text('{"scores": {}}')
    evaluate.check_out(folder, names, "scores")
    (folder / "partial").mkdir()
    evaluate.check_out(folder, names, "scores")
    (folder / "partial" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="partial: holds files that no earlier try"):
        evaluate.check_out(folder, names, "scores")
    with pytest.raises(UserError, match="partial: holds files that no earlier try"):
        evaluate.prepare_partial(folder / "partial", [], {})
    assert (folder / "partial" / "notes.txt").read_text() == "mine"
    assert table.read_text() == "mine\n"

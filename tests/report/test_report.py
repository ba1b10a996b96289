"""The report page: what is read, what is computed, and how it looks in a browser."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure

from chemeleon_jax.data.crystals import from_structures
from chemeleon_jax.report import charts, comparison
from chemeleon_jax.report.__main__ import main, parse, report
from chemeleon_jax.report.comparison import Interval
from chemeleon_jax.report.gallery import best_crystals
from chemeleon_jax.report.page import learning
from chemeleon_jax.report.runs import CrystalSet, Run, load_run
from chemeleon_jax.runs.tracking import Tracker

COLUMNS = "index formula num_atoms space_group density valid unique novel metastable "
COLUMNS += "stable sun msun e_above_hull"
# formula, cell length, flags valid to msun, energy above the hull
CRYSTALS = (
    ("NaCl", 4.0, (1, 1, 0, 1, 1, 0, 0), -0.01),
    ("CsCl", 4.1, (1, 1, 1, 1, 0, 0, 1), 0.05),
    ("KBr", 4.3, (1, 1, 1, 0, 0, 0, 0), 0.3),
    ("CsCl", 4.1, (1, 0, 1, 1, 0, 0, 0), 0.04),
    ("LiF", 2.0, (0, 0, 0, 0, 0, 0, 0), np.nan),
    ("CsI", 4.6, (1, 1, 1, 0, 0, 0, 0), np.nan),
)


def write_evaluation(directory, shift=0.0):
    """An evaluation as `chemeleon_jax.evaluate` writes it; one structure is broken."""
    folder = directory / "evaluation"
    folder.mkdir(parents=True)
    rows, lines = [], []
    for i, (formula, length, flags, energy) in enumerate(CRYSTALS):
        species = re.findall("[A-Z][a-z]?", formula)
        structure = Structure(
            Lattice.cubic(length), species, [[0, 0, 0], [0.5, 0.5, 0.5]]
        )
        lines.append(json.dumps({"index": i, "structure": structure.as_dict()}))
        flags = [bool(f) for f in flags]
        row = (i, formula, 2, "Pm-3m", structure.density, *flags, energy + shift)
        rows.append(dict(zip(COLUMNS.split(), row, strict=True)))
    lines[2] = lines[2][:40]
    pd.DataFrame(rows).to_csv(folder / "crystals.csv", index=False)
    (folder / "structures.jsonl").write_text("\n".join(lines) + "\n")
    scores = {
        "valid": {"value": 0.8 - shift, "low": 0.7 - shift, "high": 0.85 - shift},
        "e_above_hull": {"value": 1 + shift, "low": 0.9 + shift, "high": 1.1 + shift},
        "frechet_distance": {"value": 2.0, "low": 1.0, "high": 3.0},
        "broken": {"value": None, "low": None, "high": None},
    }
    protocol = {"reference": "mp_mini", "matcher": {"ltol": 0.2}}
    summary = {"protocol": protocol, "num_crystals": 6, "scores": scores}
    (folder / "summary.json").write_text(json.dumps(summary))


def write_events(directory):
    noise = np.random.default_rng(0).normal(size=(40, 3))
    with Tracker(directory, total=40) as tracker:
        for step, (a, b, c) in enumerate(noise):
            metrics = {"reward": step / 10 + a, "energy": step / 20 + b, "valid": 0.9}
            tracker.log(step, {f"train/{k}": v for k, v in metrics.items()})
            tracker.log(step, {"time/sample": 2 + abs(c), "time/update": 5.0})
            if step % 10 == 9:
                tracker.log(step, {"val/reward": step / 10})


@pytest.fixture
def run_dir(tmp_path):
    """A run with an unfriendly name, evaluated with its base."""
    directory = tmp_path / "<b>run & co"
    write_events(directory)
    config = {
        "reward": {"components": {"energy": {"weight": 2.0}}},
        "rl": {"num_group_samples": 24},
        "data": {"batch_size": 8},
        "optimizer": {"lr": 2e-4},
        "ldm_ckpt_path": "mini:ldm",
    }
    (directory / "config.json").write_text(json.dumps(config))
    write_evaluation(directory / "samples")
    write_evaluation(directory / "samples" / "base", shift=0.3)
    return directory


# ------------------------------------------------------------------------ reading


def test_flags_numbers_and_structures_are_read(run_dir):
    run = load_run(run_dir, run_dir / "samples")
    table = run.tuned.table
    assert table["valid"].tolist() == [True, True, True, True, False, True]
    assert table["unique"].dtype == bool
    assert sorted(run.tuned.structures) == [0, 1, 3, 4, 5]
    assert any("1 of 6 lines" in note for note in run.notes)
    assert run.base.scores["e_above_hull"]["value"] == 1.3


def test_a_page_of_two_judges_shows_where_they_disagree(run_dir):
    assert "A second opinion" not in report(parse([str(run_dir)])).read_text()
    for folder in (run_dir / "samples", run_dir / "samples" / "base"):
        folder /= "evaluation"
        table = pd.read_csv(folder / "crystals.csv")
        for name in ("chgnet", "sevennet-l3i5"):
            table[f"e_above_hull:{name}"] = table["e_above_hull"]
        table.to_csv(folder / "crystals.csv", index=False)
        summary = json.loads((folder / "summary.json").read_text())
        summary["protocol"]["potentials"] = {"chgnet": {}, "sevennet-l3i5": {}}
        (folder / "summary.json").write_text(json.dumps(summary))
    assert "A second opinion" in report(parse([str(run_dir)])).read_text()


def test_every_component_of_the_reward_has_a_curve():
    steps = np.arange(4)
    curves = {f"train/{k}": (steps, steps) for k in ("element_kl", "hardness", "loss")}
    components = {"element_kl": {}, "hardness": {"function": "mine:hardness"}}
    run = Run("run", {"reward": {"components": components}}, curves)
    titles = [chart["title"] for chart in charts.component_charts([run])]
    assert titles == ["Elements", "hardness"]
    assert not charts.component_charts([Run("run", {}, {})])


def test_what_is_missing_is_said_and_how_to_make_it(tmp_path):
    write_events(tmp_path / "run")
    out = report(parse([str(tmp_path / "run")]))
    page = out.read_text()
    assert "No evaluation in" in page and "no such directory" in page
    assert f"chemeleon_jax.sample --checkpoint={tmp_path / 'run'} --base" in page
    assert "no readable config.json" in page
    assert "No crystals yet." in page


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "index\nx\n", "\0\1"])
def test_an_evaluation_that_is_none_is_said(run_dir, content):
    (run_dir / "samples/evaluation/crystals.csv").write_text(content)
    (run_dir / "samples/base/evaluation/summary.json").write_text("[]")
    run = load_run(run_dir, run_dir / "samples")
    assert run.tuned is None
    assert any("crystals.csv cannot be read" in note for note in run.notes)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", '{"reward": {"components": {"a": {"weight": "much"}}}}'),
        ("samples/evaluation/summary.json", '{"scores": {"valid": 3}, "protocol": {}}'),
        ("samples/evaluation/summary.json", '{"scores": {}, "protocol": {"a": [1]}}'),
        (
            "samples/evaluation/summary.json",
            '{"scores": {}, "protocol": {"potentials": 3}}',
        ),
    ],
)
def test_a_half_damaged_file_ends_no_report(run_dir, file, content):
    (run_dir / file).write_text(content)
    assert report(parse([str(run_dir)])).is_file()


def test_crystals_of_an_earlier_state_are_said_to_be_so(run_dir):
    for step in (40, 140):
        (run_dir / "checkpoints" / str(step)).mkdir(parents=True)
    manifest = {"weights": "latest", "checkpoint": "run", "iteration": 40}
    for then, noted in ((40, True), (140, False), (None, False)):
        manifest["iteration"] = then
        (run_dir / "samples/manifest.json").write_text(json.dumps(manifest))
        said = "\n".join(load_run(run_dir, run_dir / "samples").notes)
        assert noted == ("and the run is at 140" in said)


def test_a_run_without_evaluation_shows_what_it_trained_on(tmp_path):
    (tmp_path / "crystals").mkdir()
    cell = Lattice.cubic(4.1)
    batch = from_structures([Structure(cell, ["Cs"], [[0, 0, 0]])] * 2)
    for i in (3, 12):
        np.savez(
            tmp_path / f"crystals/iteration_{i:06d}.npz",
            **vars(batch),
            total=np.array([1.0, 2.0]),
            valid=np.array([True, True]),
        )
    seen = load_run(tmp_path, tmp_path / "samples").seen
    cards, _ = best_crystals(seen, 5)
    assert [card["index"] for card in cards] == [1, 0]  # the higher reward first
    assert cards[0]["e_above_hull"] is None


def test_files_cut_short_are_said(tmp_path):
    (tmp_path / "crystals").mkdir()
    (tmp_path / "crystals/iteration_000001.npz").write_bytes(b"PK\3\4 and no more")
    bad = b"\x04" + bytes(11) + b"\xff\xff\xff\xff" + bytes(4)  # a record of no event
    (tmp_path / "events.out.tfevents.1.x.2").write_bytes(bad)
    run = load_run(tmp_path, tmp_path / "samples")
    assert run.seen is None and run.curves == {}
    said = "\n".join(run.notes)
    assert "iteration_000001.npz cannot be read" in said
    assert "TensorBoard events" in said


def test_errors_are_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith("none: no such run directory\n")
    monkeypatch.setattr("sys.argv", ["report", "a", "b", "--samples=c"])
    with pytest.raises(SystemExit):
        main()
    assert "2 runs and 1 --samples" in capsys.readouterr().err


# ---------------------------------------------------------------------- computing


def test_the_gain_has_an_interval_of_its_own():
    base, tuned = Interval(0.2, 0.1, 0.35), Interval(0.5, 0.4, 0.6)
    change = comparison.gain(base, tuned)
    # 0.3 - sqrt(0.1^2 + 0.15^2) and 0.3 + sqrt(0.1^2 + 0.1^2)
    np.testing.assert_allclose(change, [0.3, 0.1197224, 0.4414214], rtol=1e-6)


@pytest.mark.parametrize(
    "name, change, verdict",
    [
        ("valid", (0.1, 0.05, 0.2), "better"),
        ("valid", (-0.1, -0.2, -0.05), "worse"),
        ("valid", (0.1, -0.05, 0.2), "unclear"),
        ("e_above_hull", (-4.0, -5.0, -3.0), "better"),
        ("density", (-4.0, -5.0, -3.0), "changed"),
    ],
)
def test_a_gain_is_named_where_it_is_clear(name, change, verdict):
    assert comparison.verdict(name, Interval(*change)) == verdict


def test_the_best_crystals_are_new_and_low_in_energy(run_dir):
    run = load_run(run_dir, run_dir / "samples")
    cards, problem = best_crystals(run.tuned, 10)
    # KBr has no structure, LiF is invalid; a duplicate and a known one come last.
    assert [c["formula"] for c in cards] == ["CsCl", "CsI", "NaCl", "CsCl"]
    assert [c["index"] for c in cards] == [1, 5, 0, 3]
    assert [c["badges"] for c in cards[:3]] == [
        ["MSUN"],
        ["novel", "unique"],
        ["stable", "unique"],
    ]
    assert problem == "valid crystals without a structure: 1"
    assert "_cell_length_a   4.1" in cards[0]["cif"]
    assert [len(e["balls"]) for e in cards[0]["elements"]] == [1, 8]  # Cl, Cs


def test_elements_are_counted_once_a_crystal():
    table = pd.DataFrame({"formula": ["NaCl", "Na2O", "H2O", None], "valid": True})
    shares = charts.element_shares(CrystalSet("x", table, {}))
    assert shares == {"Na": 2 / 3, "Cl": 1 / 3, "O": 2 / 3, "H": 1 / 3}


def test_the_periodic_table_is_that():
    cells = charts.periodic_table()
    places = {symbol: (row, column) for symbol, row, column in cells}
    assert len(set(places.values())) == 118
    wanted = {"H": (1, 1), "He": (1, 18), "Fe": (4, 8), "La": (8, 3), "Lu": (8, 17)}
    wanted |= {"Hf": (6, 4), "Ac": (9, 3), "Rf": (7, 4), "Og": (7, 18)}
    assert {k: places[k] for k in wanted} == wanted


def test_a_histogram_counts_every_valid_crystal_with_a_value(run_dir):
    run = load_run(run_dir, run_dir / "samples")
    drawn = charts.distribution_charts([run.tuned], {"tuned": "#000", run.name: "#000"})
    energy = next(c for c in drawn if c["title"] == "Energy above the hull")
    assert energy["traces"][0]["y"].sum() == pytest.approx(100)
    assert "4 in" in energy["about"]  # of 5 valid


def test_a_moving_mean_keeps_length_and_bridges_nan():
    y = np.array([0.0, np.nan, 2.0, 4.0])
    np.testing.assert_allclose(charts.moving_mean(y), [0, 1, 3, 3])


# -------------------------------------------------------------------- in a browser

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)


@pytest.fixture
def browser():
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    # A root user has no sandbox; WebGL is drawn by the CPU.
    args = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with api.sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=CHROMIUM, args=args) as it:
            yield it


def test_the_page_in_a_browser(run_dir, tmp_path, browser):
    out = report(parse([str(run_dir), f"--out={tmp_path / 'report.html'}"]))
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(180_000)
    said, fetched = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: fetched.append(request.url.partition(":")[0]))
    page.goto(out.as_uri())

    # Curves, scores, distributions: drawn, with something in them.
    assert page.locator("h1").inner_text() == "<b>run & co"
    drawn = page.locator(".chart.js-plotly-plot:visible")
    titles = page.locator(".card:has(.js-plotly-plot:visible) h3").all_inner_texts()
    assert {"Reward", "Energy", "Valid", "Energy above the hull"} <= set(titles)
    assert drawn.count() == len(titles)
    assert page.locator(".scatterlayer .trace path.js-line").count() >= 6
    assert page.locator("td.better").count() == 2  # valid, energy above the hull
    page.get_by_text("Policy and time").click()
    page.locator("details .js-plotly-plot").first.wait_for()
    assert page.locator(".periodic div", has_text="Cs").get_attribute("title")

    # The gallery, the other tab, and a crystal to turn around and take home.
    crystals = page.locator(".crystal:visible")
    assert crystals.count() == 4
    page.locator("[data-for=gallery]").get_by_text("base").click()
    page.locator("[data-for=gallery]").get_by_text("tuned").click()
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    crystals.first.click()
    page.locator("#canvas canvas").wait_for()
    facts = page.locator(".facts").inner_text()
    assert "Pm-3m" in facts and "0.050 eV/atom" in facts and "MSUN" in facts
    before = page.locator("#canvas").screenshot(path=tmp_path / "crystal.png")
    page.mouse.move(500, 450)
    page.mouse.down()
    page.mouse.move(600, 500, steps=4)
    page.mouse.up()
    assert page.locator("#canvas").screenshot(path=tmp_path / "turned.png") != before
    page.get_by_text("2 × 2 × 2").click()
    page.locator("#canvas canvas").wait_for()
    with page.expect_download() as download:
        page.get_by_text("Download CIF").click()
    cif = Structure.from_str(download.value.path().read_text(), fmt="cif")
    assert download.value.suggested_filename == "CsCl_1.cif"
    assert cif.composition.reduced_formula == "CsCl"
    page.keyboard.press("ArrowRight")
    assert page.locator("#viewer-title").inner_text() == "CsI"
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").is_visible()
    assert said == [] and set(fetched) <= {"file", "data", "blob"}


def test_drift_and_the_judge_are_drawn_where_there_are_any():
    """Training as a line and its mean; the judge, asked at validations, as markers."""
    steps, values = np.arange(3), np.array([59.0, 50.0, 40.0])
    curves = {
        "train/elements_effective": (steps, values),
        "val/judge/msun": (steps, np.array([0.3, 0.4, 0.5])),
    }
    found = charts.curve_charts([Run("run", {}, curves)], "drift")
    assert [c["title"] for c in found] == ["Effective elements", "MSUN by the judge"]
    assert [len(c["traces"]) for c in found] == [2, 1]
    np.testing.assert_array_equal(found[1]["traces"][0]["y"], [0.3, 0.4, 0.5])
    data = {"charts": {}}
    assert "<h3>Drift</h3>" in learning(
        [Run("run", {}, curves | {"train/reward": (steps, values)})], data
    )
    assert "Drift" not in learning(
        [Run("run", {}, {"train/reward": (steps, values)})], data
    )

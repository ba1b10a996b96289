"""The benchmark of an accelerator: its time, its faults, its smallest section."""

import json

from benchmarks.accelerator import Session, main


def test_it_says_what_it_did_not_measure(tmp_path, capsys):
    """Time that is short, and a fault: neither may pass for a figure, or end it."""
    file = tmp_path / "rows.json"
    rows = main(
        ["--small", "--only=environment,parity", f"--fixtures={tmp_path}"]
        + [f"--json={file}"]
    )
    cases = {row["case"]: row for row in rows}
    assert cases["matrix products, default"]["TFLOP/s"] > 0
    assert "golden.npz" in cases["all"]["note"]
    assert cases["all"]["note"].startswith("failed: ")
    assert json.loads(file.read_text())["rows"] == rows
    assert "| environment | cpu |" in capsys.readouterr().out

    session = Session(seconds=5.0)
    session.attempt("update", "large", 10.0, lambda: 1 / 0)
    assert session.rows[0]["note"] == "skipped: 5 s left, about 10 needed"
    assert session.rows[0]["s"] == "-"

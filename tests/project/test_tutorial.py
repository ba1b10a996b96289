"""docs/tutorial.ipynb: it runs, on few crystals, and what it shows was not typed."""

import nbformat
import paths
import pytest
from nbclient import NotebookClient

PAGE = paths.ROOT / "docs" / "tutorial.ipynb"
# What is changed so that it takes a minute or two: fewer of everything.
SHORT = {
    "ITERATIONS = 20": "ITERATIONS = 2",
    "SAMPLES = 100": "SAMPLES = 6",
    "--config.validate_every=0": "--config.validate_every=0 "
    "--config.data.batch_size=2 --config.rl.num_group_samples=2 "
    "--config.data.max_atoms=6 --config.reward.recent_iterations=0",
    'stability_with="sevennet-0"': 'stability_with="none"',
}


def test_the_outputs_are_kept_and_of_one_run_from_top_to_bottom():
    cells = [c for c in nbformat.read(PAGE, 4).cells if c.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    kinds = {
        kind
        for cell in cells
        for output in cell.outputs
        for kind in output.get("data", {})
    }
    assert "image/png" in kinds and "text/html" in kinds
    assert all(o.output_type != "error" for cell in cells for o in cell.outputs)


@pytest.mark.slow
def test_it_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(paths.ROOT))
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # of several devices
    notebook = nbformat.read(PAGE, 4)
    for old, new in SHORT.items():
        assert sum(old in cell.source for cell in notebook.cells) == 1, old
        for cell in notebook.cells:
            cell.source = cell.source.replace(old, new)
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    try:
        client.execute()
    finally:
        outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
        print("".join(o.get("text", "") for o in outputs))
    assert (tmp_path / "runs" / "light" / "checkpoints").is_dir()

import io
from types import SimpleNamespace

import numpy as np
from crystal_sets import salt
from PIL import Image

from chemeleon_jax.data.crystals import from_structures
from chemeleon_jax.report import pictures
from chemeleon_jax.report.pictures import log_validation
from chemeleon_jax.runs import tracking
from chemeleon_jax.runs.tracking import Tracker, read_scalars


def found():
    """Four crystals and their rewards: the third is invalid, the last a duplicate."""
    salts = [salt("Cl", 4.1), salt("Br", 4.3), salt("I", 0.1), salt("F", 4.0)]
    rewards = SimpleNamespace(
        raw=np.array([1.0, 2.0, 9.0, 8.0]),
        valid=np.array([True, True, False, True]),
        unique=np.array([True, True, False, False]),
        e_above_hull=np.array([0.1, np.nan, np.nan, np.nan]),
    )
    return from_structures(salts), rewards


def written(run_dir):
    """{tag: value} of an event file."""
    (file,) = run_dir.iterdir()
    return {v.tag: v for e, _ in tracking._events(file) for v in e.summary.value}


def test_a_validation_is_a_picture_and_histograms(tmp_path):
    with Tracker(tmp_path, total=1) as tracker:
        log_validation(tracker, 0, *found(), num_pictures=12)
    values = written(tmp_path)
    counts = {tag: v.histo.num for tag, v in values.items() if v.HasField("histo")}
    assert counts == {
        "val/distribution/reward": 3,
        "val/distribution/num_atoms": 3,
        "val/distribution/density": 3,
        "val/distribution/e_above_hull": 1,
    }
    image = values["val/best_crystals"].image
    assert Image.open(io.BytesIO(image.encoded_image_string)).size == (
        image.width,
        image.height,
    )
    # Neither is a curve of zeros.
    assert set(read_scalars(tmp_path)) == {"time/pictures"}


def test_the_best_come_first_and_only_once(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(
        pictures,
        "draw_grid",
        lambda best: shown.extend(best) or Image.new("RGB", (1, 1)),
    )
    with Tracker(tmp_path, total=1) as tracker:
        log_validation(tracker, 0, *found(), num_pictures=12)
        log_validation(tracker, 0, *found(), num_pictures=1)
        log_validation(tracker, 0, *found(), num_pictures=0)
    formulas = [s.structure.composition.reduced_formula for s in shown]
    assert formulas == ["CsBr", "CsCl", "CsBr"]


def test_no_valid_crystal_is_no_picture(tmp_path):
    crystals, rewards = found()
    rewards.valid[:] = False
    with Tracker(tmp_path, total=1) as tracker:
        log_validation(tracker, 0, crystals, rewards, num_pictures=4)
    assert set(written(tmp_path)) == {"time/pictures"}


def test_no_energies_are_no_histogram_of_them(tmp_path):
    crystals, rewards = found()
    rewards.e_above_hull = None
    with Tracker(tmp_path, total=1) as tracker:
        log_validation(tracker, 0, crystals, rewards, num_pictures=0)
    assert "val/distribution/e_above_hull" not in written(tmp_path)
    assert "val/distribution/reward" in written(tmp_path)

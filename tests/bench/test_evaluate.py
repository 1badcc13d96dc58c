import json

import numpy as np
import pytest
import torch

from bench import corruptions, evaluate


@pytest.fixture
def few(monkeypatch):
    """Three corruptions of a few images, measured as briefly as can be."""
    monkeypatch.setattr(evaluate, "NAMES", ("gaussian_noise", "contrast", "jpeg_compression"))
    monkeypatch.setitem(evaluate.BATCH, 32, 8)
    monkeypatch.setitem(evaluate.NUM_BY_NUMPY, 32, 1)
    monkeypatch.setitem(evaluate.SECONDS, False, 0.0)


def test_each_corruption_has_its_rows_and_the_means_are_said(few, tmp_path, capsys):
    file = tmp_path / "rows.json"
    assert evaluate.main(["--device", "cpu", "--threads", "1", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    cases = {f"{name} 32 px" for name in evaluate.NAMES}
    assert {(r["case"], r["impl"]) for r in rows} == {
        (case, impl) for case in cases for impl in ("hard_fast", "numpy")
    }
    assert all(r["unit"] == "images/s" and r["p50"] > 0 for r in rows)
    said = capsys.readouterr().out
    assert "geometric mean" in said and "arithmetic mean" in said and "below 5 times" in said


def test_gains_are_ratios_of_images_a_second(few):
    rows = [
        {"case": "contrast 32 px", "impl": impl, "p50": rate}
        for impl, rate in (("hard_fast", 600.0), ("numpy", 100.0))
    ]
    assert evaluate.gains(rows, 32, "numpy") == {"contrast": 6.0}


def test_nothing_is_timed_if_a_corruption_is_wrong(few, monkeypatch, capsys):
    monkeypatch.setattr(corruptions, "contrast", lambda image, kept, source: image)
    assert evaluate.main(["--device", "cpu", "--threads", "1"]) == 1
    assert "contrast by" in capsys.readouterr().err


def test_numpys_numbers_are_what_they_are_called():
    source = corruptions.NumpySource(0)
    assert source.normal(4, 5).shape == (4, 5) and source.few(3).shape == (3,)
    assert source.uniform(1000).min() >= 0 and source.uniform(1000).max() < 1
    assert {source.whole(3) for _ in range(100)} == {0, 1, 2}
    assert source.poisson(np.full(10000, 4.0)).mean() == pytest.approx(4, abs=0.1)


def test_the_images_are_pictures_of_all_tones():
    image = evaluate.draw_images(4, 32, torch.device("cpu"))
    assert image.dtype == torch.uint8 and image.is_contiguous(memory_format=torch.channels_last)
    assert 100 < image.float().mean() < 150 and image.float().std() > 30

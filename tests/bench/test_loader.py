import json

import pytest
from PIL import Image

from bench import loader


def test_the_pictures_are_jpegs_of_the_size_and_weight_that_are_promised(tmp_path):
    loader.write_pictures(tmp_path, 2)
    paths = sorted((tmp_path / "train").rglob("*.jpg"))
    assert [path.parent.name for path in paths] == ["class_0", "class_1"]
    for path in paths:
        assert Image.open(path).size == (500, 375)
        assert 60_000 < path.stat().st_size < 140_000


def test_cpu_time_is_counted_until_nothing_works_any_more():
    before = loader._cpu_s()
    assert sum(range(300_000)) and loader._cpu_s() > before
    assert loader._settle() > 0


@pytest.mark.slow
def test_every_loader_is_timed_and_the_rows_are_written(tmp_path, monkeypatch):
    for name in ("NUM_PICTURES", "BATCH", "STEP_BATCH"):
        monkeypatch.setattr(loader, name, {"cpu": 8 if name == "NUM_PICTURES" else 4})
    monkeypatch.setattr(loader, "STEPS", {"cpu": 1})
    monkeypatch.setattr(loader, "ROUNDS", {False: 1})
    file = tmp_path / "rows.json"
    command = ["--device", "cpu", "--threads", "1", "--json", str(file)]
    assert loader.main(command) == 0
    rows = json.loads(file.read_text())
    assert {row["impl"] for row in rows} == set(loader.LOADERS)
    assert {row["unit"] for row in rows} == {"images/s", "cpu_ms/image", "percent"}
    assert all(row["p50"] >= 0 and row["n"] == 1 for row in rows)
    assert loader.main(["--root", str(tmp_path / "nothing")]) == 2

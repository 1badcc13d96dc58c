import json

import pytest
import torch

from bench import distillers, end_to_end
from bench.end_to_end import Case
from bench.loader import write_pictures
from bench.trainers import Pair, draw_networks

CPU = torch.device("cpu")
TINY = Case(Pair("test_resnet", "test_resnet", 32, 4, "fp32", 2), 8, 1.3)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(end_to_end, "CASES", {"cpu": [TINY]})
    monkeypatch.setattr(end_to_end, "ROUNDS", {False: 1})


def test_timm_gets_random_crops_and_flips_and_nothing_else(tmp_path):
    write_pictures(tmp_path, 2)
    networks = draw_networks(TINY.pair, tmp_path)
    loader = end_to_end.timm_loader(TINY, networks, tmp_path, 1, CPU)
    crop, flip, convert = loader.dataset.transform.transforms
    assert type(crop).__name__ == "RandomResizedCropAndInterpolation" and crop.scale == (0.08, 1.0)
    assert type(flip).__name__ == "RandomHorizontalFlip" and flip.p == 0.5
    assert type(convert).__name__ == "MaybePILToTensor"
    assert loader.random_erasing is None
    assert loader.mean.flatten().tolist() == pytest.approx(
        [255 * value for value in networks.student.pretrained_cfg["mean"]]
    )


def test_the_goal_is_pictures_per_second_beside_timms():
    other = TINY._replace(num_pictures=16, goal=None)
    rows = [
        {"case": case.name, "impl": impl, "unit": "images/s", "p50": speed}
        for case in (TINY, other)
        for impl, speed in (("hard_fast", 130.0), ("timm", 100.0))
    ]
    (goal,) = end_to_end.goals_of([TINY, other], rows)
    assert (goal.value, goal.limit, goal.is_met) == (1.3, 1.3, True)
    rows[0]["p50"] = 129.0
    assert not end_to_end.goals_of([TINY], rows)[0].is_met


def test_nothing_is_timed_where_losses_differ(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(distillers, "TEMPERATURE", 4.01)
    file = tmp_path / "rows.json"
    assert end_to_end.main(["--device", "cpu", "--json", str(file)]) == 1
    assert "hard_fast: loss 1" in capsys.readouterr().err and not file.exists()


def test_both_go_from_jpegs_to_weights_and_the_rows_are_written(tiny, tmp_path):
    file = tmp_path / "rows.json"
    command = ["--device", "cpu", "--threads", "1", "--json", str(file)]
    assert end_to_end.main(command) == 0
    rows = json.loads(file.read_text())
    found = {(row["impl"], row["unit"]) for row in rows}
    units = ("images/s", "cpu_ms/image")
    assert found == {(impl, unit) for impl in ("hard_fast", "timm") for unit in units}
    for row in rows:
        assert (row["bench"], row["case"], row["n"]) == ("end_to_end", TINY.name, 1)
        assert row["p50"] > 0 and row["loader_threads"] == 1


def test_more_pictures_are_links_to_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(end_to_end, "NUM_DIFFERENT", 2)
    end_to_end.write_many(tmp_path, 5)
    paths = sorted((tmp_path / "train").rglob("*.jpg"))
    assert len(paths) == 5 and len({path.stat().st_ino for path in paths}) == 2
    assert {path.parent.name for path in paths} == {"class_0", "class_1"}
    assert len({path.name for path in paths}) == 5

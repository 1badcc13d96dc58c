import json

import pytest

from hard_fast.rank import main

STUDY = """
run_dir = "{run_dir}"
data = {{ kind = "synthetic", size = 8, channels = 3, num_train = 32, num_test = 16 }}
teacher = {{ name = "mlp", options = {{ hidden = [8] }} }}
student = {{ name = "mlp", options = {{ hidden = [8] }} }}
augmentor = {{ kind = "copies", part = {{ kind = "identity" }} }}
objective = {{ kind = "cutmixpick", keep = 1.0 }}
optim = {{ lr = 0.1 }}
train = {{ steps = 2, batch_size = 8, device = "cpu" }}

[study]
title = "small"
metrics = ["nll"]

[rows.identity]

[rows.mixup.run.augmentor.part]
kind = "mixup"

[rows.pick.run]
augmentor = {{ num = 2, part = {{ kind = "cutmix" }} }}
objective = {{ keep = 0.5 }}
"""
SIZE = ["--draws", "3", "--batches", "1", "--batch-size", "8", "--resamples", "100"]


@pytest.fixture
def study(tmp_path):
    file = tmp_path / "study.toml"
    file.write_text(STUDY.format(run_dir=tmp_path / "runs"))
    return str(file)


def test_the_rows_of_a_study_are_ranked_twice_alike(study, tmp_path, capsys):
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file in files:
        options = ["--json", str(file), "--plot", str(tmp_path / "a.png")]
        assert main(["--config", study, *SIZE, *options]) == 0
    one, other = (json.loads(file.read_text()) for file in files)
    assert one == other and set(one["rows"]) == {"identity", "mixup", "pick"}
    assert len(one["differences"]) == 3 and one["originals_per_draw"] == 8
    assert "3 draws of 8 originals" in capsys.readouterr().out
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_ranking_is_held_against_the_students(study, tmp_path, capsys):
    ranking, found = tmp_path / "rank.json", tmp_path / "study.json"
    assert main(["--config", study, *SIZE, "--json", str(ranking)]) == 0
    order = json.loads(ranking.read_text())["rows"]
    losses = {name: {"nll": {"mean": row["t_stddev"]}} for name, row in order.items()}
    found.write_text(json.dumps({"rows": losses}))
    told = ["--ranking", str(ranking), "--study", str(found), "--json", str(tmp_path / "c.json")]
    assert main(told) == 0
    held = json.loads((tmp_path / "c.json").read_text())["correlation"]["nll"]
    assert held["pearson"]["r"] == pytest.approx(1.0)
    assert "pearson 1.000" in capsys.readouterr().out
    assert main([*told, "--metric", "top1"]) == 2
    assert "0 of the ranked rows have 'top1'" in capsys.readouterr().err


def test_a_run_is_ranked_with_the_papers_augmentations(study, tmp_path):
    text = (tmp_path / "study.toml").read_text()
    file, told = tmp_path / "run.toml", tmp_path / "rank.json"
    file.write_text(text[: text.index("[study]")])
    assert main(["--config", str(file), *SIZE, "--json", str(told), "seed=1"]) == 0
    assert len(json.loads(told.read_text())["rows"]) == 8


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--batch-size", "6"], "pick mixes groups of 4 images"),
        (["--batch-size", "64"], "train.batch_size = 64: must be from 1"),
        (["--run", "nowhere"], "--run nowhere: no config.toml in it"),
        (["train.nothing=1"], "train.nothing"),
    ],
)
def test_a_mistake_is_one_line(study, capsys, wrong, message):
    assert main(["--config", study, *SIZE, *wrong]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ") and message in error

import json

import pytest

from hard_fast.runtime.configfile import ConfigError, dump
from hard_fast.study_plan import load_study


def write(tmp_path, tree):
    path = tmp_path / "study.toml"
    path.write_text(dump(tree))
    return str(path)


def test_rows_seeds_and_teachers(study, tmp_path):
    _, runs, study_dir = load_study(write(tmp_path, study), [])
    assert [(run.row, run.seed) for run in runs] == [
        ("teacher", 5),
        ("kd", 0),
        ("kd", 1),
        ("hard", 0),
        ("hard", 1),
    ]
    teacher = runs[0]
    assert all(run.teacher is teacher and run.depth == 1 for run in runs[1:])
    assert len({run.run_dir for run in runs}) == 5
    assert all(run.run_dir.is_relative_to(study_dir) for run in runs)
    study["rows"]["teacher"]["seeds"] = [1, 5]
    _, runs, _ = load_study(write(tmp_path, study), [])
    taught = {(run.row, run.seed): run.teacher.seed for run in runs if run.teacher}
    assert taught["kd", 1] == 1 and taught["kd", 0] == 1


def test_the_directory_of_a_run_follows_its_configuration(study, tmp_path):
    config = write(tmp_path, study)
    _, runs, _ = load_study(config, [])
    _, same, _ = load_study(config, [])
    _, other, _ = load_study(config, ["rows.teacher.run.optim.lr=0.5"])
    assert [run.run_dir for run in runs] == [run.run_dir for run in same]
    # Another teacher is another experiment for its students too.
    assert not {run.run_dir for run in runs} & {run.run_dir for run in other}


def test_an_override_that_a_row_would_ignore_is_refused(study, tmp_path):
    config = write(tmp_path, study)
    with pytest.raises(ConfigError, match=r"objective.kind: row teacher sets its own; add rows"):
        load_study(config, ["objective.kind=kd"])
    _, runs, _ = load_study(config, ["optim.lr=0.5"])
    assert all(run.config.optim.lr == 0.5 for run in runs)
    # Its epochs would replace the steps that were asked for.
    study["rows"]["teacher"]["run"]["train"] = {"epochs": 3}
    config = write(tmp_path, study)
    with pytest.raises(ConfigError, match=r"train.epochs: row teacher sets its own"):
        load_study(config, ["train.steps=2"])


@pytest.mark.parametrize("name", ["..", "../b", "a/b", "\n"])
def test_a_row_stays_in_the_directory_of_its_study(tmp_path, name):
    path = tmp_path / "study.toml"
    study = 'study = { title = "x", metrics = ["top1"] }'
    path.write_text(f"{study}\nrows = {{ {json.dumps(name)} = {{}} }}")
    with pytest.raises(ConfigError, match="names a folder of the study"):
        load_study(str(path), [])

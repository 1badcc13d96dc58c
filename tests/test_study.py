import json
from pathlib import Path

import pytest

from hard_fast.runtime.configfile import ConfigError, dump, merge
from hard_fast.study import load_study, main


@pytest.fixture
def study(tiny_run, tmp_path):
    """A study's tree: a teacher of one seed, and two rows of two seeds that learn from it."""
    common = {key: tiny_run[key] for key in ("data", "optim", "train")} | {
        "run_dir": str(tmp_path / "study"),
        "student": {"name": "mlp", "options": {"hidden": [8]}},
    }
    hard = {k: tiny_run[k] for k in ("augmentor", "objective", "schedule", "augmentor_optim")}
    return common | {
        "study": {
            "title": "tiny",
            "seeds": [0, 1],
            "metrics": ["top1"],
            "reach": "kd",
            "paper": {"hard": {"top1": 68.9}},
        },
        "rows": {
            "teacher": {
                "seeds": [5],
                "run": {"student": tiny_run["teacher"], "objective": {"kind": "ce"}},
            },
            "kd": {"teacher_row": "teacher", "run": {"objective": {"kind": "kd"}}},
            "hard": {"teacher_row": "teacher", "run": hard},
        },
    }


def write(tmp_path, tree):
    path = tmp_path / "study.toml"
    path.write_text(dump(tree))
    return str(path)


@pytest.mark.slow
def test_a_study_runs_its_rows_once_and_tells_what_it_found(study, tmp_path, capsys):
    config = write(tmp_path, study)
    short = ["train.steps=2", "study.seeds=[0]", "study.jobs=2", "train.gallery=false"]
    assert main(["--config", config, *short]) == 0
    study_dir = tmp_path / "study"
    result = json.loads((study_dir / "study.json").read_text())
    assert set(result) >= {"study", "rows", "seconds", "versions"} and result["study"] == "tiny"
    assert set(result["rows"]) == {"teacher", "kd", "hard"}
    found = result["rows"]["hard"]["top1"]
    assert found["n"] == 1 and found["sem"] == 0.0 and 0 <= found["mean"] <= 100
    assert result["reached"]["kd"]["top1"]["num_there"] == 1
    shown = capsys.readouterr().out
    assert "68.9" in shown and "first as good as kd in the end" in shown
    report = (study_dir / "report.html").read_text()
    assert "<html" in report and "as good as kd&#39;s in the end" in report
    (teacher_dir,) = (study_dir / "teacher").iterdir()
    (kd_dir,) = (study_dir / "kd").iterdir()
    assert f"{teacher_dir}/student.safetensors" in (kd_dir / "config.toml").read_text()

    before = {path: path.stat().st_mtime_ns for path in study_dir.rglob("summary.json")}
    assert len(before) == 3 and main(["--config", config, *short]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    again = json.loads((study_dir / "study.json").read_text())
    assert again["rows"] == result["rows"] and again["run_seconds"] == result["run_seconds"]


@pytest.mark.slow
def test_a_failed_run_is_named_and_the_rest_goes_on(study, tmp_path, capsys):
    study["rows"]["kd"]["run"]["student"] = {"name": "cnn", "options": {"pools": [9, 9, 9]}}
    del study["rows"]["hard"], study["study"]["paper"]
    config = write(tmp_path, study)
    assert main(["--config", config, "train.steps=1", "study.seeds=[0]"]) == 1
    shown = capsys.readouterr()
    assert "failed: kd seed 0: error: " in shown.err and "log.txt" in shown.err
    assert "teacher" in shown.out


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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": {"kd": {"teacher_row": "techer"}}}, "rows.kd.teacher_row = 'techer'"),
        ({"rows": {"kd": {"run": {"optim": {"lrr": 1}}}}}, "rows.kd: "),
        ({"rows": {"kd": {"sedes": [1]}}}, "did you mean 'seeds'"),
        ({"rows": {"teacher": {"teacher_classes": 3}}}, "there is no teacher_row; remove it"),
        ({"rows": {"kd": {"teacher_classes": 3}}}, "teacher.num_classes: only a teacher may"),
        ({"study": {"job": 2}}, "did you mean 'jobs'"),
        ({"study": {"paper": {"hrad": {"top1": 1.0}}}}, "study.paper.hrad: there is no such row"),
        ({"study": {"reach": "hrad"}}, "study.reach = 'hrad': there is no such row"),
        ({"rows": {"kd": {"run": {"seed": 3}}}}, "rows.kd.run.seed: is set by seeds"),
        ({"rows": {"kd": {"run": {"teacher": {"name": "mlp"}}}}}, "is set by teacher_row"),
        ({"seed": 3}, "a study has study.seeds"),
        ({"study": {"seeds": []}}, "study.seeds"),
    ],
)
def test_a_mistake_ends_in_one_line_before_anything_runs(study, tmp_path, capsys, changes, words):
    assert main(["--config", write(tmp_path, merge(study, changes))]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and words in said and "\n" not in said
    assert not Path(study["run_dir"]).exists()


def test_an_override_that_a_row_would_ignore_is_refused(study, tmp_path):
    config = write(tmp_path, study)
    with pytest.raises(ConfigError, match=r"objective.kind: row teacher sets its own; add rows"):
        load_study(config, ["objective.kind=kd"])
    _, runs, _ = load_study(config, ["optim.lr=0.5"])
    assert all(run.config.optim.lr == 0.5 for run in runs)


def test_a_single_run_is_sent_to_its_own_command(tiny_run, tmp_path, capsys):
    path = tmp_path / "run.toml"
    path.write_text(dump(tiny_run))
    assert main(["--config", str(path)]) == 2
    assert "hard_fast.train --config" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["..", "../b", "a/b", "\n"])
def test_a_row_stays_in_the_directory_of_its_study(tmp_path, name):
    path = tmp_path / "study.toml"
    study = 'study = { title = "x", metrics = ["top1"] }'
    path.write_text(f"{study}\nrows = {{ {json.dumps(name)} = {{}} }}")
    with pytest.raises(ConfigError, match="names a folder of the study"):
        load_study(str(path), [])

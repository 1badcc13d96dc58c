import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hard_fast.runtime.configfile import dump, merge
from hard_fast.study import main


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


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGHUP], [signal.SIGINT] * 2])
def test_a_study_that_is_stopped_stops_its_runs_and_goes_on(numbers, study, tmp_path):
    study["rows"] = {"teacher": study["rows"]["teacher"]}
    study["train"] |= {"steps": 3000, "eval_every_epochs": 300}
    del study["study"]["paper"], study["study"]["reach"]
    command = [sys.executable, "-m", "hard_fast.study", "--config", write(tmp_path, study)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list((tmp_path / "study").glob("teacher/*/metrics.jsonl")):
        assert process.poll() is None
        time.sleep(0.05)
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.2)
    name, said = numbers[0].name, process.communicate(timeout=60)[1]
    assert process.returncode == 128 + numbers[0] and "Traceback" not in said
    assert f"{name}: its runs have saved" in said
    (run_dir,) = (tmp_path / "study" / "teacher").iterdir()
    assert f"{name}: saved" in (run_dir / "log.txt").read_text()
    steps = max(int(note.stem[5:]) for note in run_dir.glob("checkpoints/step_*.json"))
    assert 0 < steps < 3000
    if numbers != [signal.SIGTERM]:
        return
    # No run is left behind: its directory is free, and the run goes on from there.
    done = subprocess.run([*command, "study.jobs=2"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = (run_dir / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["step"] == 3000


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


def test_a_single_run_is_sent_to_its_own_command(tiny_run, tmp_path, capsys):
    path = tmp_path / "run.toml"
    path.write_text(dump(tiny_run))
    assert main(["--config", str(path)]) == 2
    assert "hard_fast.train --config" in capsys.readouterr().err

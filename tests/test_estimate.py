"""What a run will take, said before it is started."""

import json
import os
import subprocess
import sys

import pytest

from hard_fast.estimate import main
from hard_fast.runtime.configfile import dump, merge


def call(tmp_path, tree, *arguments, **changes):
    """The exit code and the JSON of a call."""
    config, told = tmp_path / "run.toml", tmp_path / "told" / "estimate.json"
    config.write_text(dump(merge(tree, changes)))
    code = main(["--config", str(config), "--json", str(told), *arguments])
    return code, json.loads(told.read_text()) if told.is_file() else None


def test_a_call_tells_of_networks_memory_steps_and_batches(tiny_run, tmp_path, capsys):
    code, tree = call(tmp_path, tiny_run)
    assert code == 0 and tree["fits"] and not (tmp_path / "run").exists()
    assert tree["networks"]["student"] == {"name": "mlp", "parameters": 256 * 16 + 16 + 16 * 10}
    assert tree["networks"]["augmentor"]["parameters"] == 12
    assert "objective" not in tree["networks"]
    memory = tree["memory"]
    assert memory["peak"] == sum(value for name, value in memory.items() if name != "peak")
    assert memory["activations"] > 0 and memory["rest"] > 0
    assert [row["phase"] for row in tree["phases"]] == ["student", "augmentor"]
    # All training images, as many as passes allow.
    assert tree["largest"]["batch_size"] == {"1": 65, "2": 64, "4": 64}
    assert tree["largest"]["is_all_images"] and tree["largest"]["is_checked"]
    said = capsys.readouterr().out
    for words in ("student: mlp", "peak of a step", "augmentor phase", "the run, 12 steps"):
        assert words in said
    assert "50 % of the steps for the augmentor: assumed" in said.replace("\u00a0", " ")


def test_batches_that_the_run_would_refuse_are_not_proposed(tiny_run, tmp_path):
    _, tree = call(tmp_path, tiny_run, train={"batch_size": 18, "augmentor_batch_size": 9})
    assert tree["largest"]["batch_size"] == {"1": 65}


def length(tree, share=None):
    """Seconds of the run, by its steps' times."""
    ms = {row["phase"]: row["ms"] for row in tree["phases"]}
    student, augmentor = ms["student"], ms["augmentor"]
    return tree["length"]["steps"] * ((1 - share) * student + share * augmentor) / 1e3


def test_the_run_takes_its_steps_in_the_phases_of_its_schedule(tiny_run, tmp_path):
    _, tree = call(tmp_path, tiny_run)
    found = tree["length"]
    assert found["seconds"] == pytest.approx(length(tree, 0.5)) and found["augmentor_share"] == 0.5
    bounds = sorted((length(tree, 0.0), length(tree, 1.0)))
    assert found["range_s"] == pytest.approx(bounds)
    turns = {"kind": "alternate", "student_steps": 3, "augmentor_steps": 1}
    alternate = tiny_run | {"schedule": turns}
    del alternate["train"]["steps"]
    _, tree = call(tmp_path, alternate, train={"epochs": 5.0})
    # 65 images are left for training: four batches an epoch.
    assert tree["length"]["steps"] == 20 and tree["length"]["range_s"] is None
    assert tree["length"]["seconds"] == pytest.approx(length(tree, 0.25))


def test_pictures_that_grow_have_a_time_for_each_size(tiny_run, tmp_path):
    cnn = {"name": "cnn", "options": {"widths": [4, 4], "pools": [1, 2]}}
    given = tiny_run | {"student": cnn, "teacher": cnn, "schedule": {"kind": "joint"}}
    growing = {"resolution": {"start_px": 8, "stage_px": 8, "end": 0.5}}
    code, tree = call(tmp_path, given | {"objective": {"kind": "kd"}}, train=growing)
    assert code == 0 and [row["size_px"] for row in tree["phases"]] == [8, 16]
    wanted = sum(row["ms"] for row in tree["phases"]) * 6 / 1e3
    assert tree["length"]["seconds"] == pytest.approx(wanted)


def test_one_of_several_processes_is_measured_with_its_share(tiny_run, tmp_path, capsys):
    code, tree = call(tmp_path, tiny_run, "--processes", "4")
    assert code == 0 and tree["batch_size"] == 16 and tree["processes"] == 4
    assert tree["largest"]["batch_size"]["1"] == 64
    row = tree["phases"][0]
    assert row["images_per_s"] == pytest.approx(16 / row["ms"] * 1e3)
    capsys.readouterr()
    assert call(tmp_path, tiny_run, "--processes", "3")[0] == 2
    assert "must be divisible by the 3 processes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": {"checkpoint": "none.pth"}}, "[teacher]"),
        ({"train": {"batch_sise": 8}}, "did you mean 'batch_size'"),
        ({"train": {"batch_size": 512}}, "must be from 1 to the 65 training images"),
    ],
)
def test_a_mistake_is_one_line(tiny_run, tmp_path, capsys, changes, words):
    assert call(tmp_path, tiny_run, **changes)[0] == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said and said.count("\n") == 1


@pytest.mark.slow
def test_the_peak_is_that_of_a_real_run(tiny_run, tmp_path):
    """At the batch that was measured and, by the slope, at one of four times as many images."""
    resnet = {"name": "resnet18_3x3", "options": {"widths": [16, 32, 64, 64]}}
    data = {"size": 32, "channels": 3, "num_train": 300, "val_share": 0.0}
    changes = {"student": resnet, "teacher": resnet, "data": data}
    train = {"steps": 4, "gallery": False}
    tree = merge(tiny_run | changes, {"train": train, "data": {"kind": "synthetic"}})
    (tmp_path / "run.toml").write_text(dump(tree))
    # In a process of its own: all that a process has counts, and this one has much.
    command = [sys.executable, "-m", "hard_fast.estimate", "--config", str(tmp_path / "run.toml")]
    command += ["--json", str(tmp_path / "told.json")]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    told = json.loads((tmp_path / "told.json").read_text())
    for size in (16, 64):
        place = tmp_path / f"run{size}"
        command = [sys.executable, "-m", "hard_fast.train", "--config", str(tmp_path / "run.toml")]
        command += [f"train.batch_size={size}", f"run_dir={place}"]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        timing = json.loads((place / "summary.json").read_text())["timing"]
        wanted = told["memory"]["peak"] + told["largest"]["bytes_per_image"] * (size - 16)
        assert wanted == pytest.approx(timing["peak_memory_gib"] * 2**30, rel=0.15)


@pytest.mark.gpu
def test_a_call_on_a_gpu_tries_the_largest_batch(tiny_run, tmp_path):
    code, tree = call(tmp_path, tiny_run, train={"device": "cuda"}, compile={"mode": "off"})
    assert code == 0 and tree["largest"]["is_checked"] and tree["memory"]["peak"] > 0
    assert "activations" not in tree["memory"]

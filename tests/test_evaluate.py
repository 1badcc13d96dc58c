import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hard_fast.evaluate import main
from hard_fast.models.zoo import NetworkConfig, build_network, save_weights
from hard_fast.runtime.configfile import dump

CAPTIONS = ("suite", "score", "student")


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """12 made-up images of CIFAR-10's test set, and random weights of two nets beside them."""
    rows = torch.randint(256, (12, 3073), generator=torch.Generator().manual_seed(0))
    rows[:, 0] %= 10
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "test_batch.bin").write_bytes(rows.byte().numpy().tobytes())
    torch.manual_seed(0)
    for name in ("cifar_resnet20", "cifar_resnet56"):
        sizes = {"num_classes": 10, "in_channels": 3, "image_size": 32}
        net = build_network(NetworkConfig(name=name), **sizes)
        save_weights(net, tmp_path / f"{name}.safetensors")
    return tmp_path


def evaluate(data_root: Path, suites: str, *more: str, model: str = "cifar_resnet20") -> int:
    weights = ["--checkpoint", str(data_root / f"{model}.safetensors")]
    place = ["--data-root", str(data_root), "--device", "cpu"]
    return main(["--model", "cifar_resnet20", *weights, "--suites", suites, *place, *more])


def test_scores_gaps_and_parts_are_told_and_written(data_root: Path, capsys):
    file = data_root / "found.json"
    suites = "cifar10,usps,cifar10+corrupted:contrast,brightness@2"
    more = ("--json", str(file), "--limit", "6", "--paper", "CIFAR R18->ViT KD")
    more += (
        "--teacher",
        "cifar_resnet20",
        "teacher.checkpoint=" + str(data_root / "cifar_resnet20.safetensors"),
    )
    assert evaluate(data_root, suites, *more) == 0
    tree = json.loads(file.read_text())
    corrupted = "cifar10+corrupted:contrast,brightness@2"
    assert list(tree["suites"]) == ["cifar10", corrupted] and list(tree["gaps"]) == ["usps"]
    assert tree["model"] == "cifar_resnet20" and "torch" in tree["versions"]
    assert set(tree["parts"][corrupted]) == {"contrast/2", "brightness/2"}
    assert tree["suites"]["cifar10"]["agreement"] == 100.0
    assert tree["teacher"]["suites"]["cifar10"]["top1"] == tree["suites"]["cifar10"]["top1"]
    shown = capsys.readouterr().out
    assert all(word in shown for word in (*CAPTIONS, "teacher", "usps: no", "at most 6 samples"))


def test_nothing_but_gaps_is_exit_code_one(data_root: Path, capsys):
    file = data_root / "found.json"
    assert evaluate(data_root, "usps", "--json", str(file)) == 1
    assert json.loads(file.read_text())["suites"] == {} and "no data" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("suites", "options", "said"),
    [
        ("cifar11", {}, "cifar11: no such suite; choose from cifar10"),
        ("cifar10", {"model": "cifar_resnet56"}, "does not fit the network"),
        ("cifar10", {"more": ["--paper", "R18 KDD"]}, "no such row of the paper; choose from"),
        ("cifar10", {"more": ["data.num_classes=7"]}, "cifar10: has 10 classes, and the network 7"),
        (" , ", {}, "names no suite"),
        ("cifar10", {"more": ["--label-map", "map.json"]}, "only folder:PATH and pacs:DOMAIN"),
        ("cifar10", {"more": ["--json", "/"]}, "/: a folder; name a file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(data_root: Path, capsys, suites, options, said):
    more = options.pop("more", [])
    assert evaluate(data_root, suites, *more, **options) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ") and said in told.err and told.err.count("\n") == 1
    # Before anything was evaluated.
    assert told.out == ""


def test_a_damaged_file_of_data_is_one_line(data_root: Path, capsys):
    file = data_root / "cifar-10-batches-bin" / "test_batch.bin"
    file.write_bytes(file.read_bytes()[:-5])
    assert evaluate(data_root, "cifar10") == 2
    assert "test_batch.bin" in capsys.readouterr().err


def test_a_run_keeps_what_was_found_and_shows_it_in_its_report(data_root: Path):
    run_dir = data_root / "run"
    run_dir.mkdir()
    tree = {"data": {"kind": "cifar10"}, "student": {"name": "cifar_resnet20"}}
    tree |= {"objective": {"kind": "ce"}, "optim": {"lr": 0.1}, "train": {"steps": 1}}
    (run_dir / "config.toml").write_text(dump(tree))
    (run_dir / "metrics.jsonl").write_text('{"kind": "eval", "step": 1, "top1": 10.0}\n')
    (data_root / "cifar_resnet20.safetensors").rename(run_dir / "student.safetensors")
    place = ["--suites", "cifar10", "--data-root", str(data_root), "--device", "cpu"]
    assert main(["--run", str(run_dir), *place]) == 0
    found = json.loads((run_dir / "evaluation.json").read_text())
    assert set(found["suites"]["cifar10"]) == {"top1", "nll", "top5", "ece"}
    assert found["model"] == str(run_dir) and found["teacher"] is None
    assert "<h2>Evaluation</h2>" in (run_dir / "report.html").read_text()
    # Other weights are not what the run is worth.
    weights = (run_dir / "student.safetensors").rename(data_root / "others.safetensors")
    file = data_root / "found.json"
    place += ["--checkpoint", str(weights), "--json", str(file), "--limit", "3"]
    assert main(["--run", str(run_dir), *place]) == 0
    assert json.loads(file.read_text())["model"] == f"{run_dir}: {weights}"
    assert json.loads((run_dir / "evaluation.json").read_text()) == found


def test_a_run_answers_its_own_test_sets_and_an_early_exit_is_not_what_it_is_worth(
    tmp_path: Path, capsys
):
    name, run_dir = "python:hard_fast.models.branches:branched", tmp_path / "run"
    options = {"options": {"widths": [4, 8], "num_blocks": 1}, "after": ["layer1"]}
    student = {"name": name, "options": options}
    torch.manual_seed(0)
    sizes = {"num_classes": 10, "in_channels": 1, "image_size": 28}
    run_dir.mkdir()
    save_weights(build_network(NetworkConfig(**student), **sizes), run_dir / "student.safetensors")
    tree = {"data": {"kind": "digits"}, "student": student, "train": {"steps": 1}}
    tree |= {"objective": {"kind": "byot"}, "optim": {"lr": 0.1}}
    (run_dir / "config.toml").write_text(dump(tree))
    asked = ["--run", str(run_dir), "--suites", "own", "--device", "cpu", "--limit", "40"]
    found = []
    for number, exit in enumerate(([], ["student.options.exit=1"])):
        file = tmp_path / f"{number}.json"
        assert main([*asked, "--json", str(file), *exit]) == 0
        found.append(json.loads(file.read_text())["suites"])
    assert set(found[0]) == {"own_centered", "own_shifted"} == set(found[1])
    assert found[0]["own_centered"]["nll"] != found[1]["own_centered"]["nll"]
    assert json.loads((run_dir / "evaluation.json").read_text())["suites"] == found[0]
    capsys.readouterr()
    assert main([*asked[:3], "own,cifar10", *asked[4:]]) == 2
    assert "--data-root: cifar10 is looked for in it" in capsys.readouterr().err


def test_a_network_without_a_run_has_no_data_of_its_own(data_root: Path, capsys):
    assert evaluate(data_root, "own") == 2
    told = capsys.readouterr().err
    assert "own: these are the test sets of a run" in told and told.count("\n") == 1


@pytest.mark.slow
def test_under_torchrun_two_processes_write_what_one_writes(data_root: Path):
    found = []
    for num in (1, 2):
        file = data_root / f"found{num}.json"
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num}"]
        arguments = ["--model", "cifar_resnet20", "--suites", "cifar10", "--device", "cpu"]
        arguments += ["--checkpoint", str(data_root / "cifar_resnet20.safetensors")]
        arguments += ["--data-root", str(data_root), "--json", str(file)]
        done = subprocess.run(
            [sys.executable, *launch, "-m", "hard_fast.evaluate", *arguments],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("student") == 1
        found.append(json.loads(file.read_text())["suites"]["cifar10"])
    assert found[0] == pytest.approx(found[1], rel=1e-6)


@pytest.mark.slow
def test_the_published_resnet56_has_its_published_accuracy(real_data: Path, tmp_path: Path):
    file = tmp_path / "found.json"
    arguments = ["--model", "cifar_resnet56", "--suites", "cifar10", "--json", str(file)]
    assert main([*arguments, "--data-root", str(real_data)]) == 0
    assert json.loads(file.read_text())["suites"]["cifar10"]["top1"] == pytest.approx(93.39)

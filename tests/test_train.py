import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hard_fast.runtime.configfile import dump, merge
from hard_fast.runtime.rows import read_rows
from hard_fast.train import load_config, main

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def run_two(*arguments):
    """A command under torchrun with two processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *torchrun, *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def write(folder, tree, **changes):
    path = folder / "config-in.toml"
    path.write_text(dump(merge(tree, changes)))
    return str(path)


def command(config, *overrides):
    return [sys.executable, "-m", "hard_fast.train", "--config", config, *overrides]


def test_a_run_ends_with_summary_weights_report_and_resolved_config(tiny_run, tmp_path, capsys):
    config = write(tmp_path, tiny_run)
    assert main(["--config", config, "train.steps=3"]) == 0
    run_dir = Path(tiny_run["run_dir"])
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["steps"] == 3 and set(summary["metrics"]) == {"top1", "nll", "ece"}
    timing = summary["timing"]
    assert timing["images_per_s"] > 0 and 0 <= timing["data_wait_share"] < 1
    assert timing["peak_memory_gib"] > 0 and summary["versions"]["torch"]
    assert (run_dir / "student.safetensors").is_file()
    assert "<html" in (run_dir / "report.html").read_text()
    resolved = load_config(str(run_dir / "config.toml"), [])
    assert resolved.train.steps == 3 and summary["config_hash"] == resolved.fingerprint
    assert "report.html" in capsys.readouterr().err


def test_the_same_command_again_changes_nothing_and_another_config_is_refused(
    tiny_run, tmp_path, capsys
):
    config = write(tmp_path, tiny_run, train={"steps": 3, "gallery": False})
    assert main(["--config", config]) == 0
    weights = (Path(tiny_run["run_dir"]) / "student.safetensors").read_bytes()
    rows = read_rows(Path(tiny_run["run_dir"]) / "metrics.jsonl")
    assert main(["--config", config]) == 0
    assert (Path(tiny_run["run_dir"]) / "student.safetensors").read_bytes() == weights
    assert read_rows(Path(tiny_run["run_dir"]) / "metrics.jsonl") == rows
    assert main(["--config", config, "seed=1"]) == 2
    assert "another configuration" in capsys.readouterr().err
    assert main(["--config", config, "seed=1", "--resume", "never"]) == 0
    aside = Path(tiny_run["run_dir"] + ".old-1")
    assert (aside / "student.safetensors").read_bytes() == weights


def test_a_run_that_could_not_be_built_does_not_claim_its_directory(tiny_run, tmp_path, capsys):
    config = write(tmp_path, tiny_run, train={"steps": 1, "gallery": False})
    assert main(["--config", config, "teacher.checkpoint=gone.pth"]) == 2
    assert "[teacher] gone.pth" in capsys.readouterr().err
    assert main(["--config", config]) == 0


@pytest.mark.parametrize("place", ["a_file", "a_file/below"])
def test_a_directory_that_cannot_be_used_is_one_line(tiny_run, tmp_path, capsys, place):
    (tmp_path / "a_file").write_text("x")
    assert main(["--config", write(tmp_path, tiny_run), f"run_dir={tmp_path / place}"]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: run_dir = ") and "\n" not in said


def test_a_run_whose_numbers_explode_says_so_and_leaves_json_that_all_can_read(tiny_run, tmp_path):
    assert main(["--config", write(tmp_path, tiny_run), "optim.lr=1e30", "train.steps=4"]) == 0
    run_dir = Path(tiny_run["run_dir"])
    warnings = [row for row in read_rows(run_dir / "metrics.jsonl") if row["kind"] == "warning"]
    assert any("no finite number" in row["text"] for row in warnings)
    json.loads((run_dir / "summary.json").read_text(), parse_constant=pytest.fail)


def test_print_config_shows_a_file_that_is_the_same_run(tiny_run, tmp_path, capsys):
    config = write(tmp_path, tiny_run)
    assert main(["--config", config, "--print-config", "optim.lr=0.5"]) == 0
    shown = tmp_path / "shown.toml"
    shown.write_text(capsys.readouterr().out)
    want = load_config(config, ["optim.lr=0.5"])
    assert load_config(str(shown), []) == want and want.optim.lr == 0.5


def test_pictures_that_cannot_be_decoded_end_the_run_in_one_line(tiny_run, tmp_path, capsys):
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            place = tmp_path / "pictures" / part / name
            place.mkdir(parents=True)
            for i in range(4):
                path = place / f"{i}.jpg"
                Image.effect_noise((24, 20), 60).convert("RGB").save(path)
                path.write_bytes(path.read_bytes()[:200])
    data = {"kind": "pictures", "root": str(tmp_path / "pictures"), "size": 16, "threads": 1}
    changes = {"data": data | {"val_share": 0.0}, "train": {"batch_size": 4}}
    config = write(tmp_path, tiny_run | {"data": {}}, **changes)
    assert main(["--config", config]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "hard_fast.data.prepare check" in errors[0]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optim.lrr=1"], "did you mean 'lr'"),
        (["data.kind=mnist", "data.root=/nowhere"], "hard_fast.data.prepare mnist"),
        (["student.name=mpl"], "mlp"),
        (["teacher.checkpoint=gone.pth"], "gone.pth"),
        (["train.batch_size=1000"], "train.batch_size"),
        (["student.options={hiden=[3]}"], "hidden"),
    ],
)
def test_a_mistake_ends_in_one_line(tiny_run, tmp_path, capsys, overrides, words):
    assert main(["--config", write(tmp_path, tiny_run), *overrides]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and words in said and "\n" not in said


def test_a_mistake_of_one_process_alone_is_told_by_it(tiny_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hard_fast.train._PATIENCE_S", 0.0)
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "5")):
        monkeypatch.setenv(name, value)
    assert main(["--config", write(tmp_path, tiny_run)]) == 2
    assert capsys.readouterr().err.startswith("error on rank 1: LOCAL_RANK = 5")


@pytest.mark.parametrize("is_same_launch", [True, False])
def test_a_restart_goes_on_only_with_what_its_own_launch_began(
    tiny_run, tmp_path, monkeypatch, is_same_launch
):
    config = write(tmp_path, tiny_run, train={"steps": 3, "gallery": False})
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "first")
    assert main(["--config", config]) == 0
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "first" if is_same_launch else "second")
    assert main(["--config", config, "--resume", "never"]) == 0
    assert Path(tiny_run["run_dir"] + ".old-1").exists() is not is_same_launch


def test_a_study_is_sent_to_its_own_command(capsys):
    assert main(["--config", "quickstart"]) == 2
    assert "hard_fast.study --config quickstart" in capsys.readouterr().err


def test_smoke_shrinks_a_real_setting_to_seconds(tiny_run, tmp_path):
    tree = tiny_run | {
        "data": {"kind": "mnist", "root": "nowhere"},
        "student": {"name": "vit_mnist"},
        "teacher": {"name": "resnet18_3x3", "checkpoint": "none.pth"},
        "train": {"epochs": 400, "batch_size": 256, "tensorboard": False},
    }
    assert main(["--config", write(tmp_path, tree), "smoke=true"]) == 0
    summary = json.loads((Path(tiny_run["run_dir"]) / "summary.json").read_text())
    assert summary["steps"] == 3


@pytest.mark.slow
def test_a_killed_run_started_again_ends_with_the_same_weights(tiny_run, tmp_path):
    """SIGKILL at random moments until the run is through, against the unbroken run."""
    train = {"steps": 200, "log_every": 7, "gallery": False}
    config = write(tmp_path, tiny_run, train=train, checkpoint={"every_steps": 10})
    assert main(["--config", config, f"run_dir={tmp_path / 'whole'}"]) == 0
    pause, kills = random.Random(0), 0
    checkpoints = Path(tiny_run["run_dir"]) / "checkpoints"
    while True:
        num_before = len(list(checkpoints.glob("*.json")))
        process = subprocess.Popen(command(config), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        if kills < 3:
            _wait_for_progress(process, checkpoints, num_before)
            time.sleep(pause.uniform(0.0, 0.3))
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
        if process.wait() == 0:
            break
    assert kills == 3
    whole = load_file(tmp_path / "whole" / "student.safetensors")
    broken = load_file(Path(tiny_run["run_dir"]) / "student.safetensors")
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    rows = [
        [{k: v for k, v in row.items() if k != "timing"} for row in read_rows(d / "metrics.jsonl")]
        for d in (tmp_path / "whole", Path(tiny_run["run_dir"]))
    ]
    assert rows[0] == rows[1]


def _wait_for_progress(process, checkpoints, num_before):
    """Return once the run wrote a checkpoint, so that each kill finds it somewhere further on."""
    newest = max((p.stat().st_mtime for p in checkpoints.glob("*.json")), default=0.0)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if max((p.stat().st_mtime for p in checkpoints.glob("*.json")), default=0.0) > newest:
            return
        time.sleep(0.01)


GENERATORS = {
    "vdvae": {
        "enc_blocks": "16x1,16d2,8d8,1x1",
        "dec_blocks": "1x1,8m1,8x1,16m8,16x1",
        "channels": 1,
        "width": 16,
        "zdim": 2,
        "num_mixtures": 2,
        "train_from_block": 1,
    },
    "rqvae": {"width": 8, "multipliers": [1, 1], "latent": 8, "num_codes": 8, "norm_groups": 4},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("hard", []),
        ("mixup", []),
        ("hard", ["distributed.overlap=true", "train.accumulate=2"]),
        ("gathered", ["distributed.overlap=true", "train.accumulate=2"]),
        ("hard", ["distributed.overlap=true", "distributed.gradient_dtype=bf16"]),
        ("hard", ["distributed.teacher=sharded", "distributed.gradient_dtype=bf16"]),
        ("patch_mix", ["train.accumulate=2"]),
        ("vae_affine", []),
        ("vdvae", []),
        ("rqvae", []),
        ("noise", []),
    ],
)
def test_two_processes_are_equal_to_each_other_and_to_one(tiny_run, tmp_path, kind, options):
    """Same noise, same order, averaged gradients: without dropout and BatchNorm nothing differs."""
    tree = merge(
        tiny_run,
        {
            "student": {"options": {"hidden": [16], "dropout": 0.0}},
            "optim": {"kind": "sgd", "lr": 0.05, "clip_norm": 1.0},
            "augmentor_optim": {"kind": "sgd", "lr": 0.001},
            "train": {"steps": 8, "log_every": 1},
        },
    )
    if kind == "mixup":
        tree |= {"augmentor": {"kind": "mixup"}, "schedule": {"kind": "student_only"}}
        tree |= {"objective": {"kind": "kd", "ce_share": 0.3}}
        del tree["augmentor_optim"]
    if kind == "gathered":
        tree["optim"] |= {"update_every": 3}
    if kind == "patch_mix":
        tree |= {"augmentor": {"kind": "patch_mix"}, "schedule": {"kind": "joint"}}
    if kind == "vae_affine":
        sizes = {"width": 4, "latent": 4, "num_levels": 1, "num_blocks": 1}
        maker = {"kind": "autoencoder", "options": sizes}
        tree |= {"augmentor": {"kind": "compose", "parts": [maker, {"kind": "affine"}]}}
    if kind in GENERATORS:
        tree |= {"augmentor": {"kind": "autoencoder", "net": kind, "options": GENERATORS[kind]}}
    if kind == "noise":
        tree |= {"augmentor": {"kind": "noise"}}
    config = write(tmp_path, tree)
    assert main(["--config", config, f"run_dir={tmp_path / 'one'}"]) == 0
    run_two("-m", "hard_fast.train", "--config", config, *options)
    one = load_file(tmp_path / "one" / "student.safetensors")
    two = load_file(Path(tiny_run["run_dir"]) / "student.safetensors")
    # Gradients that travel in bf16 are rounded to 8 bits.
    atol = 1e-4 if "distributed.gradient_dtype=bf16" in options else 1e-6
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=atol)
    rows = [read_rows(d / "metrics.jsonl") for d in (tmp_path / "one", Path(tiny_run["run_dir"]))]
    switches = [[(r["step"], r["to"]) for r in read if r["kind"] == "switch"] for read in rows]
    assert switches[0] == switches[1]
    assert bool(switches[0]) == (kind not in ("mixup", "patch_mix"))
    losses = [[r[r["phase"]]["loss"] for r in read if r["kind"] == "train"] for read in rows]
    assert len(losses[0]) == 8 and losses[1] == pytest.approx(losses[0], rel=1e-4, abs=1e-5)
    assert [r["timing"]["averaging"] > 0 for r in rows[1] if r["kind"] == "train"] == [True] * 8


SAME_WEIGHTS = """
import sys, torch
from hard_fast.runtime import dist
from hard_fast.train import load_config
from hard_fast.trainer import Trainer
world = dist.join("cpu")
trainer = Trainer(load_config(sys.argv[1], []), world)
trainer.run()
averages = trainer.engine.average.state_dict()["averages"]
for name, value in [*trainer.net.state_dict().items(), *averages.items()]:
    mean = value.float().clone()
    dist.mean_([mean])
    assert torch.equal(mean, value.float()), name
dist.end(0)
"""


@pytest.mark.slow
def test_ranks_end_with_the_same_weights_and_a_run_of_two_resumes_exactly(tiny_run, tmp_path):
    """With BatchNorm and dropout, whose statistics and masks differ between ranks on the way."""
    network = {"name": "cnn", "options": {"widths": [4, 4, 4], "batch_norm": True}}
    changes = {"student": network, "train": {"steps": 8}, "checkpoint": {"every_steps": 4}}
    changes["average"] = {"decay": 0.9}
    config = write(tmp_path, tiny_run | {"student": {}}, **changes)
    script = tmp_path / "same_weights.py"
    script.write_text(SAME_WEIGHTS)
    run_two(str(script), config)
    run_dir = Path(tiny_run["run_dir"])
    whole = load_file(run_dir / "student.safetensors")
    before = [
        {k: v for k, v in r.items() if k != "timing"} for r in read_rows(run_dir / "metrics.jsonl")
    ]
    for path in (run_dir / "checkpoints").glob("step_000000008.*"):
        path.unlink()
    run_two(str(script), config)
    again = load_file(run_dir / "student.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    rows = [
        {k: v for k, v in r.items() if k != "timing"} for r in read_rows(run_dir / "metrics.jsonl")
    ]
    assert rows == before

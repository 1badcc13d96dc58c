"""Run and study directories as the trainer leaves them, made up but true to life."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hard_fast.report.figures import write_gallery

_CONFIG = """
seed = 0
[data]
kind = "mnist"
batch_size = 256
[teacher]
name = "mnist_cnn"
[student]
name = "mnist_mlp"
[augmentor]
kind = "affine"
std_init = 0.02
[objective]
kind = "hard"
temperature = 5.0
[schedule]
kind = "threshold"
l_min = 0.05
l_max = 0.4
patience = 5
[optim.student]
kind = "adam"
lr = 0.001
""".lstrip()
_VERSIONS = {"hard_fast": "0.1.0", "torch": "2.13.0", "python": "3.11.9"}


def _digits(num_images: int, angle: float) -> torch.Tensor:
    """[B,1,28,28] float in [0,1]: rings and bars, turned and shifted by `angle`."""
    axis = torch.linspace(-1, 1, 28)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    images = []
    for i in range(num_images):
        turn = angle * (1 + 0.3 * math.sin(i))
        u = x * math.cos(turn) + y * math.sin(turn) - 0.25 * turn
        v = y * math.cos(turn) - x * math.sin(turn) + 0.1 * turn
        ring = torch.exp(-(((u**2 * (1 + i % 3) + v**2).sqrt() - 0.45) ** 2) / 0.012)
        bar = torch.exp(-(u**2) / 0.01) * (v.abs() < 0.7)
        images.append((ring if i % 2 else torch.maximum(bar, 0.8 * ring)).clamp(0, 1))
    return torch.stack(images)[:, None]


def _rows(num_steps: int, every: int, is_learned: bool, noise: random.Random) -> list[dict]:
    rows: list[dict] = []
    length, num_learned, phase, error = (0.12 * num_steps), 0, "student", 0.9
    next_switch = length if is_learned else math.inf
    for step in range(every, num_steps + 1, every):
        share = step / num_steps
        if step >= next_switch:
            other = "augmentor" if phase == "student" else "student"
            low = phase == "student"
            said = "4.1 % below l_min 5 %" if low else "43.2 % above l_max 40 %"
            rows.append({"kind": "switch", "step": step, "from": phase, "to": other})
            rows[-1] |= {"reason": f"error {said} for 5 steps", "error": 0.041 if low else 0.432}
            phase, error = other, (0.041 if low else 0.432)
            next_switch = step + (0.006 if low else 0.09) * num_steps
        error += (0.45 - error) * 0.5 if phase == "augmentor" else (0.035 - error) * 0.08
        error = min(max(error + noise.gauss(0, 0.004), 0.001), 1)
        row = {"kind": "train", "step": step, "epoch": round(step / 235, 3), "phase": phase}
        row["lr"] = {"student": 0.001 * 0.5 * (1 + math.cos(math.pi * share)), "augmentor": 0.05}
        terms = {"kl_student": error * 1.3, "kl_teacher": 0.02 + 0.05 * share}
        row[phase] = {"steps": every, "loss": 2.2 * error + 0.02, "error": error}
        if phase == "augmentor":
            num_learned += every
            row[phase] = {"steps": every, "loss": 0.1 - terms["kl_student"], "error": error}
            row[phase] |= terms | {"teacher_change": 0.01 + 0.02 * share}
        row["timing"] = {"images_per_s": 20500 + noise.gauss(0, 700), "data_wait": 0.012}
        row["timing"]["seconds"] = 0.012 * step
        rows.append(row)
        if step % (num_steps // 10) < every:
            gain = 1 - math.exp(-5 * share)
            rows.append({"kind": "eval", "step": step, "epoch": row["epoch"]})
            rows[-1] |= {"val_top1": 60 + 37.4 * gain, "centered_top1": 60 + 37.1 * gain}
            rows[-1] |= {"shifted_top1": 18 + (48 if is_learned else 9) * gain}
            rows[-1] |= {"val_loss": 1.2 * math.exp(-3 * share) + 0.08}
    return rows


@pytest.fixture
def make_run() -> Callable[..., Path]:
    """A function that fills a directory with a run, and returns it."""
    return build_run


@pytest.fixture
def make_study() -> Callable[..., Path]:
    """A function that fills a directory with a study of MNIST's rows, and returns it."""
    return build_study


def build_run(
    run_dir: Path,
    num_steps: int = 2000,
    every: int = 10,
    is_finished: bool = True,
    is_learned: bool = True,
    num_galleries: int = 0,
) -> Path:
    """Fill a directory with a run of HARD-Affine on MNIST, or of plain KD."""
    run_dir.mkdir(parents=True)
    (run_dir / "config.toml").write_text(_CONFIG)
    rows = _rows(num_steps, every, is_learned, random.Random(0))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    for i in range(num_galleries):
        angle = 1.1 * i / max(num_galleries - 1, 1)
        path = run_dir / "gallery" / f"step_{i * num_steps // max(num_galleries - 1, 1):08d}.png"
        write_gallery(path, _digits(10, 0.0), _digits(10, angle))
    if is_finished:
        learned = sum(r["augmentor"]["steps"] for r in rows if "augmentor" in r)
        metrics = {"centered_top1": 97.12, "shifted_top1": 65.4, "val_top1": 97.31}
        summary = {
            "metrics": metrics | {"val_loss": 0.1394},
            "teacher": {"centered_top1": 99.41, "shifted_top1": 97.95},
            "steps": num_steps,
            "epochs": num_steps / 235,
            "versions": _VERSIONS,
            "config_hash": "3f9a2b77c01d",
            "phases": {"student": num_steps - learned, "augmentor": learned},
            "timing": {"seconds": 0.012 * num_steps, "images_per_s": 20512.3},
        }
        summary["timing"] |= {"data_wait_share": 0.0124, "peak_memory_gib": None}
        (run_dir / "summary.json").write_text(json.dumps(summary))
    (run_dir / "metrics.jsonl").write_text(text)
    return run_dir


def build_study(study_dir: Path, num_galleries: int = 0) -> Path:
    """Fill a directory with a study of six rows, its two learned runs among them."""
    centred = {"teacher": 99.41, "student": 98.0, "kd": 98.33, "random_affine": 98.6}
    centred |= {"shifts": 98.51, "hard_affine": 98.72}
    shifted = {"teacher": 97.95, "student": 33.1, "kd": 35.2, "random_affine": 71.3}
    shifted |= {"shifts": 91.25, "hard_affine": 88.4}
    rows, runs = {}, {}
    for row in centred:
        n = 1 if row == "teacher" else 3
        sem = None if n == 1 else 0.07
        rows[row] = {
            "centered_top1": {"mean": centred[row], "sem": sem, "n": n},
            "shifted_top1": {"mean": shifted[row], "sem": sem and 9 * sem, "n": n},
        }
        runs[row] = [f"{row}/seed{i}-{'abcd'[i] * 4}" for i in range(n)]
    paper = {"student": {"centered_top1": 98.1, "shifted_top1": 35.4}}
    paper["hard_affine"] = {"centered_top1": 98.9, "shifted_top1": 90.2}
    study_dir.mkdir(parents=True)
    for path in runs["hard_affine"][:2] + runs["kd"][:1]:
        is_learned = path.startswith("hard")
        build_run(
            study_dir / path,
            is_learned=is_learned,
            num_galleries=num_galleries if is_learned else 0,
        )
    study = {"study": "mnist_table1", "rows": rows, "paper": paper, "runs": runs}
    study |= {"metrics": ["centered_top1", "shifted_top1"], "seconds": 1834.2}
    (study_dir / "study.json").write_text(json.dumps(study | {"versions": _VERSIONS}))
    return study_dir

"""python -m bench.augmentors [--device auto|cpu|cuda] [--json FILE] [--full] [--threads N]

Measures what each augmentor adds to a step, in time and in memory. bench/README.md says what the
rows mean.
"""

import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.memory import saved_bytes
from bench.timing import (
    Row,
    Setting,
    clock_for,
    command_line,
    interleave,
    make_row,
    prepare,
    write_rows,
)
from bench.trainers import (
    Pair,
    build_trainer,
    draw_batch,
    draw_networks,
    forget_gradients,
    phase_loss,
    run_tree,
)
from hard_fast.trainer import Trainer

PAIRS = {
    "cpu": Pair("test_resnet", "test_resnet", 32, 64),
    "cuda": Pair("resnet50", "resnet18", 224, 256, "bf16", 1000),
}
FIXED = ("identity", "standard", "random_affine", "mixup", "cutmix", "mixup_cutmix", "erasing")
FIXED += ("trivial", "rand", "augmix")
_SMALL_VAE = {
    "kind": "autoencoder",
    "options": {"width": 32, "latent": 8, "num_levels": 2, "num_blocks": 1, "wide_norm": False},
}
LEARNED: dict[str, dict[str, Any]] = {
    "affine": {"kind": "affine"},
    "small VAE": _SMALL_VAE,
    "small VAE, affine": {"kind": "compose", "parts": [_SMALL_VAE, {"kind": "affine"}]},
    "tiny autoencoder": {"kind": "autoencoder"},
}
JOINT: dict[str, dict[str, Any]] = {"patch_mix": {"kind": "patch_mix"}}
FULL: dict[str, dict[str, Any]] = {"VDVAE": {"kind": "autoencoder", "net": "vdvae"}}
"""Learned too, and much dearer; for pictures of 32 px."""

ROUNDS = {False: 12, True: 40}
SECONDS = {False: 25.0, True: 300.0}
PHASE_METRICS = {
    "HARD student phase": "student_step",
    "HARD augmentor phase": "augmentor_step",
    "HARD joint phase": "joint_step",
}


def build_all(pair: Pair, setting: Setting, folder: Path, *, full: bool) -> dict[tuple, Trainer]:
    """A Trainer for each augmentor and phase, in its phase, by augmentor and metric."""
    networks, batch = draw_networks(pair, folder), draw_batch(pair, setting.device)
    found: dict[tuple[str, str], Trainer] = {}

    def add(name: str, metric: str, kind: str, augmentor: dict[str, Any]) -> None:
        tree = run_tree(pair, kind, networks, setting.device)
        found[name, metric] = build_trainer(tree | {"augmentor": augmentor}, kind, batch)

    for name in FIXED:
        add(name, "student_step", "KD", {"kind": name})
    wide = pair.size_px == 32 and full
    for name, augmentor in (LEARNED | (FULL if wide else {})).items():
        for kind in ("HARD student phase", "HARD augmentor phase"):
            add(name, PHASE_METRICS[kind], kind, augmentor)
    for name, augmentor in JOINT.items():
        add(name, "joint_step", "HARD joint phase", augmentor)
    return found


def measure(options: Namespace, setting: Setting) -> list[Row]:
    """The rows: milliseconds of a step and bytes that it keeps for its backward pass."""
    pair = PAIRS[setting.device.type]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        trainers = build_all(pair, setting, Path(folder), full=options.full)
        for (name, metric), trainer in trainers.items():
            kind = next((k for k, m in PHASE_METRICS.items() if m == metric), "KD")
            batch = trainer.loader.next_batch()
            num = saved_bytes(partial(phase_loss, trainer, kind, batch), trainer.net)
            forget_gradients(trainer)
            case = f"{pair.name}: {name}"
            saved = metric.replace("step", "saved")
            rows.append(make_row("augmentors", case, "hard_fast", saved, "bytes", [num], setting))
        runs: dict[str, Callable[[], object]] = {
            "/".join(key): trainer.train_step for key, trainer in trainers.items()
        }
        for run in runs.values():
            run()
        limits = (ROUNDS[options.full], SECONDS[options.full])
        times = interleave(runs, clock_for(setting.device), *limits)
    for (name, metric), values in zip(trainers, times.values(), strict=True):
        case = f"{pair.name}: {name}"
        rows.append(make_row("augmentors", case, "hard_fast", metric, "ms", values, setting))
    return rows


def table_of(rows: list[Row]) -> Table:
    """A line per augmentor: its steps' time beside the untouched one's, and what they keep."""
    table = Table(title=f"{rows[0]['case'].partition(':')[0]}, {rows[0]['device']}")
    for name in ("augmentor", "step", "p50 ms", "more than identity", "kept, MiB"):
        table.add_column(name, justify="left" if name in ("augmentor", "step") else "right")
    kept = {(row["case"], row["metric"]): row["p50"] for row in rows if row["unit"] == "bytes"}
    timed = [row for row in rows if row["unit"] == "ms"]
    plain = next(row["p50"] for row in timed if row["case"].endswith(": identity"))
    for row in timed:
        num = kept[row["case"], row["metric"].replace("step", "saved")] / 2**20
        name, step = row["case"].partition(": ")[2], row["metric"].replace("_", " ")
        more = f"{row['p50'] - plain:+.1f}"
        table.add_row(name, step, f"{row['p50']:.1f}", more, f"{num:.1f}")
    return table


def main(arguments: list[str] | None = None) -> int:
    """Measure, write the rows and print the table; 2 after one line about a mistake."""
    options = command_line("augmentors", __doc__).parse_args(arguments)
    try:
        setting = prepare(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = measure(options, setting)
    if options.json:
        write_rows(options.json, rows)
    Console().print(table_of(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

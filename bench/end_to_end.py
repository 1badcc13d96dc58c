"""python -m bench.end_to_end [--device auto|cpu|cuda] [--json FILE] [--full] [--threads N]

Times the whole of KD, JPEGs in a folder to updated weights: a run of `data.kind = "pictures"`
beside timm's loader and task. bench/README.md says what the rows mean.
"""

import contextlib
import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench.distillers import timm_loop
from bench.gate import Disagreement, check_in_fp32
from bench.goals import Goal
from bench.loader import Epoch, measure, write_pictures
from bench.timing import Row, Setting, command_line, make_row, prepare, write_rows
from bench.trainers import Networks, Pair, build_trainer, draw_networks, run_tree

NUM_CLASSES = 2
"""Of the pictures that the loader's bench writes."""

NUM_DIFFERENT = 128
"""Pictures that differ; more would take longer to draw than to train on."""


class Case(NamedTuple):
    """A pair of networks, and the pictures that they go through."""

    pair: Pair
    num_pictures: int
    goal: float | None
    """How many times timm's pictures per second are wanted; None: only reported."""

    @property
    def name(self) -> str:
        """What the rows call it."""
        return f"{self.pair.name}, {self.num_pictures} JPEGs"


CASES = {
    "cpu": [
        Case(Pair("test_resnet", "test_resnet", 64, 64, "fp32", NUM_CLASSES), 384, 1.3),
        Case(Pair("resnet18", "resnet18", 224, 8, "fp32", NUM_CLASSES), 16, None),
    ],
    "cuda": [Case(Pair("resnet50", "resnet18", 224, 512, "bf16", NUM_CLASSES), 16384, 1.5)],
}
ROUNDS = {False: 3, True: 12}


def write_many(root: Path, num: int) -> None:
    """The JPEGs of the loader's bench; beyond NUM_DIFFERENT they are links to the first ones."""
    write_pictures(root, min(num, NUM_DIFFERENT))
    paths = sorted((root / "train").rglob("*.jpg"))
    for number in range(len(paths), num):
        source = paths[number % len(paths)]
        os.link(source, source.with_name(f"link_{number:06d}.jpg"))


def ours(case: Case, networks: Networks, root: Path, threads: int, device: torch.device) -> Epoch:
    """A Trainer that decodes its pictures itself."""
    data = {"root": str(root), "size": case.pair.size_px, "val_share": 0.0, "threads": threads}
    tree = run_tree(case.pair, "KD", networks, device)
    trainer = build_trainer(tree | {"data": {"kind": "pictures", **data}}, "KD")
    num_steps = case.num_pictures // case.pair.batch_size

    def epoch() -> int:
        for _ in range(num_steps):
            trainer.train_step()
        _wait_for(device)
        return num_steps * case.pair.batch_size

    return epoch


def timm_loader(
    case: Case, networks: Networks, root: Path, threads: int, device: torch.device
) -> Iterable[tuple[Tensor, Tensor]]:
    """timm's dataset and loader as its training script joins them, with our crops and flips alone.

    Its prefetcher normalises on the device, and workers go on from one epoch to the next.
    """
    from timm.data import create_dataset, create_loader

    pair, config = case.pair, networks.student.pretrained_cfg
    return create_loader(
        create_dataset("", str(root / "train")),
        (3, pair.size_px, pair.size_px),
        pair.batch_size,
        is_training=True,
        scale=(0.08, 1.0),
        color_jitter=None,
        interpolation="bilinear",
        mean=config["mean"],
        std=config["std"],
        num_workers=threads,
        pin_memory=device.type == "cuda",
        device=device,
        use_multi_epochs_loader=True,
    )


def timm_epoch(
    case: Case, networks: Networks, root: Path, threads: int, device: torch.device
) -> Epoch:
    """timm's loader and its task, which is compiled on a GPU."""
    loader = timm_loader(case, networks, root, threads, device)
    step = timm_loop(case.pair, networks, device, is_compiled=device.type == "cuda")

    def epoch() -> int:
        num = 0
        for image, label in loader:
            step(image.contiguous(memory_format=torch.channels_last), label)
            num += len(label)
        _wait_for(device)
        return num

    return epoch


def time_case(case: Case, threads: int, num_rounds: int, setting: Setting) -> list[Row]:
    """The rows of one case, epochs in turn; the first of each only warms up."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_many(folder / "pictures", case.num_pictures)
        networks = draw_networks(case.pair, folder)
        place = (networks, folder / "pictures", threads, setting.device)
        epochs = {"hard_fast": ours(case, *place), "timm": timm_epoch(case, *place)}
        rows = []
        for name, results in measure(epochs, num_rounds).items():
            values = {
                "images/s": [result.images_per_s for result in results],
                "cpu_ms/image": [result.cpu_ms for result in results],
            }
            for unit, found in values.items():
                row = make_row("end_to_end", case.name, name, "epoch", unit, found, setting)
                rows.append(row | {"loader_threads": threads})
    return rows


def goals_of(cases: list[Case], rows: list[Row]) -> list[Goal]:
    """What is wanted beside timm."""
    speeds = {(row["case"], row["impl"]): row["p50"] for row in rows if row["unit"] == "images/s"}
    goals = []
    for case in cases:
        if case.goal is not None:
            ratio = speeds[case.name, "hard_fast"] / speeds[case.name, "timm"]
            goals.append(Goal(f"{case.name}: hard_fast / timm", ratio, case.goal, is_ceiling=False))
    return goals


def table_of(cases: list[Case], rows: list[Row]) -> Table:
    """A line per case and implementation."""
    where = f"{rows[0]['device']}, {rows[0]['threads']} threads"
    where += f", {rows[0]['loader_threads']} for pictures"
    table = Table(title=f"JPEGs to updated weights\n{where}", caption_justify="left")
    for name in ("case", "impl", "images/s", "CPU ms/image", "of timm's images/s"):
        table.add_column(name, justify="left" if name in ("case", "impl") else "right")
    found = {(row["case"], row["impl"], row["unit"]): row["p50"] for row in rows}
    for case in cases:
        for impl in ("hard_fast", "timm"):
            speed = found[case.name, impl, "images/s"]
            share = speed / found[case.name, "timm", "images/s"]
            cost = found[case.name, impl, "cpu_ms/image"]
            table.add_row(case.name, impl, f"{speed:.1f}", f"{cost:.2f}", f"{share:.2f}")
    table.caption = "\n".join(str(goal) for goal in goals_of(cases, rows))
    return table


def run(options: Namespace, setting: Setting) -> list[Row]:
    """The rows of every case.

    Raises:  Disagreement, and nothing is timed.
    """
    threads = options.threads or min(8, len(os.sched_getaffinity(0)))
    rows: list[Row] = []
    cases = CASES[setting.device.type]
    for case in cases:
        check_in_fp32(case.pair, setting.device, ("timm",))
    for case in cases:
        rows += time_case(case, threads, ROUNDS[options.full], setting)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Check, time and print; the exit code is 0, 1 if losses differ, 2 for a mistake."""
    options = command_line("end_to_end", __doc__).parse_args(arguments)
    try:
        setting = prepare(options)
        rows = run(options, setting)
    except Disagreement as error:
        print(f"nothing is timed:\n{error}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        write_rows(options.json, rows)
    console = Console()
    # A file or a pipe has no width; a row should still be one line.
    console = console if console.is_terminal else Console(width=140)
    console.print(table_of(CASES[setting.device.type], rows))
    return 0


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())

"""python -m bench.memory [--device auto|cpu|cuda] [--json FILE] [--full] [--threads N]

Measures what a run keeps: an optimizer's state per parameter, a teacher's weights, and what one
step needs in each phase. bench/README.md says what the rows mean.
"""

import gc
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import timm
import torch
from rich.console import Console
from rich.table import Table

from bench.goals import Goal
from bench.timing import Row, Setting, command_line, make_row, note, prepare, write_rows
from bench.trainers import (
    PHASES,
    Networks,
    Pair,
    build_trainer,
    draw_batch,
    draw_networks,
    phase_loss,
    run_tree,
)
from hard_fast.optim.build import OptimConfig, build_optimizer
from hard_fast.runtime.memory import peak_bytes, saved_bytes, state_bytes, storage_bytes
from hard_fast.trainer import Trainer
from hard_fast.types import Batch, Phase

NETWORKS = ["resnet18", "resnet50", "vit_small_patch16_224"]
OPTIMIZERS = {"adamw": "AdamW", "lion": "Lion", "lion8bit": "Lion8bit"}
PER_PARAMETER = "state_per_parameter"
LION8BIT_LIMIT = 1.1

PAIRS = {
    "cpu": Pair("resnet50", "resnet18", 64, 4),
    "cuda": Pair("resnet50", "resnet18", 224, 256, "bf16", 1000),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "teacher checkpointed": {"teacher": {"checkpointing": True}},
    "teacher in bf16": {"teacher": {"precision": "bf16"}},
    "teacher in bf16, checkpointed": {"teacher": {"precision": "bf16", "checkpointing": True}},
}


def measure_optimizers(names: list[str], setting: Setting) -> list[Row]:
    """Bytes of state per parameter after one step of each optimizer."""
    rows = []
    for name in names:
        for kind in OPTIMIZERS:
            # Each gets weights of its own: some move them into buffers.
            network = timm.create_model(name).to(setting.device)
            optimizer = build_optimizer(OptimConfig(kind=kind, lr=1e-4), network.named_parameters())
            for parameter in network.parameters():
                parameter.grad = torch.full_like(parameter, 1e-3)
            optimizer.step()
            num = sum(parameter.numel() for parameter in network.parameters())
            per_parameter = state_bytes(optimizer) / num
            case = f"{name}, {OPTIMIZERS[kind]}"
            where = ("memory", case, "hard_fast", PER_PARAMETER, "bytes")
            rows.append(make_row(*where, [per_parameter], setting))
    return rows


def measure_steps(pair: Pair, networks: Networks, setting: Setting, mode: str) -> list[Row]:
    """What each phase needs under each option, and the teacher's weights.

    Args:    mode: of compilation.
    """
    batch = draw_batch(pair, setting.device)
    rows = []
    for option, changes in OPTIONS.items():
        changes = changes | {"compile": {"mode": mode}}
        found: dict[str, dict[str, int]] = {}
        for kind, phase in PHASES.items():
            if "checkpointed" in option and phase is Phase.STUDENT:
                # There the teacher has no gradient and keeps nothing anyway.
                continue
            # The one before is to leave nothing: graphs are kept by number, memory by references.
            torch.compiler.reset()
            gc.collect()
            tree = run_tree(pair, kind, networks, setting.device, **changes)
            trainer = build_trainer(tree, kind, batch)
            found[f"{pair.name}: {kind}"] = _step_memory(trainer, kind, batch, setting.device)
            weights = storage_bytes(trainer.teacher.state_dict())
            del trainer
        if "checkpointed" not in option:
            found[pair.teacher] = {"weights": weights}
        for case, values in found.items():
            for metric, num_bytes in values.items():
                what = ("memory", f"{case}, {option}", "hard_fast", metric, "bytes")
                rows.append(make_row(*what, [num_bytes], setting))
    return rows


def goals_of(rows: list[Row]) -> list[Goal]:
    """What is wanted of Lion8bit."""
    found = [row for row in rows if row["metric"] == PER_PARAMETER]
    return [
        Goal(f"bytes of state per parameter, {row['case']}", row["p50"], LION8BIT_LIMIT)
        for row in found
        if row["case"].endswith(OPTIMIZERS["lion8bit"])
    ]


def table_of(rows: list[Row]) -> Table:
    """A line per measurement."""
    table = Table(title=f"memory, {rows[0]['device']}", caption_justify="left")
    for name in ("what", "metric", "bytes"):
        table.add_column(name, justify="right" if name == "bytes" else "left")
    for row in rows:
        is_share = row["metric"] == PER_PARAMETER
        value = f"{row['p50']:.3f}" if is_share else f"{row['p50'] / 2**20:,.1f} Mi"
        table.add_row(row["case"], row["metric"], value)
    table.caption = "\n".join(str(goal) for goal in goals_of(rows))
    return table


def run(options: Namespace, setting: Setting) -> list[Row]:
    """The rows of optimizers and of steps."""
    rows = measure_optimizers(NETWORKS, setting)
    pair = PAIRS[setting.device.type]
    if setting.device.type == "cpu":
        note("peak memory: left out, on a CPU PyTorch does not count what it gives out")
    with tempfile.TemporaryDirectory() as folder:
        networks = draw_networks(pair, Path(folder))
        return rows + measure_steps(pair, networks, setting, "auto" if options.full else "off")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; the exit code is 0, or 2 for a mistake."""
    options = command_line("memory", __doc__).parse_args(arguments)
    try:
        setting = prepare(options)
        rows = run(options, setting)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        write_rows(options.json, rows)
    console = Console()
    # A file or a pipe has no width; a row should still be one line.
    console = console if console.is_terminal else Console(width=140)
    console.print(table_of(rows))
    return 0


def _step_memory(trainer: Trainer, kind: str, batch: Batch, device: torch.device) -> dict[str, int]:
    """Bytes by what can be measured here; nothing where the step does not fit."""
    if device.type == "cpu":
        kept = saved_bytes(lambda: phase_loss(trainer, kind, batch), trainer.net)
        return {"saved_for_backward": kept}
    try:
        trainer.train_step()
        return {"peak_memory": peak_bytes(trainer.train_step, device)}
    except torch.cuda.OutOfMemoryError:
        note(f"{kind}: left out, its step does not fit")
        return {}


if __name__ == "__main__":
    sys.exit(main())

"""python -m bench.memory [--device auto|cpu|cuda] [--json FILE] [--full] [--threads N]

Measures what a run keeps: an optimizer's state per parameter, a teacher's weights, and what one
step needs in each phase. bench/README.md says what the rows mean.
"""

import gc
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

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


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of an optimizer's state, memory that several parameters share counted once."""
    return _count_storages(_tensors_in(list(optimizer.state.values())))


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


def saved_bytes(make_loss: Callable[[], Tensor], network: nn.Module) -> int:
    """Bytes that a loss keeps for its backward pass, each storage once, the network's own left out.

    They are the part of a step's memory that grows with the batch.
    """
    own = {_address(tensor) for tensor in (*network.parameters(), *network.buffers())}
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        if _address(tensor) not in own:
            kept.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = make_loss()
    assert loss.requires_grad
    return _count_storages(kept)


def peak_bytes(trainer: Trainer, device: torch.device) -> int:
    """Most memory that PyTorch has given out during a step, after one to warm up."""
    trainer.train_step()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    trainer.train_step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


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
            weights = _count_storages(trainer.teacher.state_dict().values())
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
        return {"peak_memory": peak_bytes(trainer, device)}
    except torch.cuda.OutOfMemoryError:
        note(f"{kind}: left out, its step does not fit")
        return {}


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors_in(item)


def _count_storages(tensors: Iterable[Tensor]) -> int:
    return sum({_address(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


if __name__ == "__main__":
    sys.exit(main())

"""python -m bench.step [--device auto|cpu|cuda] [--json FILE] [--full] [--threads N] [--peers]

Times one training step, bytes on the device to updated weights: KD by every implementation, and
the phases of HARD. bench/README.md says what the rows mean.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from bench.distillers import Distiller, Problem, build_distillers, installed_peers
from bench.gate import Disagreement, check, check_in_fp32
from bench.goals import kind_and_impl, step_goals
from bench.timing import (
    Budget,
    Row,
    Setting,
    clock_for,
    command_line,
    interleave,
    make_row,
    note,
    pair_up,
    prepare,
    write_rows,
)
from bench.trainers import (
    PHASES,
    Pair,
    bound_of,
    build_trainer,
    count_phase,
    draw_batch,
    draw_networks,
    run_tree,
)

PAIRS = {
    "cpu": [Pair("test_resnet", "test_resnet", 32, 64), Pair("resnet18", "resnet18", 224, 4)],
    "cuda": [Pair("resnet50", "resnet18", 224, 512, "bf16", 1000)],
}
FULL_PAIRS = {"cpu": [Pair("resnet50", "resnet18", 32, 128)], "cuda": []}


class Limits(NamedTuple):
    """How long measurements go on: seconds once the fewest rounds are done, and rounds at most."""

    seconds: float
    max_rounds: int


LIMITS = {
    ("cpu", False): Limits(40.0, 30),
    ("cpu", True): Limits(600.0, 100),
    ("cuda", False): Limits(90.0, 20),
    ("cuda", True): Limits(300.0, 100),
}
"""Of a whole call, by device and --full. On a CPU making networks and warming up is part of it."""
STEPS_AT_ONCE = {"cpu": 1, "cuda": 5}
"""Steps of one measurement. On a GPU the next one is queued while one still runs."""
NUM_WARM = 3

PEAK_FLOPS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
}
"""Dense bf16 operations per second, by what a GPU's name holds; NVIDIA's data sheets."""


def time_pair(
    problem: Problem, distillers: dict[str, Distiller], setting: Setting, limits: Limits
) -> list[Row]:
    """The rows of one pair, all timed in turn: every implementation of KD, ours in each phase."""
    steps: dict[tuple[str, str], Callable[[], object]] = {
        ("KD", name): distiller.step for name, distiller in distillers.items()
    }
    pair, start = problem.pair, time.perf_counter()
    flops, bounds = {}, {}
    for kind in PHASES:
        tree = run_tree(pair, kind, problem.networks, setting.device)
        trainer = build_trainer(tree, kind, problem.batch)
        flops[kind] = count_phase(trainer, kind, problem.batch)
        bounds[kind] = bound_of(kind, problem.networks, pair)
        if kind != "KD":
            steps[kind, "hard_fast"] = trainer.train_step
    num = STEPS_AT_ONCE[setting.device.type]
    runs = {" / ".join(key): partial(_repeat, step, num) for key, step in steps.items()}
    for run in runs.values():
        for _ in range(NUM_WARM if setting.device.type == "cuda" else 1):
            run()
    spent: dict[str, list[float]] = {name: [] for name in runs}
    counted = {name: partial(_count_cpu_ms, run, spent[name]) for name, run in runs.items()}
    seconds = limits.seconds - (time.perf_counter() - start)
    times = interleave(counted, clock_for(setting.device), limits.max_rounds, seconds)
    units = {"ms": times}
    if setting.device.type == "cpu":
        units["cpu_ms"] = spent
    rows = []
    for unit, times in units.items():
        ratios = pair_up(times, "KD / hard_fast")
        for (kind, impl), (name, found) in zip(steps, times.items(), strict=True):
            values = [milliseconds / num for milliseconds in found]
            row = make_row("step", f"{pair.name}: {kind}", impl, "step", unit, values, setting)
            row["of_kd"] = ratios[name]
            if unit == "ms":
                row["flop_utilisation"] = _utilisation(flops[kind], row["p50"], pair, setting)
            if kind == "KD" and distillers[impl].version:
                row["version"] = distillers[impl].version
            rows.append(row)
    for kind, count in flops.items():
        case = f"{pair.name}: {kind}"
        row = make_row("step", case, "hard_fast", "flops", "flops", [count], setting)
        rows.append(row | {"bound": bounds[kind]})
    return rows


def table_of(rows: list[Row], is_gpu: bool) -> Table:
    """A line per implementation of KD and per phase: p50, cost beside our KD step, FLOPs."""
    pair_name = rows[0]["case"].partition(": ")[0]
    where = f"{rows[0]['device']}, {rows[0]['threads']} threads"
    table = Table(title=f"{pair_name}\n{where}", caption_justify="left")
    columns = ("step", "impl", "p50 ms", "of our KD", "by CPU time")
    columns += ("GFLOPs", "of KD", "of bound", "utilised")
    for name in columns:
        table.add_column(name, justify="left" if name in ("step", "impl") else "right")
    counts = {kind_and_impl(row)[0]: row for row in rows if row["unit"] == "flops"}
    cpu = {kind_and_impl(row): f"{row['of_kd']:.3f}" for row in rows if row["unit"] == "cpu_ms"}
    for row in rows:
        if row["unit"] != "ms":
            continue
        kind, name = kind_and_impl(row)
        cells = [kind, name, f"{row['p50']:.1f}", f"{row['of_kd']:.3f}"]
        cells.append(cpu[kind, name] if cpu else "-")
        if name == "hard_fast":
            count, bound = counts[kind]["p50"], counts[kind]["bound"]
            of_kd = count / counts["KD"]["p50"]
            cells += [f"{count / 1e9:.1f}", f"{of_kd:.3f}", f"{count / bound:.3f}"]
        else:
            cells += ["", "", ""]
        share = row["flop_utilisation"]
        table.add_row(*cells, "-" if share is None else f"{share:.1%}")
    table.caption = "\n".join(str(goal) for goal in step_goals(rows, is_gpu))
    return table


def run_pair(
    pair: Pair, peers: tuple[str, ...], setting: Setting, *, with_compiled: bool, limits: Limits
) -> list[Row]:
    """The rows of a pair whose implementations agree.

    Raises:  Disagreement, and nothing is timed.
    """
    # Every pair brings graphs of its own, and only so many are kept.
    torch.compiler.reset()
    if pair.precision != "fp32":
        check_in_fp32(pair, setting.device, peers)
    with tempfile.TemporaryDirectory() as folder:
        networks = draw_networks(pair, Path(folder))
        problem = Problem(pair, networks, draw_batch(pair, setting.device))
        distillers = build_distillers(problem, peers, with_compiled=with_compiled)
        check(distillers, pair)
        return time_pair(problem, distillers, setting, limits)


def main(arguments: list[str] | None = None) -> int:
    """Check, time and print; the exit code is 0, 1 if losses differ, 2 for a mistake."""
    parser = command_line("step", __doc__)
    parser.add_argument("--peers", action="store_true", help="timm and torchdistill beside ours")
    options = parser.parse_args(arguments)
    try:
        setting = prepare(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    kind = setting.device.type
    is_gpu = kind == "cuda"
    pairs = PAIRS[kind] + (FULL_PAIRS[kind] if options.full else [])
    if options.peers:
        peers = installed_peers()
    else:
        peers = ()
        note("timm, torchdistill: left out without --peers")
    seconds, max_rounds = LIMITS[kind, options.full]
    budget = Budget(seconds, len(pairs))
    compiles = options.full or is_gpu
    tables, rows = [], []
    for pair in pairs:
        limits = Limits(budget.next_share(), max_rounds)
        try:
            found = run_pair(pair, peers, setting, with_compiled=compiles, limits=limits)
        except Disagreement as error:
            print(f"{pair.name}: nothing is timed:\n{error}", file=sys.stderr)
            return 1
        rows += found
        tables.append(table_of(found, is_gpu))
    if options.json:
        write_rows(options.json, rows)
    console = Console()
    # A file or a pipe has no width; a row should still be one line.
    console = console if console.is_terminal else Console(width=140)
    for table in tables:
        console.print(table)
    return 0


def _repeat(step: Callable[[], object], num: int) -> None:
    for _ in range(num):
        step()


def _count_cpu_ms(run: Callable[[], object], spent: list[float]) -> None:
    start = time.process_time()
    run()
    spent.append(1e3 * (time.process_time() - start))


def _utilisation(flops: int, milliseconds: float, pair: Pair, setting: Setting) -> float | None:
    """The share of the device's dense bf16 peak; None where there is none or it is not known."""
    peaks = [peak for name, peak in PEAK_FLOPS.items() if name in setting.device_name]
    if pair.precision != "bf16" or not peaks:
        return None
    return flops / (milliseconds / 1e3) / peaks[0]


if __name__ == "__main__":
    sys.exit(main())

"""What every bench shares: its command line, whose turn it is, its clock and its rows."""

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch

from hard_fast.runtime.environment import versions
from hard_fast.runtime.files import write_atomic
from hard_fast.runtime.memory import keep_freed_memory

Row = dict[str, Any]
Clock = Callable[[Callable[[], object]], float]

MIN_ROUNDS = 3
IS_LOWER_BETTER = {
    "ms": True,
    "cpu_ms": True,
    "cpu_ms/image": True,
    "bytes": True,
    "flops": True,
    "images/s": False,
    "GB/s": False,
}
"""Which way a unit improves. Others, such as percent, say nothing of better and worse."""
_KEYS = ("bench", "case", "impl", "metric", "unit", "p50", "device", "threads", "torch", "commit")
_FLUSH_BYTES = 256 * 2**20
_NUM_FLUSHES = 16


class Setting(NamedTuple):
    """Where a bench runs, and what each of its rows says about that."""

    device: torch.device
    device_name: str
    facts: dict[str, Any]
    """torch, threads, commit; on a GPU also power_cap_w, None where it cannot be read."""


def command_line(bench: str, description: str | None) -> argparse.ArgumentParser:
    """The parser with the options that every bench takes."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog=f"bench.{bench}", description=description, formatter_class=form
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    parser.add_argument("--full", action="store_true", help="all implementations, more rounds")
    parser.add_argument("--threads", type=int, metavar="N", help="of PyTorch on the CPU")
    return parser


def prepare(options: argparse.Namespace) -> Setting:
    """Set the threads, pick the device and note what the figures will be made with.

    Raises:  ValueError for a GPU or a folder that is not there and for fewer than 1 thread.
    """
    if options.json and not options.json.absolute().parent.is_dir():
        raise ValueError(f"--json {options.json}: there is no such folder")
    has_cuda = torch.cuda.is_available()
    if options.device == "cuda" and not has_cuda:
        raise ValueError("--device cuda: there is no CUDA device; choices: auto, cpu")
    if options.threads is not None:
        if options.threads < 1:
            raise ValueError(f"--threads {options.threads}: needs at least 1")
        torch.set_num_threads(options.threads)
    device = torch.device("cuda" if has_cuda and options.device != "cpu" else "cpu")
    # As in a run; whatever else is timed in this process has the gain too.
    keep_freed_memory(device)
    found = versions(device)
    facts = {"torch": found["torch"], "threads": torch.get_num_threads(), "commit": _commit()}
    if device.type == "cuda":
        facts["power_cap_w"] = _power_cap_w(device)
    return Setting(device, found["device"], facts)


class Budget:
    """A number of seconds for a number of measurements; what one leaves goes to the later ones."""

    def __init__(self, seconds: float, num_parts: int) -> None:
        self._stop = time.perf_counter() + seconds
        self._num_left = num_parts

    def next_share(self) -> float:
        """Seconds for the next measurement: 0 once all are spent."""
        left = max(0.0, self._stop - time.perf_counter())
        share = left / max(1, self._num_left)
        self._num_left -= 1
        return share


def clock_for(device: torch.device) -> Clock:
    """A function that makes one call and returns its milliseconds.

    On a CPU that is wall time. On a GPU it is the time between two CUDA events around the call,
    with none of its inputs in the L2 cache.
    """
    return _time_on_cpu if device.type == "cpu" else _CudaClock(device)


def interleave(
    runs: dict[str, Callable[[], object]], clock: Clock, num_rounds: int, seconds: float
) -> dict[str, list[float]]:
    """The milliseconds of each run, once a round each, so that a busy moment meets all of them.

    The order within a round changes: one that always ran after its twin would find its code and
    its inputs in the caches.

    Args:    num_rounds: at most so many times each.
             seconds: no round begins after these, once MIN_ROUNDS are done.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    order, random = list(runs), Random(0)
    stop = time.perf_counter() + seconds
    for num_done in range(num_rounds):
        if num_done >= MIN_ROUNDS and time.perf_counter() > stop:
            break
        random.shuffle(order)
        for name in order:
            times[name].append(clock(runs[name]))
    return times


def pair_up(times: dict[str, list[float]], reference: str) -> dict[str, float]:
    """Each run's time as a multiple of the reference's, the median of the rounds' own ratios.

    Both of a round met the same machine, so this stands still where busy moments move a p50.
    """
    return {
        name: percentile([a / b for a, b in zip(found, times[reference], strict=True)], 50)
        for name, found in times.items()
    }


def percentile(values: list[float], percent: float) -> float:
    """The value that `percent` of the values do not exceed, linear between neighbours."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def make_row(
    bench: str, case: str, impl: str, metric: str, unit: str, values: list[float], setting: Setting
) -> Row:
    """One row of a bench: 20th, 50th and 80th percentile of n values, where and with what."""
    return {
        "bench": bench,
        "case": case,
        "impl": impl,
        "metric": metric,
        "unit": unit,
        "p20": percentile(values, 20),
        "p50": percentile(values, 50),
        "p80": percentile(values, 80),
        "n": len(values),
        "device": setting.device_name,
        **setting.facts,
    }


def key_of(row: Row) -> tuple[object, ...]:
    """What a row measures and where: equal for a later measurement of the same."""
    places = ("bench", "case", "impl", "metric", "unit", "device", "threads")
    return tuple(row[place] for place in places)


def read_rows(path: Path) -> list[Row]:
    """The measured rows of a JSON list or of JSON lines, in order; a study's scores are none.

    Raises:  ValueError, one line, for a file that is not there or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            rows = json.loads(text)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path}: is no JSON: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: is no list of rows")
    rows = [row for row in rows if "p50" in row]
    for row in rows:
        if missing := [key for key in _KEYS if key not in row]:
            raise ValueError(f"{path}: a row lacks {', '.join(missing)}: {json.dumps(row)[:80]}")
    return rows


def newest(rows: list[Row]) -> list[Row]:
    """Each measurement's last row, where the first one of it stood."""
    return list({key_of(row): row for row in rows}.values())


def note(text: str) -> None:
    """Say on stderr what the rows cannot."""
    print(f"note: {text}", file=sys.stderr)


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write the rows as one JSON list, a row a line."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    write_atomic(path, f"[\n{lines}\n]\n")


def _time_on_cpu(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


class _CudaClock:
    def __init__(self, device: torch.device) -> None:
        self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device)
        self._start = torch.cuda.Event(enable_timing=True)
        self._end = torch.cuda.Event(enable_timing=True)

    def __call__(self, run: Callable[[], object]) -> float:
        # Once would empty the cache. The device stays busy for longer, so that all of the call is
        # queued when it gets there and the events do not time Python, which a step overlaps.
        for _ in range(_NUM_FLUSHES):
            self._flush.zero_()
        self._start.record()
        run()
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end)


def _commit(root: Path = Path(__file__).parent.parent) -> str:
    """What is checked out, with -dirty where it was changed since, but for the rows themselves."""
    git = ("git", "-C", str(root))
    commit = _said(*git, "describe", "--always")
    rows = ":!bench/results.jsonl"
    changed = _said(*git, "status", "--porcelain", "--untracked-files=no", "--", ".", rows)
    if commit is None:
        return "unknown"
    return commit if changed == "" else f"{commit}-dirty"


def _power_cap_w(device: torch.device) -> float | None:
    # By its UUID, since CUDA_VISIBLE_DEVICES renumbers devices for PyTorch alone.
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    said = _said("nvidia-smi", f"--id={uuid}", "--query-gpu=power.limit", "--format=csv,noheader")
    number = (said or "").removesuffix("W").strip()
    return float(number) if number.replace(".", "", 1).isdigit() else None


def _said(*command: str) -> str | None:
    """What a command printed; None where it is not installed or fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None

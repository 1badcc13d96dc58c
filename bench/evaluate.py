"""python -m bench.evaluate [--device auto|cpu|cuda] [--json FILE] [--full] [--threads N]

Measures how many images a second each corruption makes, beside the same corruption image by image
in NumPy, SciPy and Pillow. bench/README.md says what the rows mean.
"""

import importlib
import sys
from argparse import Namespace
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy import stats
from torch import Tensor

from bench import corruptions as reference
from bench.timing import (
    Budget,
    Row,
    Setting,
    clock_for,
    command_line,
    interleave,
    make_row,
    note,
    prepare,
    write_rows,
)
from hard_fast.evals.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, corrupt
from hard_fast.evals.corruptions.draws import Draws, draws_for
from hard_fast.evals.corruptions.filters import gaussian_blur

NAMES = CORRUPTIONS + EXTRA_CORRUPTIONS
SIZES_PX = {False: (32,), True: (32, 224)}
BATCH = {32: 256, 224: 16}
"""Images at once for hard_fast, by their size."""
NUM_BY_NUMPY = {32: 8, 224: 2}
SEVERITY = 3
ROUNDS = {False: 9, True: 25}
SECONDS = {False: 40.0, True: 400.0}
LEAST_GAIN = 5.0
LARGEST_ERROR, LARGEST_MEAN_ERROR = 2, 0.5
"""Levels of 255 between hard_fast and NumPy from the same random numbers."""
PEER = "corrupt_tta"


class DrawsSource:
    """hard_fast's random numbers of one image, as bench.corruptions takes them."""

    def __init__(self, draws: Draws) -> None:
        self._draws = draws

    def normal(self, *shape: int) -> np.ndarray:
        """Standard normal numbers."""
        return self._draws.normal_field(*shape)[0].double().cpu().numpy()

    def uniform(self, *shape: int) -> np.ndarray:
        """A field of numbers in [0,1)."""
        return self._draws.uniform_field(*shape)[0].double().cpu().numpy()

    def few(self, num: int) -> np.ndarray:
        """A few numbers in [0,1)."""
        return self._draws.uniform(num)[0].double().cpu().numpy()

    def whole(self, below: int) -> int:
        """A whole number in [0,below)."""
        return int(self._draws.whole(1, below)[0, 0])

    def poisson(self, mean: np.ndarray) -> np.ndarray:
        """Poisson counts, out of the 2**14 quantiles that shot_noise knows."""
        place = (np.floor(self.uniform(*mean.shape) * 2**14) + 0.5) / 2**14
        return np.where(mean > 0, stats.poisson.ppf(place, mean), 0.0)


def draw_images(num: int, size_px: int, device: torch.device) -> Tensor:
    """[num,3,size,size] uint8, channels_last: clouds of colour with a little grain."""
    generator = torch.Generator().manual_seed(0)
    field = torch.randn(num, 3, size_px, size_px, generator=generator)
    cloud = gaussian_blur(field, size_px / 16)
    cloud = cloud / cloud.std() + 0.1 * field
    image = (127 + 55 * cloud).clamp(0, 255).to(torch.uint8)
    return image.to(device).contiguous(memory_format=torch.channels_last)


def differences(name: str, severity: int, image_BCHW: Tensor, seed: int = 0) -> np.ndarray:
    """[H,W,3] levels between the last image's two versions, of the same random numbers."""
    index_B = torch.arange(len(image_BCHW))
    found = corrupt(image_BCHW, name, severity, index_B, seed=seed)
    source = DrawsSource(draws_for(seed, name, severity, index_B[-1:].to(image_BCHW.device)))
    wanted = reference.corrupt(_arrays(image_BCHW[-1:])[0], name, severity, source)
    return np.abs(_arrays(found[-1:])[0].astype(int) - wanted)


def is_right(name: str, found: np.ndarray) -> bool:
    """Whether differences are those of rounding; a JPEG's, of single frequencies' rounding."""
    largest = 255 if name == "jpeg_compression" else LARGEST_ERROR
    return found.max() <= largest and found.mean() <= LARGEST_MEAN_ERROR


def wrong_ones(size_px: int, device: torch.device) -> list[str]:
    """The corruptions that are not what NumPy makes of the same random numbers."""
    image_BCHW = draw_images(2, size_px, device)
    found = {name: differences(name, SEVERITY, image_BCHW) for name in NAMES}
    return [
        f"{name} by {levels.mean():.2f} levels on average, {levels.max()} at most"
        for name, levels in found.items()
        if not is_right(name, levels)
    ]


def measure(options: Namespace, setting: Setting) -> list[Row]:
    """The rows: images a second of each corruption, size and implementation."""
    rows = []
    sizes = SIZES_PX[options.full]
    if 224 in sizes and find_spec(PEER) is None:
        note(f"{PEER} is not installed and left out")
    budget = Budget(SECONDS[options.full], len(sizes) * len(NAMES))
    for size_px in sizes:
        for name in NAMES:
            runs, nums = _runs(name, size_px, setting.device)
            for run in runs.values():
                run()
            clock = clock_for(setting.device)
            times = interleave(runs, clock, ROUNDS[options.full], budget.next_share())
            for impl, values in times.items():
                rates = [1e3 * nums[impl] / value for value in values]
                case = f"{name} {size_px} px"
                row = make_row("evaluate", case, impl, "corrupt", "images/s", rates, setting)
                rows.append(row)
    return rows


def gains(rows: list[Row], size_px: int, over: str) -> dict[str, float]:
    """How many times as many images as another implementation, by corruption."""
    rates = {(row["case"], row["impl"]): row["p50"] for row in rows}
    cases = {name: f"{name} {size_px} px" for name in NAMES}
    return {
        name: rates[case, "hard_fast"] / rates[case, over]
        for name, case in cases.items()
        if (case, over) in rates
    }


def table_of(rows: list[Row], size_px: int) -> Table:
    """A line per corruption, and the means of how much faster."""
    table = Table(title=f"{size_px} px, severity {SEVERITY}, {rows[0]['device']}")
    table.add_column("corruption")
    impls = list(dict.fromkeys(r["impl"] for r in rows if r["case"].endswith(f" {size_px} px")))
    for name in [f"{impl}, images/s" for impl in impls] + [f"x {impl}" for impl in impls[1:]]:
        table.add_column(name, justify="right")
    rates = {(row["case"], row["impl"]): row["p50"] for row in rows}
    found = {impl: gains(rows, size_px, impl) for impl in impls[1:]}
    for name in NAMES:
        cells = [f"{rates[f'{name} {size_px} px', impl]:.0f}" for impl in impls]
        table.add_row(name, *cells, *(f"{found[impl][name]:.1f}" for impl in impls[1:]))
    blank = [""] * len(impls)
    for label, mean in (("geometric mean", stats.gmean), ("arithmetic mean", np.mean)):
        cells = [f"{mean(list(values.values())):.1f}" for values in found.values()]
        table.add_row(label, *blank, *cells)
    return table


def main(arguments: list[str] | None = None) -> int:
    """Measure, write the rows and print the tables; 1 if a corruption is wrong, 2 for a mistake."""
    options = command_line("evaluate", __doc__).parse_args(arguments)
    try:
        setting = prepare(options)
    except ValueError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    for size_px in SIZES_PX[options.full]:
        if wrong := wrong_ones(size_px, setting.device):
            print(f"error: {size_px} px: {', '.join(wrong)}", file=sys.stderr)
            return 1
    rows = measure(options, setting)
    if options.json:
        write_rows(options.json, rows)
    for size_px in SIZES_PX[options.full]:
        Console().print(table_of(rows, size_px))
        slow = {n: g for n, g in gains(rows, size_px, "numpy").items() if g < LEAST_GAIN}
        listed = ", ".join(f"{name} {gain:.1f}" for name, gain in slow.items()) or "none"
        print(f"below {LEAST_GAIN:g} times as fast as numpy at {size_px} px: {listed}")
    return 0


def _runs(
    name: str, size_px: int, device: torch.device
) -> tuple[dict[str, Callable[[], object]], dict[str, int]]:
    """What is timed, and the number of images that it makes."""
    image_BCHW = draw_images(BATCH[size_px], size_px, device)
    index_B = torch.arange(len(image_BCHW), device=device)
    images = _arrays(image_BCHW[: NUM_BY_NUMPY[size_px]])
    source = reference.NumpySource(0)
    runs: dict[str, Callable[[], object]] = {
        "hard_fast": lambda: corrupt(image_BCHW, name, SEVERITY, index_B),
        "numpy": lambda: [reference.corrupt(i, name, SEVERITY, source) for i in images],
    }
    nums = {"hard_fast": len(image_BCHW), "numpy": len(images)}
    # It has the strengths of ImageNet-C alone.
    if size_px == 224 and find_spec(PEER) is not None:
        peer = importlib.import_module(PEER)
        runs[PEER] = lambda: [peer.corrupt(i, SEVERITY, name).astype(np.uint8) for i in images]
        nums[PEER] = len(images)
    return runs, nums


def _arrays(image_BCHW: Tensor) -> np.ndarray:
    return np.ascontiguousarray(image_BCHW.permute(0, 2, 3, 1).cpu().numpy())


if __name__ == "__main__":
    sys.exit(main())

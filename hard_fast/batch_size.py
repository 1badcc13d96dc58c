"""Which batches fit: the configured one, in as many passes as it takes, and the largest."""

import gc
import math
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from hard_fast.config import RunConfig
from hard_fast.runtime.dist import World
from hard_fast.runtime.memory import free_bytes, used_bytes
from hard_fast.train_config import check_batches
from hard_fast.trial import Trial
from hard_fast.types import Phase

# Of the memory that there is: what fragments, pools and other processes may take besides.
_MARGIN = {"cpu": 0.2, "cuda": 0.08}
# What a CPU's step needs in all, as a multiple of what is kept for the backward pass.
_OF_KEPT = 3.0
# The second of two points of memory lies so far from the first, where time and memory allow it.
_WANTED_BYTES = 256 * 2**20
_MOST_TIMES = 16
# How long a pass that only checks may take on a CPU.
_CHEAP_MS = 5000.0
_NUM_TRIES = 4


class Line(NamedTuple):
    """Bytes of a step by the images at once: `base`, and `slope` for each of them."""

    base: float
    slope: float


class Largest(NamedTuple):
    """What was found about the largest batch of one process.

    num:        images that go through the networks at once; 0: nothing fits.
    peak:       bytes of a step as configured, in the phase that needs most.
    lines:      of each phase whose images are those of the batch.
    limit:      bytes that a step may take.
    is_checked: whether so many have been through the networks.
    """

    num: int
    peak: int
    lines: tuple[Line, ...]
    limit: float
    is_checked: bool


def open_fitting(config: RunConfig, world: World, folder: Path) -> Trial:
    """A trial of the run, cut into more passes than configured if one step would not fit.

    Args:    folder: for what the trial writes.
    Raises:  ValueError if no number of passes makes a step fit.
    """
    while True:
        trial = Trial(config, world, Path(tempfile.mkdtemp(dir=folder)))
        if _fits(trial, world.device):
            return trial
        group, accumulate = trial.group, _more_passes(config, trial.group)
        del trial
        gc.collect()
        if world.device.type == "cuda":
            torch.cuda.empty_cache()
        if accumulate is None:
            raise ValueError(
                f"train.batch_size = {config.train.batch_size}: a step does not fit into the "
                f"memory that is free, not even {group} images at a time"
            )
        train = config.train.model_copy(update={"accumulate": accumulate})
        config = config.model_copy(update={"train": train})


def find_largest(trial: Trial, device: torch.device, ms_per_image: float, most: int) -> Largest:
    """How many images may go through the networks at once, and what they take.

    Args:    ms_per_image: of a step.
             most: images that there can be at once.
    """
    peaks, limit = {phase: trial.step_peak(phase) for phase in trial.phases}, _limit(device)
    phases = _phases_of_batch(trial)
    own, peak = trial.num_images(phases[0]), max(peaks.values())
    found = [_slope(trial, p, peaks[p], limit, ms_per_image, device) for p in phases]
    lines = tuple(
        Line(peaks[p] - slope * own, slope) for p, (slope, _) in zip(phases, found, strict=True)
    )
    if any(size > limit for phase, size in peaks.items() if phase not in phases):
        return Largest(0, peak, lines, limit, True)
    num = min(math.floor((limit - line.base) / line.slope) for line in lines)
    # Memory may have become less since the step was found to fit.
    least = own if peak <= limit else 0
    num = max(least, min(num, most) // trial.group * trial.group)
    for _ in range(_NUM_TRIES):
        is_checked = num <= max(own, min(seen for _, seen in found))
        if is_checked or (device.type == "cpu" and num * ms_per_image > _CHEAP_MS):
            break
        is_checked = all((_pass_peak(trial, p, num) or math.inf) <= limit for p in phases)
        if is_checked:
            break
        num = max(own, int(0.9 * num) // trial.group * trial.group)
    return Largest(num, peak, lines, limit, is_checked)


def with_passes(found: Largest, own: int, passes: int, more: int, input_bytes: float) -> int:
    """Images of a process's largest batch if it goes through the networks in `more` passes.

    Args:    own, passes: images at once, and passes, for which `found` was measured.
             input_bytes: of one image that waits for its pass.
    """
    room = found.limit + input_bytes * own * (passes - 1)
    each = input_bytes * (more - 1)
    at_once = min(int((room - line.base) / (line.slope + each)) for line in found.lines)
    return more * max(0, min(found.num, at_once))


def _fits(trial: Trial, device: torch.device) -> bool:
    """Whether a step of each phase fits; a CPU is asked beforehand, for it does not say no."""
    if device.type == "cpu":
        needed = 0.0
        for phase in trial.phases:
            own = trial.num_images(phase)
            few = max(1, own // (8 * trial.group)) * trial.group
            needed = max(needed, trial.kept(phase, few) * own / few)
        learned = trial.memory()["gradients"]
        if _OF_KEPT * (needed + learned) >= _limit(device) - used_bytes(device):
            return False
    try:
        peak = max(trial.step_peak(phase) for phase in trial.phases)
    except torch.OutOfMemoryError:
        return False
    return peak <= _limit(device)


def _pass_peak(trial: Trial, phase: Phase, num: int) -> int | None:
    """What so many images need at once; None where a GPU has not so much."""
    try:
        return trial.pass_peak(phase, num)
    except torch.OutOfMemoryError:
        return None


def _more_passes(config: RunConfig, group: int) -> int | None:
    """The next number of passes, at least twice as many, that a batch can be cut into."""
    train = config.train
    for accumulate in range(2 * train.accumulate, train.batch_size // group + 1):
        try:
            check_batches(train.model_copy(update={"accumulate": accumulate}), 1, group)
        except ValueError:
            continue
        return accumulate
    return None


def _limit(device: torch.device) -> float:
    room = used_bytes(device) + free_bytes(device)
    return (1.0 - _MARGIN[device.type]) * room


def _phases_of_batch(trial: Trial) -> list[Phase]:
    """The phases whose images are those of the batch."""
    has_own = trial.config.train.augmentor_batch_size is not None
    return [phase for phase in trial.phases if not (has_own and phase is Phase.AUGMENTOR)]


def _slope(
    trial: Trial, phase: Phase, peak: int, limit: float, ms_per_image: float, device: torch.device
) -> tuple[float, int]:
    """Bytes that each further image takes, and the most images that were tried."""
    own, is_cuda = trial.num_images(phase), device.type == "cuda"
    # At least: on a GPU what is not there between steps, on a CPU what the backward pass reads.
    least = peak - sum(trial.memory().values()) if is_cuda else trial.kept(phase, own)
    least = max(least / own, 1.0)
    times = min(_MOST_TIMES, max(2, round(_WANTED_BYTES / (least * own))))
    if not is_cuda:
        times = min(times, max(1, int(_CHEAP_MS / (own * ms_per_image))))
    while times > 1 and peak + 1.5 * least * own * (times - 1) > limit:
        times //= 2
    first = trial.pass_peak(phase, own)
    for other in (times * own, own // (2 * trial.group) * trial.group):
        second = None if other in (0, own) else _pass_peak(trial, phase, other)
        if second is not None:
            slope = (second - first) / (other - own)
            # What an allocator had to spare may hide the whole of a small difference.
            return max(slope, 1.0 if is_cuda else least), max(own, other)
    return least, own

"""python -m hard_fast.estimate --config FILE_OR_NAME [section.key=value ...]

What a run takes, before it is started: real steps of each of its phases, timed, and the largest
batch that fits. Overrides are those of hard_fast.train. Nothing is written to run_dir.
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from hard_fast.batch_size import Largest, find_largest, open_fitting, with_passes
from hard_fast.config import RunConfig
from hard_fast.data.dali import TooManyBadFiles
from hard_fast.data.growing import Growth
from hard_fast.evals.results import check_place, write_result
from hard_fast.phases import AlternateConfig, EpochsConfig, ScheduleConfig, ThresholdConfig
from hard_fast.report.estimate import estimate_table
from hard_fast.runtime import dist, failures
from hard_fast.runtime.arguments import at_least
from hard_fast.runtime.dist import World
from hard_fast.runtime.environment import versions
from hard_fast.runtime.memory import keep_freed_memory
from hard_fast.runtime.messages import one_line
from hard_fast.train import load_config
from hard_fast.train_config import check_batches
from hard_fast.trial import StepTime, Trial
from hard_fast.types import Phase

# Of HARD's threshold schedule nobody knows it beforehand.
_ASSUMED_SHARE = 0.5
_Times = dict[Phase, dict[int, StepTime]]


def main(arguments: list[str] | None = None) -> int:
    """Estimate; the exit code is 0, or 2 after one line about a mistake."""
    options = _parser().parse_intermixed_args(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        config = load_config(options.config, options.overrides)
        if options.json is not None:
            check_place(options.json)
        world = dist.join(config.train.device)
        if world.size > 1:
            raise ValueError("estimate measures one process: no torchrun, but --processes N")
        keep_freed_memory(world.device)
        tree = estimate(config, world, options.processes)
        console = Console()
        # A file or a pipe has no width; a row should still be one line.
        console = console if console.is_terminal else Console(width=120)
        console.print(estimate_table(tree))
        if options.json is not None:
            write_result(tree, options.json)
    except (ValueError, OSError, TooManyBadFiles) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        return failures.tell(error)
    return 0


def estimate(config: RunConfig, world: World, num_processes: int = 1) -> dict[str, Any]:
    """What the JSON file is to hold.

    Args:    num_processes: of the run; one of them is measured.
    Raises:  ValueError, one line, if the run cannot be built or does not fit.
    """
    with tempfile.TemporaryDirectory() as folder:
        trial = open_fitting(_share_of_one(config, num_processes), world, Path(folder))
        times = {p: {px: trial.time(p, px) for px in trial.growth.sizes} for p in trial.phases}
        return {
            "run": config.fingerprint,
            "processes": num_processes,
            "batch_size": config.train.batch_size,
            "accumulate": trial.config.train.accumulate,
            "fits": trial.config.train.accumulate == config.train.accumulate,
            "networks": _networks(config, trial),
            "phases": _phase_rows(trial, times, num_processes),
            "length": _length(config, trial, times),
            **_memory(trial, times, world, num_processes),
            "versions": versions(world.device),
        }


def _share_of_one(config: RunConfig, num_processes: int) -> RunConfig:
    """The run of one of several processes, in so far as it is measured."""
    changes = {}
    for key in ("batch_size", "augmentor_batch_size"):
        size = getattr(config.train, key)
        if size is not None and size % num_processes:
            raise ValueError(
                f"train.{key} = {size}: must be divisible by the {num_processes} processes"
            )
        changes[key] = None if size is None else size // num_processes
    return config.model_copy(update={"train": config.train.model_copy(update=changes)})


def _networks(config: RunConfig, trial: Trial) -> dict[str, dict[str, Any]]:
    net = trial.net
    found = {"student": (config.student.name, net.student)}
    if config.teacher:
        found["teacher"] = (config.teacher.name, net.teacher)
    found["augmentor"] = (config.augmentor.kind, net.augmentor)
    found["objective"] = (config.objective.kind, net.objective)
    rows = {
        role: {"name": name, "parameters": sum(p.numel() for p in network.parameters())}
        for role, (name, network) in found.items()
    }
    return {role: row for role, row in rows.items() if row["parameters"] or role == "student"}


def _phase_rows(trial: Trial, times: _Times, num_processes: int) -> list[dict[str, Any]]:
    passes = trial.config.train.accumulate
    return [
        {
            "phase": phase.value,
            "size_px": size_px,
            "ms": found.ms,
            "images_per_s": 1e3 * trial.num_images(phase) * passes * num_processes / found.ms,
            "waiting": found.waiting,
        }
        for phase, by_size in times.items()
        for size_px, found in by_size.items()
    ]


def _length(config: RunConfig, trial: Trial, times: _Times) -> dict[str, Any]:
    """The steps of the whole run and their time; how sure that is."""
    num_images, train = trial.data.train.num, config.train
    if train.batch_size > num_images:
        raise ValueError(
            f"train.batch_size = {train.batch_size}: must be from 1 to the {num_images} training "
            "images"
        )
    steps = train.steps or max(1, round(train.epochs * (num_images // train.batch_size)))
    growth = Growth(train.resolution, trial.data.train, steps)
    # Seconds of the run if it had this phase alone.
    alone = {
        phase: sum(growth.share(px, steps) * at.ms for px, at in by_size.items()) * steps / 1e3
        for phase, by_size in times.items()
    }
    found: dict[str, Any] = {"steps": steps, "augmentor_share": None, "range_s": None}
    if Phase.AUGMENTOR not in alone:
        (seconds,) = alone.values()
        return found | {"seconds": seconds}
    share = _augmentor_share(config.schedule)
    if share is None:
        share, found["range_s"] = _ASSUMED_SHARE, sorted(alone.values())
    seconds = share * alone[Phase.AUGMENTOR] + (1.0 - share) * alone[Phase.STUDENT]
    return found | {"augmentor_share": share, "seconds": seconds}


def _augmentor_share(schedule: ScheduleConfig) -> float | None:
    """The share of the steps in which the augmentor learns; None where that is not known."""
    match schedule:
        case AlternateConfig(student_steps=student, augmentor_steps=augmentor):
            return augmentor / (student + augmentor)
        case EpochsConfig(every=every, augmentor_epochs=epochs):
            return epochs / every
        case ThresholdConfig():
            return None


def _memory(trial: Trial, times: _Times, world: World, num_processes: int) -> dict[str, Any]:
    """What takes how much, and the largest batches."""
    passes, group = trial.config.train.accumulate, trial.group
    most = trial.data.train.num // num_processes // group * group
    ms = max(by_size[trial.growth.sizes[-1]].ms for by_size in times.values())
    own = trial.config.train.batch_size // passes
    found = find_largest(trial, world.device, ms / (own * passes), most)
    held = trial.memory()
    if world.device.type == "cpu":
        held["activations"] = max(trial.kept(p, trial.num_images(p)) for p in trial.phases)
    return {
        "memory": {**held, "rest": found.peak - sum(held.values()), "peak": found.peak},
        "largest": {
            "limit": round(found.limit),
            "bytes_per_image": round(max(line.slope for line in found.lines)),
            "is_checked": found.is_checked,
            "is_all_images": found.num == most,
            "batch_size": _by_passes(trial, found, most, num_processes),
        },
    }


def _by_passes(trial: Trial, found: Largest, most: int, num_processes: int) -> dict[str, int]:
    """The largest train.batch_size by train.accumulate: as configured, twice and four times.

    Those that go with no other setting of the run are left out; 0: nothing fits.
    """
    train = trial.config.train
    passes, sizes = train.accumulate, {}
    for more in (passes, 2 * passes, 4 * passes):
        num = with_passes(found, train.batch_size // passes, passes, more, trial.input_bytes())
        unit = more * trial.group
        size = min(num, most) // unit * unit
        changes = {"batch_size": size, "accumulate": more}
        try:
            if size:
                check_batches(train.model_copy(update=changes), 1, trial.group)
        except ValueError:
            continue
        sizes[str(more)] = size * num_processes
    return sizes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hard_fast.estimate", description=__doc__)
    parser.add_argument("--config", required=True, metavar="FILE_OR_NAME")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument(
        "--processes", type=at_least(1), default=1, metavar="N", help="that the run will have"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""python -m hard_fast.rank --config FILE_OR_NAME [--run DIR ...] [section.key=value ...]

Ranks augmentations for a teacher and its data by T.stddev, without training a student: the rows of
a study, or the paper's augmentations with the teacher and the data of one run; beside them the
learned augmentors of finished runs. What changes over a run from its `ends` to its `peak` stands at
its ends. With --study, how well all that foretells the students' scores.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from hard_fast.config import RunConfig
from hard_fast.data import DataSet, load_data
from hard_fast.data.dali import TooManyBadFiles
from hard_fast.evals import contenders as asked
from hard_fast.evals.stddev import measure, rank
from hard_fast.report.ranking import correlate, correlation_table, ranking_table, write_ranking
from hard_fast.runtime.arguments import at_least
from hard_fast.runtime.configfile import read
from hard_fast.runtime.environment import versions
from hard_fast.runtime.files import write_atomic
from hard_fast.study_plan import load_study
from hard_fast.train import load_config
from hard_fast.types import Batch


def main(arguments: list[str] | None = None) -> int:
    """Rank, or read a ranking; the exit code is 0, or 2 after one line about a mistake."""
    options = _parser().parse_intermixed_args(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    console = Console()
    try:
        if options.ranking is not None:
            tree = json.loads(options.ranking.read_text())
        else:
            tree = rank_augmentations(options)
            console.print(ranking_table(tree))
        if options.study is not None:
            study = json.loads(options.study.read_text())
            tree["correlation"] = {options.metric: correlate(tree, study, options.metric)}
            console.print(correlation_table(tree["correlation"][options.metric], options.metric))
        if options.json is not None:
            write_atomic(options.json, json.dumps(tree, indent=2) + "\n")
        if options.plot is not None:
            options.plot.parent.mkdir(parents=True, exist_ok=True)
            write_ranking(options.plot, tree)
    except (ValueError, OSError, TooManyBadFiles) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def rank_augmentations(options: argparse.Namespace) -> dict[str, Any]:
    """What the JSON file is to hold: each augmentation's T.stddev and all differences."""
    rows = _rows(options.config, options.overrides)
    common = asked.check_alike(rows)
    is_gpu = torch.cuda.is_available() and common.train.device != "cpu"
    device = torch.device("cuda" if is_gpu else "cpu")
    data = load_data(common.data, device)
    contenders = asked.build_contenders(rows, options.run, data, device)
    for one in contenders:
        if options.batch_size % one.augmentor.group:
            raise ValueError(
                f"--batch-size {options.batch_size}: {one.name} mixes groups of "
                f"{one.augmentor.group} images; give a multiple of it"
            )
    sums = measure(
        contenders,
        asked.build_teacher(common, data, device),
        _batches(data, options),
        num_draws=options.draws,
        batches_per_draw=options.batches,
        num_classes=data.num_classes,
        seed=options.seed,
    )
    return {
        "teacher": common.teacher and common.teacher.title,
        "data": common.data.model_dump(mode="json"),
        "draws": options.draws,
        "originals_per_draw": options.batches * options.batch_size,
        "seed": options.seed,
        **rank(sums, num_resamples=options.resamples, seed=options.seed),
        "versions": versions(device),
    }


def _rows(name: str, overrides: list[str]) -> dict[str, RunConfig]:
    """A study's rows, each at its first seed, or one run's with every augmentation of the paper."""
    if "study" not in read(name, overrides).tree:
        return asked.published_rows(load_config(name, overrides))
    rows: dict[str, RunConfig] = {}
    for run in load_study(name, overrides)[1]:
        rows.setdefault(run.row, run.config)
    return rows


def _batches(data: DataSet, options: argparse.Namespace) -> Iterator[Batch]:
    loader = data.train.loader(batch_size=options.batch_size, seed=options.seed)
    steps = range(options.draws * options.batches)
    for _ in track(steps, "ranking", console=Console(stderr=True), transient=True):
        yield loader.next_batch()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hard_fast.rank", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", metavar="FILE_OR_NAME", help="a study, or a run with a teacher")
    what.add_argument("--ranking", type=Path, metavar="FILE", help="JSON of an earlier ranking")
    parser.add_argument("--run", type=Path, metavar="DIR", action="append", default=[])
    parser.add_argument("--draws", type=at_least(2), default=100, metavar="N")
    parser.add_argument("--batches", type=at_least(1), default=5, metavar="N", help="in a draw")
    parser.add_argument("--batch-size", type=at_least(1), default=64, metavar="N")
    parser.add_argument("--resamples", type=at_least(100), default=1000, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture, such as rank.png")
    parser.add_argument("--study", type=Path, metavar="FILE", help="study.json of the same rows")
    parser.add_argument("--metric", default="nll", help="of the students, with --study")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser


if __name__ == "__main__":
    sys.exit(main())

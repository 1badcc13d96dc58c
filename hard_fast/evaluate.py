"""python -m hard_fast.evaluate --model NAME | --run DIR --suites a,b --data-root DIR --json FILE

Scores a network, and its teacher, on test sets in and out of domain; under torchrun too. What
differs from the network's or the run's own settings follows as section.key=value.
"""

import argparse
import logging
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from hard_fast.data.dali import TooManyBadFiles
from hard_fast.evals.own import OWN, load_own, open_with_own
from hard_fast.evals.published import paper_row
from hard_fast.evals.results import FILE_NAME, check_place, result_tree, write_result
from hard_fast.evals.subject import Subject, open_model, open_run
from hard_fast.evals.suites import split_names
from hard_fast.evals.survey import Findings, survey
from hard_fast.report.evaluation import evaluation_table
from hard_fast.report.page import write_run_report
from hard_fast.runtime import dist, pulse
from hard_fast.runtime.arguments import at_least
from hard_fast.runtime.dist import World
from hard_fast.runtime.environment import versions
from hard_fast.runtime.memory import keep_freed_memory
from hard_fast.runtime.messages import say

_PATIENCE_S = 3.0


def main(arguments: list[str] | None = None) -> int:
    """Evaluate; the exit code is 0, 1 if no suite has data, 2 after a line about a mistake, or 75
    where another process hangs or is gone."""
    options = _parser().parse_intermixed_args(arguments)
    level = logging.WARNING if dist.is_main_process() else logging.ERROR
    logging.basicConfig(format="%(levelname)s: %(message)s", level=level)
    try:
        subject = _subject(options)
        if options.paper is not None:
            paper_row(options.paper)
        if options.json is not None:
            check_place(options.json)
        world = dist.join(options.device)
        keep_freed_memory(world.device)
        tree = evaluate(subject, options, world)
        if world.is_main:
            _tell(tree, options)
    except (ValueError, OSError, TooManyBadFiles, pulse.Lost) as error:
        if not dist.is_main_process():
            # A mistake that rank 0 met too ends this process before it repeats it.
            time.sleep(_PATIENCE_S)
        say(f"error{dist.who()}: {error}")
        return pulse.LOST if isinstance(error, pulse.Lost) else 2
    finally:
        dist.leave()
    return 0 if tree["suites"] else 1


def evaluate(subject: Subject, options: argparse.Namespace, world: World) -> dict[str, Any]:
    """What evaluation.json is to hold."""
    names = split_names(options.suites)
    if not names:
        raise ValueError(f"--suites {options.suites!r}: names no suite")
    selected = {"label_map": options.label_map, "limit": options.limit}
    data = load_own(names, subject.own, world.device)
    place = (options.data_root, subject.pictures, world.device)
    opened = open_with_own(names, *place, data=data, **selected)
    found = Findings({}, None, {}, None)
    if opened.suites:
        found = survey(*subject.build_for(opened, world), opened, world)
    return result_tree(
        found,
        opened,
        model=subject.name,
        teacher=subject.teacher_name,
        paper=options.paper,
        limit=options.limit,
        versions=versions(world.device),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hard_fast.evaluate", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", metavar="NAME", help="what student.name may be in a config")
    what.add_argument("--run", type=Path, metavar="DIR", help="directory of a run")
    parser.add_argument("--checkpoint", metavar="FILE", help="a run keeps scores of its own only")
    parser.add_argument("--suites", required=True, metavar="A,B", help=f"{OWN}: the run's own")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="where suites lie")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--label-map", type=Path, metavar="FILE", help="{folder: [outputs]}")
    parser.add_argument("--teacher", metavar="NAME_OR_DIR", help="instead of the run's own")
    parser.add_argument("--paper", metavar="ROW", help='such as "R18 HARD-Affine"')
    parser.add_argument("--limit", type=at_least(1), metavar="N", help="samples of each part")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser


def _subject(options: argparse.Namespace) -> Subject:
    given = (options.checkpoint, options.overrides, options.teacher, options.data_root)
    return open_run(options.run, *given) if options.run else open_model(options.model, *given)


def _tell(tree: dict[str, Any], options: argparse.Namespace) -> None:
    """The table, and the files that hold it; a run keeps only what its own student is worth."""
    Console().print(evaluation_table(tree))
    is_other = options.checkpoint or any(o.startswith("student.") for o in options.overrides)
    run = None if is_other else options.run
    for path in filter(None, (options.json, run and run / FILE_NAME)):
        write_result(tree, path)
    if run is not None and (run / "metrics.jsonl").is_file():
        say(str(write_run_report(run)))


if __name__ == "__main__":
    dist.end(main())

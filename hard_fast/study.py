"""python -m hard_fast.study --config FILE_OR_NAME [section.key=value ...]

Runs a set of runs x seeds, each a child process of `train`, and prints one table beside the
paper's numbers. Finished runs are not run again.
"""

import argparse
import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from hard_fast.report.convergence import reached, reached_table
from hard_fast.report.page import write_study_report
from hard_fast.report.table import row_statistics, study_table
from hard_fast.runtime import signals
from hard_fast.runtime.environment import versions
from hard_fast.runtime.files import write_atomic
from hard_fast.runtime.messages import one_line
from hard_fast.runtime.rows import as_json
from hard_fast.study_plan import Run, Study, load_study


def main(arguments: list[str] | None = None) -> int:
    """Run a study; the exit code is 0, 1 if a run failed, 2 after a line about a mistake, or 128
    + a signal's number after the runs under way have saved."""
    parser = argparse.ArgumentParser(prog="hard_fast.study", description=__doc__)
    parser.add_argument("--config", required=True, metavar="FILE_OR_NAME")
    parser.add_argument("--resume", choices=["auto", "never"], default="auto")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args(arguments)
    try:
        study, runs, study_dir = load_study(options.config, options.overrides)
        console, started = Console(stderr=True), time.monotonic()
        try:
            with signals.noted():
                failures = _run_all(runs, study.study.jobs, options.resume, console)
        except KeyboardInterrupt:
            # Ctrl-C once more: the runs were asked to save before.
            raise signals.Stopped(signal.SIGINT) from None
        result = collect(study, runs, study_dir, time.monotonic() - started)
        write_atomic(study_dir / "study.json", json.dumps(as_json(result), indent=2) + "\n")
        Console().print(study_table(result))
        if result["reached"]:
            Console().print(reached_table(result))
        for failure in failures:
            console.print(f"failed: {failure}", markup=False, soft_wrap=True)
        if any(result["rows"].values()):
            console.print(str(write_study_report(study_dir)), soft_wrap=True)
    except signals.Stopped as stopped:
        print(f"{stopped}: its runs have saved; the same command goes on", file=sys.stderr)
        return stopped.code
    except (ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 1 if failures else 0


def collect(study: Study, runs: list[Run], study_dir: Path, seconds: float) -> dict[str, Any]:
    """What study.json holds: statistics of the finished runs beside the paper's numbers."""
    finished = [run for run in runs if run.summary]
    metrics = {row: [r.summary["metrics"] for r in finished if r.row == row] for row in study.rows}
    folders = {row: [run.run_dir for run in finished if run.row == row] for row in study.rows}
    rows, reach = row_statistics(metrics, study.study.metrics), study.study.reach
    levels = {name: found["mean"] for name, found in rows[reach].items()} if reach else {}
    return {
        "study": study.study.title,
        "rows": rows,
        "reach": reach,
        "reached": reached(folders, levels) if levels else {},
        "paper": study.study.paper,
        "metrics": study.study.metrics,
        "runs": {
            row: [str(place.relative_to(study_dir)) for place in places]
            for row, places in folders.items()
        },
        "seconds": seconds,
        "run_seconds": sum(run.summary["timing"]["seconds"] for run in finished),
        "versions": versions(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
    }


def _run_all(runs: list[Run], jobs: int, resume: str, console: Console) -> list[str]:
    """Start every run that is not finished, `jobs` at a time; the messages of those that failed."""
    num_threads = max(1, (os.cpu_count() or 1) // jobs)
    failures: list[str] = []

    def run(one: Run) -> None:
        if one.summary is not None and resume == "auto":
            return
        try:
            one.start(num_threads, resume)
        except (RuntimeError, OSError) as error:
            failures.append(str(error))
            return
        scores = "  ".join(f"{k} {v:.4g}" for k, v in one.summary["metrics"].items())
        console.print(f"{one.row} seed {one.seed}: {scores}", highlight=False, soft_wrap=True)

    for depth in range(1 + max(one.depth for one in runs)):
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(run, [one for one in runs if one.depth == depth]))
    return failures


if __name__ == "__main__":
    sys.exit(main())

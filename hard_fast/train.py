"""torchrun -m hard_fast.train --config FILE_OR_NAME [section.key=value ...]"""

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from hard_fast.config import RunConfig
from hard_fast.data.dali import TooManyBadFiles
from hard_fast.report.page import write_run_report
from hard_fast.runtime import dist
from hard_fast.runtime.configfile import ConfigError, dump, parse, read
from hard_fast.runtime.environment import peak_memory_gib, versions
from hard_fast.runtime.files import write_atomic
from hard_fast.runtime.rendezvous import launch_id
from hard_fast.runtime.rows import as_json
from hard_fast.smoke import shrink
from hard_fast.trainer import Trainer

_PATIENCE_S = 3.0
_LAUNCH_FILE = ".launch"


def main(arguments: list[str] | None = None) -> int:
    """Train one run; the exit code is 0, or 2 after one line about a mistake."""
    parser = argparse.ArgumentParser(prog="hard_fast.train", description=__doc__)
    parser.add_argument("--config", required=True, metavar="FILE_OR_NAME")
    parser.add_argument("--resume", choices=["auto", "never"], default="auto")
    parser.add_argument("--print-config", action="store_true", help="show the resolved run")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        config = load_config(options.config, options.overrides)
        if options.print_config:
            print(dump(config.model_dump(mode="json")), end="")
            return 0
        train(config, resume=options.resume == "auto")
    except (ValueError, OSError, TooManyBadFiles) as error:
        if not dist.is_main_process():
            # A mistake that rank 0 met too ends this process before it repeats it.
            time.sleep(_PATIENCE_S)
        print(f"error{dist.who()}: {error}", file=sys.stderr)
        return 2
    finally:
        dist.leave()
    return 0


def load_config(name: str, overrides: list[str]) -> RunConfig:
    """The run that a file and the command line describe, shrunk if it says smoke = true."""
    source = read(name, overrides)
    if "study" in source.tree:
        raise ConfigError(
            f"{name} is a study; run it with: python -m hard_fast.study --config {name}"
        )
    return parse(RunConfig, shrink(source))


def train(config: RunConfig, *, resume: bool = True) -> dict[str, Any]:
    """Run to the end; leaves summary.json, student.safetensors and report.html in the run_dir."""
    world = dist.join(config.train.device, config.distributed.timeout_s)
    run_dir = Path(config.run_dir)
    # A group that torchrun started again goes on with what its first start began.
    resume = resume or (world.is_restart and _launched_by(run_dir) == launch_id())
    mistake = dist.broadcast_object(_claim(run_dir, config, resume) if world.is_main else None)
    if mistake:
        raise ValueError(mistake)
    trainer = Trainer(config, world, resume=resume)
    if world.is_main:
        # Not before all parts are built: a run that never began must not claim the directory.
        write_atomic(run_dir / "config.toml", dump(config.model_dump(mode="json")))
    summary = trainer.run()
    if not world.is_main:
        return summary
    summary["timing"] |= {"peak_memory_gib": peak_memory_gib(world.device)}
    summary |= {"config_hash": config.fingerprint, "versions": versions(world.device)}
    write_atomic(run_dir / "summary.json", json.dumps(as_json(summary), indent=2) + "\n")
    report = write_run_report(run_dir)
    scores = "  ".join(f"{name} {value:.4g}" for name, value in summary["metrics"].items())
    print(f"{scores}\n{report}", file=sys.stderr)
    return summary


def _launched_by(run_dir: Path) -> str | None:
    path = run_dir / _LAUNCH_FILE
    return path.read_text() if path.is_file() else None


def _claim(run_dir: Path, config: RunConfig, resume: bool) -> str | None:
    """Make the directory ready for this run; what stands against it, in one line, or None.

    A run that is there already and must not be continued is moved aside, never overwritten.
    """
    path = run_dir / "config.toml"
    try:
        if path.is_file() and not resume:
            number = 1
            while (aside := run_dir.with_name(f"{run_dir.name}.old-{number}")).exists():
                number += 1
            run_dir.rename(aside)
        run_dir.mkdir(parents=True, exist_ok=True)
        write_atomic(run_dir / _LAUNCH_FILE, launch_id())
        if path.is_file() and load_config(str(path), []).fingerprint != config.fingerprint:
            return (
                f"run_dir = {str(run_dir)!r} holds a run of another configuration; choose another "
                "run_dir, or --resume never to move that one aside"
            )
    except OSError as error:
        return f"run_dir = {str(run_dir)!r}: cannot be used: {error.strerror}"
    return None


if __name__ == "__main__":
    dist.end(main())

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
from hard_fast.rundir import RunDir, agree_on
from hard_fast.runtime import dist, failures, pulse, signals
from hard_fast.runtime.configfile import ConfigError, dump, parse, read
from hard_fast.runtime.dist import World
from hard_fast.runtime.environment import peak_memory_gib, versions
from hard_fast.runtime.files import write_atomic
from hard_fast.runtime.memory import keep_freed_memory
from hard_fast.runtime.messages import one_line, say
from hard_fast.runtime.rows import as_json
from hard_fast.smoke import shrink
from hard_fast.trainer import Trainer

_PATIENCE_S = 3.0


def main(arguments: list[str] | None = None) -> int:
    """Train one run; the exit code is 0, 2 after one line about a mistake or a lack of memory, 128
    + a signal's number after the checkpoint it asked for, or 75 where another process hangs or is
    gone."""
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
        with signals.noted():
            train(config, resume=options.resume == "auto")
    except signals.Stopped as stopped:
        if dist.is_main_process():
            say(f"{stopped}: saved; the same command goes on from here")
        return stopped.code
    except (ValueError, OSError, TooManyBadFiles) as error:
        if not dist.is_main_process():
            # A mistake that rank 0 met too ends this process before it repeats it.
            time.sleep(_PATIENCE_S)
        say(f"error{dist.who()}: {one_line(error)}")
        return 2
    except (RuntimeError, MemoryError) as error:
        return failures.tell(error)
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
    keep_freed_memory(world.device)
    agree_on(config)
    place = RunDir(
        config,
        world,
        resume=resume,
        fingerprint_of=lambda path: load_config(str(path), []).fingerprint,
    )
    try:
        return _train(config, world, place)
    finally:
        place.release()


def _train(config: RunConfig, world: World, place: RunDir) -> dict[str, Any]:
    trainer = Trainer(config, world, resume=place.resume)
    if world.is_main:
        # Not before all parts are built: a run that never began must not claim the directory.
        write_atomic(place.config_file, dump(config.model_dump(mode="json")))
    summary = trainer.run()
    if world.is_main:
        _write_end(summary, config, world)
    # Who ended sooner could not say that rank 0 hangs.
    pulse.at("the end")
    dist.barrier()
    return summary


def _write_end(summary: dict[str, Any], config: RunConfig, world: World) -> None:
    run_dir = Path(config.run_dir)
    summary["timing"] |= {"peak_memory_gib": peak_memory_gib(world.device)}
    summary |= {"config_hash": config.fingerprint, "versions": versions(world.device)}
    write_atomic(run_dir / "summary.json", json.dumps(as_json(summary), indent=2) + "\n")
    report = write_run_report(run_dir)
    scores = "  ".join(f"{name} {value:.4g}" for name, value in summary["metrics"].items())
    print(f"{scores}\n{report}", file=sys.stderr)


if __name__ == "__main__":
    dist.end(main())

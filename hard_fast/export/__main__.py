"""python -m hard_fast.export --run DIR | --model NAME --checkpoint FILE --out DIR

Writes a student as files that ship, opens each again in its own runtime, and reports what they
cost and score. What differs from the network's or the run's own settings follows as
section.key=value; int8.key=value is how it is brought to 8 bits. There, qat takes the run's own
augmentor, with what changes over a run from its `ends` to its `peak` at its ends.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console

from hard_fast.config import RunConfig
from hard_fast.data.dali import TooManyBadFiles
from hard_fast.evals.own import OWN
from hard_fast.evals.subject import open_model, open_run
from hard_fast.evals.suites import split_names
from hard_fast.export.compression_report import report_table, write_report
from hard_fast.export.formats import OPSET, Format
from hard_fast.export.job import Order, export
from hard_fast.export.quantize import Int8Config, Method
from hard_fast.runtime import dist
from hard_fast.runtime.arguments import at_least
from hard_fast.runtime.configfile import Config, parse, read, read_overrides
from hard_fast.smoke import shrink

_PREFIX = "int8."


class Settings(Config):
    """What `section.key=value` may set of an export itself."""

    int8: Int8Config = Int8Config()


def main(arguments: list[str] | None = None) -> int:
    """Export; the exit code is 0, 1 if a format failed, or 2 after a line about a mistake."""
    options = _parser().parse_intermixed_args(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        tree = export(_order(options), dist.join("cpu"))
        written = write_report(tree, options.out)
    except (ValueError, OSError, TooManyBadFiles) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        dist.leave()
    Console().print(report_table(tree))
    for kind in ("failures", "gaps"):
        for name, reason in tree[kind].items():
            print(f"{name}: {reason}", file=sys.stderr)
    print(*written, sep="\n", file=sys.stderr)
    return 1 if tree["failures"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hard_fast.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", metavar="NAME", help="what student.name may be in a config")
    what.add_argument("--run", type=Path, metavar="DIR", help="directory of a run")
    parser.add_argument("--checkpoint", metavar="FILE", help="weights; a run's own without it")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument("--formats", default=",".join(get_args(Format)), metavar="A,B")
    parser.add_argument("--int8", default="", metavar="ptq,qat", help="also in 8 bits")
    parser.add_argument("--suites", default="", metavar="A,B", help=f"{OWN}: the run's own tests")
    parser.add_argument("--data-root", type=Path, default=Path("data"), metavar="DIR")
    parser.add_argument("--label-map", type=Path, metavar="FILE", help="{folder: [outputs]}")
    parser.add_argument("--limit", type=at_least(1), metavar="N", help="samples of each test set")
    parser.add_argument("--teacher", metavar="NAME_OR_DIR", help="instead of the run's own")
    parser.add_argument("--opset", type=int, default=OPSET, metavar="N", help="of ONNX")
    parser.add_argument("--threads", type=at_least(1), metavar="N", help="of one call")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser


def _order(options: argparse.Namespace) -> Order:
    """What the command line asks for.

    Raises:  ValueError, one line, for a name or a value that is wrong.
    """
    overrides = [text for text in options.overrides if not text.startswith(_PREFIX)]
    own = [text for text in options.overrides if text.startswith(_PREFIX)]
    given = (options.checkpoint, overrides, options.teacher, options.data_root)
    run = None
    if options.run is None:
        subject = open_model(options.model, *given)
    else:
        subject = open_run(options.run, *given)
        run = parse(RunConfig, shrink(read(str(options.run / "config.toml"), overrides)))
        # It may have been moved since.
        run = run.model_copy(update={"run_dir": str(options.run)})
    return Order(
        subject=subject,
        run=run,
        settings=parse(Settings, read_overrides(own)).int8,
        formats=_choices("--formats", options.formats, get_args(Format)),
        int8=_choices("--int8", options.int8, get_args(Method)),
        suites=split_names(options.suites),
        data_root=options.data_root,
        out=options.out,
        opset=options.opset,
        limit=options.limit,
        label_map=options.label_map,
    )


def _choices(flag: str, text: str, known: Sequence[str]) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise ValueError(f"{flag} {name}: unknown; choose from {', '.join(known)}")
    return list(dict.fromkeys(names))


if __name__ == "__main__":
    sys.exit(main())

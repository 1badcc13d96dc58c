"""python -m bench [NAME ...] [--device auto|cpu|cuda] [--rows FILE] [--seconds S] [--full]

Runs the benches, each as a process of its own, and adds what they measured to bench/results.jsonl.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.timing import Row, read_rows
from hard_fast.runtime.files import write_atomic

ROOT = Path(__file__).resolve().parent.parent
EVERY = {
    "kernels": [],
    "loader": [],
    "step": ["--peers"],
    "end_to_end": [],
    "memory": [],
    "augmentors": [],
    "evaluate": [],
}
"""All benches in their order, and what each is asked for besides."""
_WHOLE_S = 3600.0


def main(arguments: list[str] | None = None) -> int:
    """Run them; the exit code is 0, 1 if one failed or found no time, 2 for a mistake."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("bench", description=__doc__, formatter_class=form)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(EVERY))
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--rows", type=Path, default=ROOT / "bench" / "results.jsonl")
    parser.add_argument("--seconds", type=float, default=_WHOLE_S, help="for all of them")
    parser.add_argument("--threads", type=int, metavar="N", help="of PyTorch on the CPU")
    parser.add_argument("--full", action="store_true", help="all implementations, more rounds")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in EVERY]:
        print(f"error: there is no bench {unknown[0]!r}: {', '.join(EVERY)}", file=sys.stderr)
        return 2
    asked = ["--device", options.device, *(["--full"] if options.full else [])]
    if options.threads:
        asked += ["--threads", str(options.threads)]
    end, failed = time.monotonic() + options.seconds, []
    for name in options.names or EVERY:
        try:
            rows = measure(name, [*asked, *EVERY[name]], end - time.monotonic())
        except RuntimeError as error:
            failed.append(name)
            print(f"{name}: {error}", file=sys.stderr)
            continue
        add_rows(options.rows, rows)
        print(f"{name}: {len(rows)} rows", file=sys.stderr)
    return 1 if failed else 0


def measure(name: str, asked: list[str], seconds: float) -> list[Row]:
    """The rows of one bench, whose table is printed as it comes.

    Raises:  RuntimeError if it fails, or does not end in so many seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [sys.executable, "-m", f"bench.{name}", *asked, "--json", str(file)]
        try:
            code = subprocess.run(command, cwd=ROOT, timeout=max(seconds, 0.0)).returncode
        except subprocess.TimeoutExpired:
            raise RuntimeError("no time left") from None
        if code:
            raise RuntimeError(f"exit code {code}")
        return read_rows(file)


def add_rows(path: Path, rows: list[Row]) -> None:
    """Write these rows behind those that a file of JSON lines holds."""
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    write_atomic(path, before + "".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    sys.exit(main())

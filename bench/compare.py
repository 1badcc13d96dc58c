"""python -m bench.compare OLD NEW [--limit 0.05]

Compares two files of rows, JSON lists or JSON lines: fails where NEW is worse by more than the
limit. Of rows that measure the same in one file, the last one counts.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from bench.timing import IS_LOWER_BETTER, Row, key_of, newest, read_rows

LIMIT = 0.05


class Change(NamedTuple):
    """One measurement in both files; `worse` is 0.1 where it got 10 % worse, below 0 if better."""

    old: Row
    new: Row
    worse: float


class Comparison(NamedTuple):
    """What two files have in common, and what not."""

    changes: list[Change]
    only_old: list[Row]
    only_new: list[Row]
    undirected: list[Row]
    """In both, in a unit of which neither less nor more is better."""


def compare(old: list[Row], new: list[Row]) -> Comparison:
    """The changes from old to new rows, worst first, and the rows without a counterpart."""
    before = {key_of(row): row for row in newest(old)}
    after = {key_of(row): row for row in newest(new)}
    found = Comparison([], [], [], [])
    for key, row in after.items():
        if key not in before:
            found.only_new.append(row)
        elif row["unit"] not in IS_LOWER_BETTER:
            found.undirected.append(row)
        else:
            found.changes.append(Change(before[key], row, _worsening(before[key], row)))
    found.only_old.extend(row for key, row in before.items() if key not in after)
    found.changes.sort(key=lambda change: change.worse, reverse=True)
    return found


def name_of(row: Row) -> str:
    """A row's measurement in words."""
    what = f"{row['bench']}: {row['case']}, {row['impl']}, {row['metric']} ({row['unit']})"
    return f"{what}, {row['device']}, {row['threads']} threads"


def table_of(changes: list[Change], limit: float) -> Table:
    """A line per change of more than the limit either way."""
    table = Table(title=f"changes of more than {limit:.0%}")
    columns = ("bench", "case", "impl", "metric", "unit", "old", "new", "change")
    for name in columns:
        is_number = name in ("old", "new", "change")
        table.add_column(name, justify="right" if is_number else "left")
    for old, new, worse in changes:
        if abs(worse) <= limit:
            continue
        cells = [str(new[key]) for key in ("bench", "case", "impl", "metric", "unit")]
        verdict = f"{abs(worse):.1%} {'WORSE' if worse > 0 else 'better'}"
        table.add_row(*cells, f"{old['p50']:.4g}", f"{new['p50']:.4g}", verdict)
    return table


def main(arguments: list[str] | None = None) -> int:
    """Compare and print; the exit code is 0, 1 if anything is worse, 2 for a mistake."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("bench.compare", description=__doc__, formatter_class=form)
    parser.add_argument("old", type=Path, metavar="OLD")
    parser.add_argument("new", type=Path, metavar="NEW")
    parser.add_argument("--limit", type=float, default=LIMIT, help="share that is let pass (0.05)")
    options = parser.parse_args(arguments)
    try:
        if not options.limit >= 0:
            raise ValueError(f"--limit {options.limit}: must be at least 0")
        found = compare(read_rows(options.old), read_rows(options.new))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for text, rows in (
        (f"only in {options.old}", found.only_old),
        (f"only in {options.new}", found.only_new),
        ("neither better nor worse by its unit", found.undirected),
    ):
        for row in rows:
            print(f"{text}: {name_of(row)}")
    if not found.changes:
        print("error: the files have no measurement in common", file=sys.stderr)
        return 2
    worse = [change for change in found.changes if change.worse > options.limit]
    table = table_of(found.changes, options.limit)
    if table.row_count:
        console = Console()
        # A file or a pipe has no width; a row should still be one line.
        console = console if console.is_terminal else Console(width=200)
        console.print(table)
    print(f"{len(found.changes)} compared, {len(worse)} worse by more than {options.limit:.0%}")
    return 1 if worse else 0


def _worsening(old: Row, new: Row) -> float:
    """By which share of the old value the new one is worse; infinite where the old one was 0.

    A rate's is that of the time it stands for, so that half the speed is 100 % worse.
    """
    before, after = old["p50"], new["p50"]
    if not IS_LOWER_BETTER[new["unit"]]:
        before, after = after, before
    if before == 0:
        return 0.0 if after == 0 else float("inf")
    return after / before - 1


if __name__ == "__main__":
    sys.exit(main())

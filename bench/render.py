"""python -m bench.render [--check] [--rows FILE] [--readme FILE]

Writes README's tables between their markers: speed and memory out of bench/results.jsonl, methods
out of configs/; and beside the rows the pictures that RESULTS.md shows. `--check` changes nothing
and fails if any of them is not that of its source.
"""

import argparse
import re
import sys
from pathlib import Path

from bench.methods import methods_table
from bench.plot import Advantage, draw_advantages, numbers_in
from bench.timing import IS_LOWER_BETTER, Row, newest, percentile, read_rows
from hard_fast.runtime.configfile import CONFIG_FOLDER
from hard_fast.runtime.files import write_atomic

ROOT = Path(__file__).resolve().parent.parent
END = "<!-- end -->"

BENCHES = ("step", "end_to_end", "loader", "memory")
"""Shown row by row, in this order."""
SUMMED = {"kernels": ("affine_mix", "ms"), "evaluate": ("corruptions, by size", "images/s")}
"""Benches whose many rows make one line each: what a reader calls them, and their unit."""
OURS = "hard_fast"
"""Other implementations of ours begin so too, and are no peers."""
_ORIGIN = ("torch", "commit")

WORDS = {
    "decode_crop_flip": "decode, crop, flip",
    "epoch": "JPEGs to weights",
    "peak_memory": "peak memory of a step",
    "step": "one step",
}
"""The metrics that have lines of their own, and what a reader calls them."""


def performance_table(rows: list[Row]) -> str:
    """Markdown: a table per device and number of threads, ours beside the best peer."""
    tables = []
    for where, found in _places(rows).items():
        lines = _lines(found)
        if not lines:
            continue
        versions, commits = (", ".join(sorted({row[k] for row in found})) for k in _ORIGIN)
        head = [
            f"{where}; torch {versions}; commit {commits}:",
            "",
            "| what | | hard_fast | best peer | peer / ours |",
            "| --- | --- | ---: | ---: | ---: |",
        ]
        tables.append("\n".join([*head, *lines]))
    return "\n\n".join(tables)


def pictures(rows: list[Row]) -> dict[str, str]:
    """SVG texts by the names of their files: how much faster than the best peer, per place."""
    found = {}
    for where, there in _places(rows).items():
        groups: dict[str, list[Row]] = {}
        for row in there:
            if row["unit"] == "cpu_ms":
                continue
            groups.setdefault(_line_of(row), []).append(row)
        advantages = [Advantage(what, _ratios(group)) for what, group in groups.items()]
        advantages = [advantage for advantage in advantages if advantage.ratios]
        if advantages:
            name = re.sub("[^a-z0-9]+", "_", where.lower()).strip("_")
            found[f"speed_{name}.svg"] = draw_advantages(where, advantages)
    return found


def _places(rows: list[Row]) -> dict[str, list[Row]]:
    """The newest rows whose unit has a better direction, by where they were measured."""
    places: dict[str, list[Row]] = {}
    for row in newest(rows):
        if row["unit"] in IS_LOWER_BETTER:
            threads = row["threads"]
            where = f"{row['device']}, {threads} thread{'s' * (threads > 1)}"
            is_gpu = "power_cap_w" in row
            places.setdefault(row["device"] if is_gpu else where, []).append(row)
    return places


def _line_of(row: Row) -> str:
    """Which line of a picture a row belongs to: a whole bench, or one measurement."""
    if row["bench"] in SUMMED:
        # Of corruptions the size of the pictures, which is the end of a case, makes the difference.
        part = " ".join(row["case"].split()[-2:]) if row["bench"] == "evaluate" else row["metric"]
        return f"{SUMMED[row['bench']][0].partition(',')[0]}, {part}"
    words = WORDS.get(row["metric"], row["metric"])
    return f"{row['case']}: {words}, {row['unit']}"


def fill(text: str, name: str, table: str) -> str:
    """The text with the table between the markers of its name.

    Raises:  ValueError where they are missing or in the wrong order.
    """
    marker = f"<!-- {name} table -->"
    before, start, rest = text.partition(marker)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"lacks a line {marker} and after it a line {END}")
    return f"{before}{marker}\n{table}\n{END}{after}"


def main(arguments: list[str] | None = None) -> int:
    """Write or check; the exit code is 0, 1 if the table is an old one, 2 for a mistake."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("bench.render", description=__doc__, formatter_class=form)
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    parser.add_argument("--rows", type=Path, default=ROOT / "bench" / "results.jsonl")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    options = parser.parse_args(arguments)
    try:
        text = options.readme.read_text(encoding="utf-8")
        rows = read_rows(options.rows)
        filled = fill(text, "methods", methods_table(CONFIG_FOLDER))
        filled = fill(filled, "performance", performance_table(rows))
    except OSError as error:
        print(f"error: {options.readme}: cannot be read: {error.strerror}", file=sys.stderr)
        return 2
    except ValueError as error:
        is_readme = str(error).startswith("lacks")
        print(f"error: {f'{options.readme} ' * is_readme}{error}", file=sys.stderr)
        return 2
    folder = options.rows.parent
    wanted = {options.readme: filled}
    wanted |= {folder / name: page for name, page in pictures(rows).items()}
    stale = [path for path, page in wanted.items() if not _holds(path, page)]
    stale += [path for path in folder.glob("speed_*.svg") if path not in wanted]
    if not stale:
        return 0
    if options.check:
        print(
            f"{', '.join(map(str, stale))}: not what {options.rows.name} and configs/ give; run "
            "python -m bench.render",
            file=sys.stderr,
        )
        return 1
    for path in stale:
        if path in wanted:
            write_atomic(path, wanted[path])
        else:
            path.unlink()
    return 0


def _holds(path: Path, page: str) -> bool:
    """Whether the file is there and says so; of a picture its numbers count."""
    if not path.is_file():
        return False
    found = path.read_text(encoding="utf-8")
    if path.suffix == ".svg":
        return numbers_in(found) == numbers_in(page)
    return found == page


def _lines(rows: list[Row]) -> list[str]:
    """Markdown rows of one place; a measurement without ours is left out."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: _rank(row["bench"])):
        if row["bench"] in BENCHES and row["metric"] in WORDS and row["unit"] != "cpu_ms":
            groups.setdefault((row["case"], row["metric"], row["unit"]), []).append(row)
    lines = []
    for (case, metric, unit), group in groups.items():
        ours = [row for row in group if row["impl"] == OURS]
        if not ours:
            continue
        what = WORDS[metric] if unit == "bytes" else f"{WORDS[metric]}, {unit}"
        if metric == "step" and not case.endswith(": KD"):
            what += f" ({ours[0]['of_kd']:.2f} of KD)"
        peer, ratio = "", ""
        if (best := _best_peer(group)) is not None:
            peer = f"{_number(best['p50'], unit)} ({best['impl']})"
            ratio = f"{_advantage(ours[0], best):.2f}"
        lines.append(f"| {case} | {what} | {_number(ours[0]['p50'], unit)} | {peer} | {ratio} |")
    lines += _optimizer_lines(rows)
    for bench, (what, unit) in SUMMED.items():
        lines += _summed_line([row for row in rows if row["bench"] == bench], what, unit)
    return lines


def _optimizer_lines(rows: list[Row]) -> list[str]:
    """One line for all optimizers of a network."""
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["metric"] == "state_per_parameter":
            network, _, optimizer = row["case"].partition(", ")
            found.setdefault(network, {})[optimizer] = f"{row['p50']:.2f}"
    return [
        f"| {network}: {', '.join(values)} | optimizer state per parameter, bytes | "
        f"{', '.join(values.values())} | | |"
        for network, values in found.items()
    ]


def _summed_line(rows: list[Row], what: str, unit: str) -> list[str]:
    """One line for all cases of a bench: how many times as good as the best peer ours is."""
    found = _ratios(rows)
    if not found:
        return []
    span = f"{min(found):.1f} to {max(found):.1f}, median {percentile(found, 50):.1f}"
    return [f"| {what}, {len(found)} cases | {unit} | | | {span} |"]


def _ratios(rows: list[Row]) -> list[float]:
    """Of each measurement among them that has a peer, how many times as good ours is."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["case"], row["metric"], row["unit"]), []).append(row)
    found = []
    for group in groups.values():
        best, ours = _best_peer(group), [row for row in group if row["impl"] == OURS]
        if best is not None and ours:
            found.append(_advantage(ours[0], best))
    return found


def _best_peer(rows: list[Row]) -> Row | None:
    """The row beside which ours looks worst."""
    ours = [row for row in rows if row["impl"] == OURS]
    peers = [row for row in rows if not row["impl"].startswith((OURS, "copy"))]
    return min(peers, key=lambda row: _advantage(ours[0], row)) if ours and peers else None


def _advantage(ours: Row, peer: Row) -> float:
    """How many times as good ours is: round by round where the rows tell, else by medians."""
    if "of_kd" in peer:
        return peer["of_kd"] / ours["of_kd"]
    ratio = peer["p50"] / ours["p50"]
    return ratio if IS_LOWER_BETTER[ours["unit"]] else 1 / ratio


def _rank(bench: str) -> int:
    return BENCHES.index(bench) if bench in BENCHES else len(BENCHES)


def _number(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / 2**30:,.2f} GiB"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())

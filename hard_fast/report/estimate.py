"""What a run will take, as a table."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from hard_fast.report.wording import count, duration, share

_NAMES = {
    "weights": "weights and buffers",
    "gradients": "gradients",
    "optimizer": "optimizer's state",
    "average": "average of the weights",
    "data": "data set",
    "activations": "kept for the backward pass",
}
_REST = {
    "cpu": "temporary, PyTorch and libraries",
    "cuda": "activations and temporary",
}


def estimate_table(tree: Mapping[str, Any]) -> Table:
    """One table: networks, memory, time of steps and of the run, the largest batches.

    Args:    tree: what the JSON file holds.
    """
    table = Table(show_header=False, title=Text(_title(tree)), caption_justify="left")
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold", style="dim")
    for section in (_networks(tree), _memory(tree), _phases(tree), _length(tree), _largest(tree)):
        for cells in section:
            table.add_row(*map(Text, cells))
        table.add_section()
    table.caption = (
        "Not counted: evaluations, checkpoints, compiling, and what processes send each other."
    )
    return table


def _title(tree: Mapping[str, Any]) -> str:
    num = tree["processes"]
    each = f", each of {num} processes" if num > 1 else ""
    passes = f" in {tree['accumulate']} passes" if tree["accumulate"] > 1 else ""
    title = f"train.batch_size = {count(tree['batch_size'])}{passes}, {tree['versions']['device']}"
    if not tree["fits"]:
        title += f"\nit does not fit as configured: measured with accumulate = {tree['accumulate']}"
    return title + each


def _networks(tree: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for role, row in tree["networks"].items():
        yield f"{role}: {row['name']}", count(row["parameters"]), "parameters"


def _memory(tree: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    memory = tree["memory"]
    rest = _REST["cpu" if "activations" in memory else "cuda"]
    for name, num_bytes in memory.items():
        if name == "peak":
            yield "peak of a step", _size(num_bytes), f"of {_size(tree['largest']['limit'])}"
        else:
            yield _NAMES[name] if name in _NAMES else rest, _size(num_bytes), ""


def _phases(tree: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    has_sizes = len({row["size_px"] for row in tree["phases"]}) > 1
    for row in tree["phases"]:
        at = f" at {row['size_px']} px" if has_sizes else ""
        wait = f", {share(row['waiting'])} waiting for data" if row["waiting"] >= 0.005 else ""
        note = f"{row['images_per_s']:,.4g} images/s{wait}"
        ms = f"{row['ms']:,.0f}" if row["ms"] >= 100 else f"{row['ms']:.3g}"
        yield f"step, {row['phase']} phase{at}", f"{ms} ms", note


def _length(tree: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    found = tree["length"]
    part = found["augmentor_share"]
    note = "" if part is None else f"{share(part)} of the steps for the augmentor"
    if found["range_s"]:
        low, high = map(duration, found["range_s"])
        note += f": assumed; {low} to {high}"
    yield f"the run, {count(found['steps'])} steps", duration(found["seconds"]), note


def _largest(tree: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    found = tree["largest"]
    bound = "all training images" if found["is_all_images"] else "by memory"
    tried = "tried" if found["is_checked"] else "not tried"
    note = f"{bound}, {tried}; {_size(found['bytes_per_image'])} an image"
    for passes, size in found["batch_size"].items():
        at = f", accumulate = {passes}" if passes != "1" else ""
        yield f"largest train.batch_size{at}", count(size), note
        note = ""


def _size(num_bytes: float) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.3g} {name}"
    return f"{num_bytes:.0f} B"

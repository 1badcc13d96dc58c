"""What each part of a run's augmentor learned, as the page shows it.

Letters: T moments of the run, N draws, K corners, D channels of a latent, L decoder blocks.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hard_fast.report.entries import Moment, Part, augmentor_parts, read_history, read_moments
from hard_fast.report.figures import Series, draw_curves
from hard_fast.report.learned import Profile, draw_outlines, draw_profiles, find_reach
from hard_fast.report.panels import Panel, galleries
from hard_fast.report.record import Record, at, evenly
from hard_fast.report.wording import count

_MOST_MOMENTS = 8
_NUM_DRAWS = 16
_MOST_CHANNELS = 6
_ENTRIES = ("xx", "xy", "x shift", "yx", "yy", "y shift")
_IDENTITY = np.array([1.0, 0.0, 0.0, 0.0, 1.0, 0.0])
_CORNERS = np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])


class Tile(NamedTuple):
    """A small picture with what stands below it."""

    caption: str
    svg: str


class Learned(NamedTuple):
    """What one part learned: a heading, how to read it, and pictures over the run."""

    title: str
    note: str
    tiles: Sequence[Tile] = ()
    panels: Sequence[Panel] = ()
    pictures: Sequence[dict[str, str]] = ()


def learned_parts(record: Record) -> tuple[list[Learned], int]:
    """What each part learned, in the order in which they act, and how many files were damaged.

    A part that learned nothing, or of which nothing readable was kept, is left out.
    """
    moments, num_damaged = read_moments(record)
    parts = augmentor_parts(record.config)
    found = []
    for number, part in enumerate(parts, 1):
        shown = _show(part, moments, record.num_steps)
        if shown is not None and len(parts) > 1:
            shown = shown._replace(title=f"Part {number}: {shown.title}")
        found += [] if shown is None else [shown]
    pictures = galleries(record, _MOST_MOMENTS, "patches")
    if pictures:
        note = (
            "The framed images become the one beside them. In the last one, each patch has the "
            "colour of the image that won it: the fuller, the further ahead."
        )
        found.append(Learned("Patch mix", note, pictures=pictures))
    return found, num_damaged


def _show(part: Part, moments: Sequence[Moment], num_steps: int) -> Learned | None:
    match part.kind:
        case "affine":
            return _affine(part, moments, num_steps)
        case "noise":
            return _noise(part, moments, num_steps)
        case "autoencoder" if at(part.table, "net") == "vdvae":
            return _posteriors(part, moments)
        case "autoencoder":
            return _latent_noise(part, moments, num_steps)
        case _:
            return None


def _affine(part: Part, moments: Sequence[Moment], num_steps: int) -> Learned | None:
    """The warp's frame on the picture over time, and the distribution of the matrix."""
    history = list(read_history(moments, part, "mean|scale"))
    if not history or {name: value.shape for name, value in history[0][1].items()} not in (
        {"mean": (6,), "scale": (6,)},
        {"mean": (6,), "scale": (6, 6)},
    ):
        return None
    steps = [step for step, _ in history]
    mean_T6 = np.stack([tensors["mean"] for _, tensors in history])
    # Rows of the factor by which six standard normal numbers are multiplied.
    factor_T66 = np.stack([_factor(tensors["scale"]) for _, tensors in history])
    std_T6 = np.sqrt(np.square(factor_T66).sum(2))
    # The same draws each time, so that what differs between two tiles was learned.
    normal_N6 = np.random.default_rng(0).standard_normal((_NUM_DRAWS, 6))
    outlines = []
    for t in evenly(range(len(steps)), _MOST_MOMENTS):
        draws_N6 = draw_matrices(mean_T6[t], factor_T66[t], normal_N6)
        if np.isfinite(draws_N6).all():
            outlines.append((steps[t], warp_corners(mean_T6[t]), warp_corners(draws_N6)))
    reach = find_reach([one for _, *both in outlines for one in both])
    name = f"Learned warp {part.prefix}".strip()
    tiles = [
        Tile(_at_step(step), draw_outlines(f"{name} at step {step}", mean_K2, draws_NK2, reach))
        for step, mean_K2, draws_NK2 in outlines
    ]
    offset_T6 = mean_T6 - _IDENTITY
    panels = [
        _curves("Mean of each entry, less the identity", _ENTRIES, steps, offset_T6, num_steps),
        _curves("Standard deviation of each entry", _ENTRIES, steps, std_T6, num_steps),
    ]
    note = (
        "What the networks see of the picture (dashed): the frame under the mean matrix, and "
        f"under {_NUM_DRAWS} draws. The dot is the frame's top left corner. The matrix takes a "
        "place in the made image to one in the picture; 1 in a shift is half the picture."
    )
    return Learned("Affine: the learned distribution", note, tiles, panels)


def warp_corners(theta_6: np.ndarray) -> np.ndarray:
    """[...,4,2]: where matrices [...,6] take the corners of the frame, normalised coordinates."""
    theta_23 = theta_6.reshape(*theta_6.shape[:-1], 2, 3)
    return _CORNERS @ theta_23[..., :2].swapaxes(-1, -2) + theta_23[..., None, :, 2]


def draw_matrices(mean_6: np.ndarray, factor_66: np.ndarray, normal_N6: np.ndarray) -> np.ndarray:
    """[N,6]: the matrices that standard normal numbers become, as `Affine` draws them."""
    return mean_6 + normal_N6 @ factor_66.T


def _factor(scale: np.ndarray) -> np.ndarray:
    return np.diag(scale) if scale.ndim == 1 else np.tril(scale)


def _noise(part: Part, moments: Sequence[Moment], num_steps: int) -> Learned | None:
    """Mean and standard deviation of additive noise."""
    history = list(read_history(moments, part, "mean|std"))
    if not history or set(history[0][1]) != {"mean", "std"}:
        return None
    steps = [step for step, _ in history]
    panels = []
    for title, name in (("Mean of the noise", "mean"), ("Standard deviation of the noise", "std")):
        values_TC = np.stack([tensors[name].reshape(-1) for _, tensors in history])
        # The sign of a deviation means nothing: the noise is symmetric.
        values_TC = np.abs(values_TC) if name == "std" else values_TC
        panels.append(_channel_curves(title, steps, values_TC, num_steps))
    return Learned("Noise: the learned distribution", "In the data's own units.", panels=panels)


def _latent_noise(part: Part, moments: Sequence[Moment], num_steps: int) -> Learned | None:
    """The standard deviation of the noise on each channel of a latent."""
    pattern = r"net\.(noise_log_std|noise\.log_std)"
    history = list(read_history(moments, part, pattern))
    if not history:
        return None
    steps = [step for step, _ in history]
    log_std_TD = np.stack([value.reshape(-1) for _, found in history for value in found.values()])
    with np.errstate(over="ignore"):
        std_TD = np.exp(log_std_TD)
    # A stable order, so that equal channels stay in theirs.
    order = np.argsort(std_TD[-1], kind="stable")
    profiles = [
        Profile(_at_step(steps[t]), std_TD[t, order])
        for t in evenly(range(len(steps)), _MOST_MOMENTS)
    ]
    title = "Noise scale of each latent channel"
    note = "Channels in the order of the last line; the later a line, the stronger."
    panels = [
        Panel(title, draw_profiles(title, profiles, "channel"), note),
        _range_curves("Noise scale over the run", steps, std_TD, num_steps),
    ]
    return Learned(
        "Autoencoder: noise on the latent",
        "The learned standard deviation of what is added to the latent before it is decoded.",
        panels=panels,
    )


def _posteriors(part: Part, moments: Sequence[Moment]) -> Learned | None:
    """How far the posteriors of a VDVAE's decoder blocks have moved, and their noise scale."""
    pattern = r"net\.decoder\.dec_blocks\.\d+\.enc\..*"
    steps, scales, shifts = [], [], []
    first: dict[str, np.ndarray] = {}
    is_elu = at(part.table, "options", "sigma") == "elu"
    for step, tensors in read_history(evenly(moments, _MOST_MOMENTS), part, pattern):
        first = first or tensors
        steps.append(step)
        scales.append(posterior_scales(tensors, is_elu))
        shifts.append(posterior_shifts(first, tensors))
    if not steps or not scales[0]:
        return None
    factors = [{i: np.exp(one[i] - scales[0][i]) for i in scales[0]} for one in scales]
    charts = [
        (
            "Noise scale of each block's posterior, times its start",
            "Geometric mean over its channels, as far as the last layer's bias sets it: what the "
            "picture adds to it is not in the weights.",
            factors,
        ),
        (
            "How far each block's posterior has moved",
            "Root mean square change of its weights, a share of that of the weights at the start.",
            shifts,
        ),
    ]
    panels = []
    for title, note, found in charts:
        profiles = [
            Profile(_at_step(step), _by_block(values))
            for step, values in zip(steps, found, strict=True)
        ]
        panels.append(Panel(title, draw_profiles(title, profiles, "block"), note))
    return Learned(
        "Autoencoder: the decoder's posteriors",
        "Only the blocks that train have values; the later a line, the stronger.",
        panels=panels,
    )


def posterior_scales(tensors: dict[str, np.ndarray], is_elu: bool) -> dict[int, float]:
    """By block, the mean logarithm of its latents' standard deviation at the bias alone."""
    found = {}
    for name, bias in tensors.items():
        if (block := re.search(r"\.(\d+)\.enc\.c4\.bias$", name)) is not None:
            raw = np.split(bias, 2)[1]
            log_std = np.where(raw > 0, np.log1p(raw.clip(0)), raw) if is_elu else raw
            found[int(block[1])] = float(log_std.mean())
    return found


def posterior_shifts(first: dict[str, np.ndarray], now: dict[str, np.ndarray]) -> dict[int, float]:
    """By block, the length of what was added to its posterior's weights, over that of the first."""
    lengths: dict[int, tuple[float, float]] = {}
    for name, value in now.items():
        block = int(name.split(".")[3])
        moved, at_start = lengths[block] if block in lengths else (0.0, 0.0)
        moved += float(np.square(value - first[name]).sum())
        lengths[block] = (moved, at_start + float(np.square(first[name]).sum()))
    return {i: (moved / start) ** 0.5 for i, (moved, start) in lengths.items() if start > 0}


def _by_block(values: dict[int, float]) -> np.ndarray:
    """[L] by the blocks' numbers, NaN for those that have no value."""
    numbered = np.full(max(values, default=-1) + 1, np.nan)
    for block, value in values.items():
        numbered[block] = value
    return numbered


def _channel_curves(
    title: str, steps: Sequence[int], values_TC: np.ndarray, num_steps: int
) -> Panel:
    num = values_TC.shape[1]
    if num > _MOST_CHANNELS:
        return _range_curves(title, steps, values_TC, num_steps)
    labels = ("red", "green", "blue") if num == 3 else [f"channel {i}" for i in range(num)]
    return _curves(title, [""] if num == 1 else labels, steps, values_TC, num_steps)


def _range_curves(title: str, steps: Sequence[int], values_TD: np.ndarray, num_steps: int) -> Panel:
    """Lowest, median and highest channel."""
    ends = [values_TD.max(1), np.median(values_TD, 1), values_TD.min(1)]
    return _curves(title, ["highest", "median", "lowest"], steps, np.stack(ends, 1), num_steps)


def _curves(
    title: str, labels: Sequence[str], steps: Sequence[int], values_TC: np.ndarray, num_steps: int
) -> Panel:
    lines = [Series(label, steps, values_TC[:, i], f"series{i}") for i, label in enumerate(labels)]
    return Panel(title, draw_curves(title, lines, num_steps))


def _at_step(step: int) -> str:
    return f"step {count(step)}"

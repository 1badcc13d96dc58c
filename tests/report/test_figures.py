import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hard_fast.report.figures import (
    Level,
    Score,
    Segment,
    Series,
    draw_curves,
    draw_phases,
    draw_scores,
    write_gallery,
)


def _texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def _bars(svg: str, colour: str) -> list[tuple[float, float]]:
    """Left and right end of each filled bar of a phase strip, in its 1000 units."""
    bars = []
    for path, fill in re.findall(r'<path d="([^"]*)"[^>]*fill: var\(--(\w+)\)', svg):
        if fill == colour:
            x = [float(number) for number in re.findall(r"[ML] ?([-\d.]+) ", path)]
            bars.append((min(x), max(x)))
    return bars


def test_gallery_puts_enlarged_originals_above_augmented(tmp_path: Path) -> None:
    original = torch.zeros(12, 1, 28, 28, dtype=torch.uint8)
    original[3, 0, 5, 7] = 200
    augmented = torch.full((12, 1, 28, 28), 0.5, dtype=torch.bfloat16)
    path = tmp_path / "gallery" / "step_00000010.png"
    write_gallery(path, original, augmented)
    image = np.asarray(Image.open(path))
    # Ten of twelve images, each 28 px enlarged 4 times, 8 px apart, in two rows.
    assert image.shape == (2 * 112 + 8, 10 * 112 + 9 * 8, 4)
    left, top = 3 * 120 + 7 * 4, 5 * 4
    assert (image[top : top + 4, left : left + 4] == [200, 200, 200, 255]).all()
    assert image[:112, :, :3].sum() == 16 * 3 * 200
    assert (image[120:, :112] == [128, 128, 128, 255]).all()
    assert image[116, 5, 3] == 0
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_gallery_shows_colour_clips_floats_and_takes_unlike_sizes(tmp_path: Path) -> None:
    original = torch.zeros(2, 3, 32, 32)
    original[:, 1] = 1.7
    augmented = torch.zeros(2, 3, 300, 200).contiguous(memory_format=torch.channels_last)
    augmented[:, 2] = float("nan")
    augmented[:, 0] = 1.0
    write_gallery(tmp_path / "a.png", original, augmented)
    image = np.asarray(Image.open(tmp_path / "a.png"))
    assert image.shape == (32 * 4 + 8 + 300, 2 * 200 + 8, 4)
    assert image[0, 0].tolist() == [0, 255, 0, 255]
    assert image[-1, 0].tolist() == [255, 0, 0, 255]


@pytest.mark.parametrize("shape", [(4, 2, 8, 8), (4, 8, 8), (0, 3, 8, 8)])
def test_gallery_refuses_what_is_not_images(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(str(shape))):
        write_gallery(tmp_path / "a.png", torch.zeros(shape), torch.zeros(shape))


def test_curves_are_labelled_with_their_last_finite_value() -> None:
    lines = [
        Series("centered", [1, 2, 3], [90.0, 95.0, 97.25], "series0"),
        Series("shifted", [1, 2, 3], [30.0, 35.5, float("nan")], "series1"),
        Series("never", [1, 2, 3], [float("nan")] * 3, "series2"),
    ]
    svg = draw_curves("top-1", lines, 3, [Level("teacher", 99.0, "series0")])
    texts = _texts(svg)
    assert "centered 97.25" in texts
    assert "shifted 35.5" in texts
    assert "teacher 99" in texts
    assert not any("never" in text for text in texts)


def test_a_label_stands_at_the_height_of_its_last_value() -> None:
    svg = draw_curves("a", [Series("a", [0, 1, 2], [1.0, 0.2, 0.3], "student")], 2)
    line = re.search(r'<path d="([^"]*)"[^>]*fill: none; stroke: var\(--student\)', svg)
    label = re.search(r'y="([-\d.]+)"[^>]*>a 0.3<', svg)
    assert line is not None
    assert label is not None
    last_y = float(line.group(1).split()[-1])
    # Letters stand on their base line, a little below the middle that is aimed at.
    assert last_y < float(label.group(1)) < last_y + 6


def test_curves_show_shares_in_percent_with_their_thresholds() -> None:
    line = Series("error", [1, 2], [0.5, 0.12345], "student")
    texts = _texts(draw_curves("e", [line], 2, [Level("l_min", 0.05, "muted")], scale="share"))
    assert "error 12.3 %" in texts
    assert "l_min 5 %" in texts
    assert "0" in texts


def test_labels_of_close_lines_do_not_overlap() -> None:
    lines = [Series(f"m{i}", [0, 1], [50.0, 60 + i / 100], f"series{i % 6}") for i in range(12)]
    svg = draw_curves("many", lines, 1)
    places = [float(y) for y in re.findall(r'y="([-\d.]+)"[^>]*>m\d+', svg)]
    assert len(places) == 12
    assert np.diff(sorted(places)).min() >= 14.9


def test_only_wide_positive_values_get_a_logarithmic_axis() -> None:
    wide = Series("", [0, 1, 2], [5.0, 0.5, 0.005], "student")
    assert {"0.01", "0.1", "1"} <= set(_texts(draw_curves("wide", [wide], 2)))
    assert "0.1" not in _texts(draw_curves("wide", [wide], 2, scale="linear"))
    negative = Series("", [0, 1, 2], [5.0, 0.5, -0.005], "student")
    assert "0.1" not in _texts(draw_curves("negative", [negative], 2))


def test_long_curves_stay_small() -> None:
    steps = list(range(50_000))
    noise = np.random.default_rng(0).normal(size=50_000)
    assert len(draw_curves("long", [Series("a", steps, noise, "student")], 50_000)) < 60_000


def test_a_point_between_gaps_is_marked_and_a_gap_is_not_bridged() -> None:
    nan = float("nan")
    values = [1.0] * 50 + [nan] * 10 + [2.0] + [nan] * 10 + [1.0] * 50
    svg = draw_curves("gaps", [Series("", range(len(values)), values, "augmentor")], 121)
    assert svg.count("<use ") - draw_curves("none", [], 121).count("<use ") == 1
    line = re.search(r'<path d="([^"]*)"[^>]*fill: none; stroke: var\(--augmentor\)', svg)
    assert line is not None
    # The point alone is a stroke of no length.
    assert line.group(1).count("M") == 3


@pytest.mark.parametrize("num_points", [0, 1])
def test_curves_of_nothing_and_of_one_point_are_drawn(num_points: int) -> None:
    line = Series("a", [7] * num_points, [0.5] * num_points, "student")
    svg = draw_curves("few", [line], 0)
    assert ("a 0.5" in _texts(svg)) == bool(num_points)


def test_phase_strip_widens_short_phases_within_bounds() -> None:
    segments = [Segment(0, 9_990, "student"), Segment(9_990, 10_000, "augmentor")]
    segments += [Segment(10_000, 100_000, "student")]
    svg = draw_phases("strip", segments, 100_000)
    assert 'preserveAspectRatio="none"' in svg
    assert _bars(svg, "student") == [pytest.approx((0, 99.9)), pytest.approx((100, 1000))]
    ((left, right),) = _bars(svg, "augmentor")
    assert left == pytest.approx(99.9)
    assert right - left == pytest.approx(4)
    assert svg.index("var(--student)") < svg.index("var(--augmentor)")


def test_phase_strip_of_a_thousand_switches_is_not_all_augmentor() -> None:
    segments = []
    for i in range(500):
        segments += [Segment(200 * i, 200 * i + 199, "student")]
        segments += [Segment(200 * i + 199, 200 * i + 200, "augmentor")]
    bars = _bars(draw_phases("strip", segments, 100_000), "augmentor")
    assert len(bars) == 500
    assert 200 < sum(right - left for left, right in bars) <= 501
    assert max(right for _, right in bars) <= 1000.01


def test_scores_draw_means_errors_and_the_papers_numbers() -> None:
    scores = [
        Score("kd", 98.0, 0.1, 98.5, "98.00 \u00b1 0.10"),
        Score("<b>", 97.0, None, None, "97.00"),
        Score("missing", None, None, 96.0, "\u2013"),
    ]
    svg = draw_scores("top-1", scores)
    texts = _texts(svg)
    assert {"kd", "&lt;b&gt;", "missing", "98.00 \u00b1 0.10", "97.00"} <= set(texts)
    no_paper = draw_scores("top-1", [one._replace(paper=None) for one in scores])
    assert svg.count("<use ") - no_paper.count("<use ") == 2
    assert "var(--augmentor)" in svg
    assert "var(--augmentor)" not in no_paper
    no_error = draw_scores("top-1", [one._replace(sem=None) for one in scores])
    assert svg.count("var(--student)") > no_error.count("var(--student)")


def test_scores_that_are_all_equal_are_drawn() -> None:
    assert "same" in _texts(draw_scores("mse", [Score("same", 0.0, None, None, "0")]))

import numpy as np
import pytest

from hard_fast.report.canvas import (
    COLOURS,
    build_axes,
    compact,
    cut_short,
    decimate,
    hex_code,
    spread,
    style,
    to_svg,
)


def test_decimate_keeps_short_series_and_marks_what_is_not_finite() -> None:
    steps, mean, low, high = decimate([1, 2, 3], [0.5, float("inf"), 0.25])
    assert steps.tolist() == [1, 2, 3]
    for values in (mean, low, high):
        np.testing.assert_array_equal(values, [0.5, np.nan, 0.25])


def test_decimate_bins_long_series_with_their_range_and_gaps() -> None:
    values = np.arange(9000.0)
    values[5] = np.nan
    values[30:60] = np.nan
    steps, mean, low, high = decimate(np.arange(9000), values)
    assert len(steps) == len(mean) == 300
    # A bin is 30 rows; the first lacks row 5, the second is empty.
    assert mean[0] == pytest.approx((sum(range(30)) - 5) / 29)
    assert (low[0], high[0]) == (0, 29)
    assert np.isnan([mean[1], low[1], high[1]]).all()
    assert (steps[-1], mean[-1], low[-1], high[-1]) == (8984.5, 8984.5, 8970, 8999)


def test_spread_keeps_order_gap_and_box() -> None:
    placed = spread([50, 10, 51, 49], gap=15, low=0, high=60)
    order = np.argsort([50, 10, 51, 49])
    assert (np.diff(np.array(placed)[order]) >= 15 - 1e-9).all()
    assert max(placed) <= 60
    assert min(placed) >= 0
    assert spread([10, 40], gap=15, low=0, high=60) == [10, 40]


def test_compact_is_short() -> None:
    numbers = (0.05, 1500, 2e6, -0.25, 97.1234, 0.0)
    assert [compact(x) for x in numbers] == ["0.05", "1.5k", "2M", "\u22120.25", "97.12", "0"]
    assert compact(34.86, digits=3) == "34.9"


def test_cut_short_keeps_to_its_length() -> None:
    assert cut_short("short") == "short"
    assert cut_short("x" * 40, most=10) == "x" * 8 + ".."


def test_svg_is_inline_coloured_by_the_page_and_escaped() -> None:
    with style("a <name>"):
        figure, axes = build_axes(200, 40, 60)
        axes.plot([0, 1], [0, 1], "o-", color=hex_code("student"))
        axes.text(0, 0, "<script>$x_1$</script>", color=hex_code("unheard of"))
        svg = to_svg(figure, 'a <name> "quoted"')
    assert svg.startswith("<svg viewBox=")
    assert svg.rstrip().endswith("</svg>")
    assert 'aria-label="a  name   quoted "' in svg
    assert ">&lt;script&gt;$x_1$&lt;/script&gt;</text>" in svg
    assert "var(--student)" in svg
    assert "var(--muted)" in svg
    for light, _ in COLOURS.values():
        assert light not in svg
    for outside in ("http://", "https://", "<style", "<?xml", "<!DOCTYPE", '<g id="'):
        assert outside not in svg


def test_light_colours_tell_their_names_apart() -> None:
    assert len({light for light, _ in COLOURS.values()}) == len(COLOURS)


def test_a_figure_leaves_matplotlib_as_it_was() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    with style("any"):
        to_svg(build_axes(100, 40, 40)[0], "any")
    assert dict(matplotlib.rcParams) == before

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hard_fast.augment.mix import PatchMix, PatchMixConfig
from hard_fast.report.learned import (
    Profile,
    draw_outlines,
    draw_profiles,
    find_reach,
    write_patch_map,
)
from hard_fast.types import View

# Light values of series0 and series1: the first and the second image of a group.
FIRST, SECOND = np.array([0x0B, 0x82, 0x78]), np.array([0xBF, 0x2F, 0x66])
FRAME, GAP = 5, 8


def _corner(column: int, tile: int = 112) -> int:
    """Left edge of the picture in a column of tiles."""
    return FRAME + column * (tile + 2 * FRAME + GAP)


def test_a_patch_map_by_hand(tmp_path: Path) -> None:
    original = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    original[1] = 200
    made = torch.full((1, 1, 28, 28), 104, dtype=torch.uint8)
    # Rows of patches: wholly the first image, wholly the second, 3/4 the first, a tie.
    share = torch.tensor([[1.0, 0.0], [0.75, 0.5]])
    weight = torch.stack([share, 1 - share])[None]
    write_patch_map(tmp_path / "patches" / "a.png", original, made, weight)
    image = np.asarray(Image.open(tmp_path / "patches" / "a.png")).astype(int)
    assert image.shape == (122, 4 * 122 + 3 * GAP, 4)
    assert image[0, 0].tolist() == [*FIRST, 255]
    assert image[60, _corner(1) - 1].tolist() == [*SECOND, 255]
    assert image[60, _corner(0) + 60].tolist() == [0, 0, 0, 255]
    assert image[60, _corner(1) + 60].tolist() == [200, 200, 200, 255]
    assert image[60, _corner(2) + 60].tolist() == [104, 104, 104, 255]
    assert image[60, _corner(2) - 1, 3] == image[60, _corner(1) + 120, 3] == 0
    left, middle = _corner(3), 56
    expected = {
        (0, 0): 0.30 * 104 + 0.70 * FIRST,
        (0, 1): 0.30 * 104 + 0.70 * SECOND,
        (1, 0): 0.575 * 104 + 0.425 * FIRST,
        (1, 1): 0.85 * 104 + 0.15 * FIRST,
    }
    for (row, column), colour in expected.items():
        top, start = FRAME + middle * row, left + middle * column
        patch = image[top : top + middle, start : start + middle]
        assert (patch == [*colour.round().astype(int), 255]).all(), (row, column)


@pytest.mark.parametrize("group, size", [(2, (3, 2)), (3, (3, 2)), (4, (6, 1)), (8, (6, 1))])
def test_small_groups_stand_side_by_side(tmp_path: Path, group: int, size: tuple) -> None:
    num_lines, per_line = size
    original, made = torch.zeros(7 * group, 3, 112, 112), torch.zeros(7, 3, 112, 112)
    write_patch_map(tmp_path / "a.png", original, made, torch.ones(7, group, 4, 4) / group)
    strip = (group + 2) * (122 + GAP) - GAP
    width = per_line * strip + (per_line - 1) * 4 * GAP
    height = num_lines * (122 + 2 * GAP) - 2 * GAP
    assert Image.open(tmp_path / "a.png").size == (width, height)


def test_the_map_shows_who_won_in_a_real_mix(tmp_path: Path) -> None:
    torch.manual_seed(0)
    image = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    mix = PatchMix(PatchMixConfig(group=2), image.shape[1:])
    noise = mix.draw_noise(image.shape, torch.Generator().manual_seed(0))
    made, weight = mix(View(image, None), noise).image, mix.weigh(image, noise["query"])
    write_patch_map(tmp_path / "a.png", image, made, weight)
    found = np.asarray(Image.open(tmp_path / "a.png"))[FRAME:-FRAME].astype(float)
    tile = found[:, _corner(3, 128) : _corner(3, 128) + 128, :3]
    # Greys have no hue, so red less green tells the first colour from the second.
    redness = (tile[..., 0] - tile[..., 1]).reshape(8, 16, 8, 16).mean((1, 3))
    wins = (weight[0, 1] > weight[0, 0]).numpy()
    assert 0 < wins.sum() < 64
    assert ((redness > 0) == wins).all()
    middle = found[::4, _corner(2, 128) : _corner(2, 128) + 128 : 4, :3]
    expected = (made[0].detach().permute(1, 2, 0).numpy() * 255).round()
    assert np.abs(middle - expected).max() <= 1


def test_weights_that_are_no_numbers_still_give_a_picture(tmp_path: Path) -> None:
    weight = torch.full((1, 2, 2, 2), float("nan"))
    write_patch_map(tmp_path / "a.png", torch.zeros(2, 3, 8, 8), torch.zeros(1, 3, 8, 8), weight)
    assert Image.open(tmp_path / "a.png").size == (4 * 122 + 3 * GAP, 122)


@pytest.mark.parametrize(
    "original, made, weight",
    [
        ((4, 3, 8, 8), (2, 3, 8, 8), (2, 3, 2, 2)),
        ((4, 3, 8, 8), (4, 3, 8, 8), (2, 2, 2, 2)),
        ((4, 3, 8, 8), (2, 3, 8, 8), (2, 2, 4)),
        ((4, 3, 8, 8), (2, 3, 9, 9), (2, 2, 2, 2)),
        ((4, 2, 8, 8), (2, 2, 8, 8), (2, 2, 2, 2)),
        ((0, 3, 8, 8), (0, 3, 8, 8), (0, 2, 2, 2)),
    ],
)
def test_what_does_not_fit_together_is_refused(
    tmp_path: Path, original: tuple, made: tuple, weight: tuple
) -> None:
    shapes = (torch.zeros(original), torch.zeros(made), torch.zeros(weight))
    with pytest.raises(ValueError, match="images"):
        write_patch_map(tmp_path / "a.png", *shapes)
    assert list(tmp_path.iterdir()) == []


def test_outlines_lie_where_their_corners_say() -> None:
    mean = np.array([(-0.5, -1.0), (1.5, -1.0), (1.5, 1.0), (-0.5, 1.0)])
    svg = draw_outlines("warp", mean, np.stack([mean - 0.5, mean + 0.5]), reach=2.0)
    assert 'viewBox="0 0 150 150"' in svg
    paths = re.findall(r'<path d="([^"]*)" clip-path="[^"]*" style="([^"]*)"', svg)
    lines = [(re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path), look) for path, look in paths]
    lines = [([(float(x), float(y)) for x, y in points], look) for points, look in lines]
    # (coordinate + 2) * 150 / 4 px; y points down in both.
    frame, first, second, middle = lines
    assert frame[0] == [(37.5, 37.5), (112.5, 37.5), (112.5, 112.5), (37.5, 112.5), (37.5, 37.5)]
    assert "var(--muted)" in frame[1]
    assert middle[0][:3] == [(56.25, 37.5), (131.25, 37.5), (131.25, 112.5)]
    assert first[0][0] == (37.5, 18.75) and second[0][0] == (75.0, 56.25)
    assert "stroke-opacity" in first[1] and "stroke-opacity" not in middle[1]
    assert "var(--augmentor)" in middle[1]


def test_the_reach_holds_every_outline_within_bounds() -> None:
    square = np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
    assert find_reach([]) == find_reach([square]) == 1.25
    assert find_reach([square, square[None] * 1.6]) == pytest.approx(1.05 * 1.6)
    assert find_reach([square * 9]) == 2.2


def test_profiles_name_their_first_and_last_line() -> None:
    profiles = [Profile(f"step {10 * i}", np.array([0.1, np.nan, 0.2 + 0.1 * i])) for i in range(4)]
    profiles.append(Profile("step 40", np.full(3, np.nan)))
    svg = draw_profiles("scale", profiles, "channel")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert {"step 0", "step 30", "channel"} <= set(texts)
    assert not {"step 10", "step 20", "step 40"} & set(texts)
    found = re.findall(r"fill: none;[^\"]*stroke-opacity: ([\d.]+)", svg)
    strengths = [float(one) for one in found]
    assert strengths == sorted(strengths) and strengths[0] == 0.4
    assert "var(--augmentor)" in svg


def test_a_profile_without_any_number_is_empty_axes() -> None:
    svg = draw_profiles("scale", [Profile("step 0", np.full(2, np.nan))], "block")
    assert ">block<" in svg and ">step 0<" not in svg

import pytest
import torch

from hard_fast.data.arrays import Arrays
from hard_fast.data.shifted import ShiftedConfig, shift_corners


def shifted_by(image: torch.Tensor, rows: int, columns: int, shift_px: int) -> torch.Tensor:
    """The window of a padded picture, as in the generator's reference code."""
    padded = torch.nn.functional.pad(image, [shift_px] * 4)
    height, width = image.shape[-2:]
    top, left = shift_px + rows, shift_px + columns
    return padded[..., top : top + height, left : left + width]


@pytest.mark.parametrize("shift_px", [1, 3])
def test_each_image_moves_to_one_of_four_corners(shift_px):
    image = torch.randint(1, 256, (400, 2, 7, 9), dtype=torch.uint8)
    moved = shift_corners(image, shift_px, seed=0)
    assert moved.dtype == torch.uint8
    counts = []
    for rows in (-shift_px, shift_px):
        for columns in (-shift_px, shift_px):
            there = shifted_by(image, rows, columns, shift_px)
            counts.append((moved == there).flatten(1).all(1).sum().item())
    assert sum(counts) == 400
    assert min(counts) > 60


def test_the_shifted_set_is_the_same_every_time():
    image = torch.randint(1, 256, (50, 3, 6, 5), dtype=torch.uint8)
    assert torch.equal(shift_corners(image, 2, seed=0), shift_corners(image, 2, seed=0))
    assert not torch.equal(shift_corners(image, 2, seed=0), shift_corners(image, 2, seed=1))
    assert torch.equal(shift_corners(image, 0, seed=0), image)


def test_a_shift_off_the_canvas_is_refused():
    with pytest.raises(ValueError, match=r"data\.shift_px = 4: must be from 0 to 3"):
        shift_corners(torch.zeros(3, 1, 4, 6, dtype=torch.uint8), 4, seed=0)


def test_a_part_is_tested_as_it_is_and_shifted():
    part = Arrays(torch.randint(1, 256, (9, 1, 8, 8), dtype=torch.uint8), torch.arange(9))
    found = ShiftedConfig(shift_px=2).tests(part)
    assert list(found) == ["centered", "shifted"] and found["centered"] is part
    assert torch.equal(found["shifted"].image, shift_corners(part.image, 2, seed=0))
    assert torch.equal(found["shifted"].label, part.label)

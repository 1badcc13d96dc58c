import pytest
import torch

from bench.evaluate import differences, draw_images
from hard_fast.evals.corruptions import blurs, corrupt

NAMES = ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur")


# glass_blur rounds before it shuffles, so that a level's difference spreads.
@pytest.mark.parametrize("size_px", [32, 72])
@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_numpy(name, severity, size_px):
    found = differences(name, severity, draw_images(3, size_px, torch.device("cpu")))
    assert found.max() <= (2 if name == "glass_blur" else 1) and found.mean() < 0.1


def test_a_disk_sums_to_one_and_has_its_radius():
    kernel = blurs.disk(3, 0.1)
    assert kernel.shape == (17, 17) and float(kernel.sum()) == pytest.approx(1)
    # 29 whole places within 3 of the middle.
    assert (kernel > 1e-6).sum() == 29
    assert blurs.disk(10, 0.5).shape == (21, 21)


def test_lines_go_through_the_nearest_pixels():
    assert blurs.line(0, 4) == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert blurs.line(-90, 3) == [(0, 0), (-1, 0), (-2, 0)]
    assert blurs.line(45, 4) == [(0, 0), (1, 1), (1, 1), (2, 2)]


def test_streaks_of_one_direction_are_made_together():
    image = torch.rand(5, 9, 11, 3)
    angle_deg_B = torch.tensor([10, -45, 10, 45, -45])
    found = blurs.streaked(image, 4, 2.0, angle_deg_B)
    for i in range(5):
        alone = blurs.streaked(image[i : i + 1], 4, 2.0, angle_deg_B[i : i + 1])
        torch.testing.assert_close(found[i : i + 1], alone)
    # Towards what lies to the right: a bright column brightens those to its left.
    image = torch.zeros(1, 5, 9, 1)
    image[:, :, 4] = 1.0
    streak = blurs.streaked(image, 2, 1.0, torch.tensor([0]))[0, 2, :, 0]
    assert (streak[:5].diff() > 0).sum() >= 3 and streak[5:].abs().max() == 0


def test_glass_moves_pixels_no_farther_than_chains_of_its_reach():
    # Sigma 0.05 does not blur at all, so that pixels only move, one at most up or left.
    row = torch.arange(32).view(1, 1, 32, 1).expand(1, 3, 32, 32).to(torch.uint8)
    moved = corrupt(row, "glass_blur", 1, torch.tensor([0])).int() - row
    assert moved.min() == -1 and moved.max() == 0
    inside = moved[0, 0, 2:, 2:]
    # Half of the steps go up; 900 pixels.
    assert float((inside == -1).float().mean()) == pytest.approx(0.5, abs=5 * 0.5 / 30)
    assert (moved[..., :2, :] == 0).all() and (moved[..., :2] == 0).all()

import pytest
import torch

from bench.evaluate import differences, draw_images
from hard_fast.evals.corruptions import corrupt, weather
from hard_fast.evals.corruptions.draws import draws_for
from hard_fast.evals.corruptions.textures import frost_textures


@pytest.mark.parametrize("size_px", [32, 72])
@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", ["snow", "frost", "fog"])
def test_values_are_those_of_numpy_from_the_same_numbers(name, severity, size_px):
    found = differences(name, severity, draw_images(3, size_px, torch.device("cpu")))
    assert found.max() <= 1 and found.mean() < 0.1


def test_clouds_reach_from_0_to_1_and_are_smoother_where_they_decay_faster():
    rough = []
    for decay in (1.5, 3.0):
        cloud = weather.plasma(draws_for(0, "fog", 1, torch.arange(8)), 64, decay)
        assert cloud.shape == (8, 64, 64)
        assert (cloud.amin((1, 2)) == 0).all() and (cloud.amax((1, 2)) == 1).all()
        rough.append(float(cloud.diff(dim=2).std() / cloud.std()))
    assert rough[1] < 0.75 * rough[0]


def test_frost_on_black_is_a_share_of_a_piece_of_a_texture():
    black = torch.zeros(200, 3, 32, 32, dtype=torch.uint8)
    found = corrupt(black, "frost", 3, torch.arange(200)).float()
    textures = frost_textures(32, 32, torch.device("cpu")).float()
    # Its share is 0.4; 200 pieces out of five textures.
    assert float(found.mean()) == pytest.approx(0.4 * float(textures.mean()) - 0.5, rel=0.05)
    spread = found.mean((1, 2, 3)).std() / 0.4
    assert float(spread) == pytest.approx(float(textures.mean((1, 2, 3)).std()), rel=0.3)


def test_snow_whitens_and_more_so_when_severe():
    image_BCHW = draw_images(32, 32, torch.device("cpu"))
    means = [
        float(corrupt(image_BCHW, "snow", severity, torch.arange(32)).float().mean())
        for severity in (1, 3, 5)
    ]
    assert float(image_BCHW.float().mean()) < means[0] < means[1] < means[2]

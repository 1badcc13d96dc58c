import torch

from hard_fast.augment.noise import GaussianNoise, NoiseConfig
from hard_fast.types import View


def test_mean_and_std_act_as_they_say():
    augmentor = GaussianNoise(NoiseConfig(std=2.0), num_channels=2, is_picture=False)
    with torch.no_grad():
        augmentor.mean[1] = 5.0
    image = torch.zeros(1, 2, 1, 1)
    noise = {"normal": torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)}
    assert augmentor(View(image, None), noise).image.flatten().tolist() == [2.0, 3.0]


def test_only_pictures_are_clamped():
    image, noise = torch.full((1, 1, 1, 1), 0.9), {"normal": torch.full((1, 1, 1, 1), 3.0)}
    config = NoiseConfig(std=1.0)
    assert GaussianNoise(config, 1, is_picture=True)(View(image, None), noise).image.item() == 1.0
    free = GaussianNoise(config, 1, is_picture=False)(View(image, None), noise).image
    torch.testing.assert_close(free.item(), 3.9)

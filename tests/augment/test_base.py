import torch
from torch import nn

from hard_fast.augment.base import is_learned, take_rows, to_float


def test_to_float_scales_bytes_and_leaves_floats_alone():
    assert to_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [0.0, 1.0]
    image = torch.tensor([-3.0, 7.0])
    assert to_float(image) is image


def test_learned_means_that_something_requires_gradients():
    layer = nn.Linear(1, 1)
    assert is_learned(layer)
    assert not is_learned(layer.requires_grad_(False))
    assert not is_learned(nn.Identity())


def test_noise_is_cut_like_the_images_it_belongs_to():
    noise = {"each": torch.arange(12), "pair": torch.arange(6), "all": torch.tensor(7)}
    part = take_rows(noise, 4, 8, num_images=12)
    assert part["each"].tolist() == [4, 5, 6, 7] and part["pair"].tolist() == [2, 3]
    assert part["all"].item() == 7

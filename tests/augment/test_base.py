import torch
from torch import nn

from hard_fast.augment.base import is_learned, to_float


def test_to_float_scales_bytes_and_leaves_floats_alone():
    assert to_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [0.0, 1.0]
    image = torch.tensor([-3.0, 7.0])
    assert to_float(image) is image


def test_learned_means_that_something_requires_gradients():
    layer = nn.Linear(1, 1)
    assert is_learned(layer)
    assert not is_learned(layer.requires_grad_(False))
    assert not is_learned(nn.Identity())

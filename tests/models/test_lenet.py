"""LeNet-5 and its half: their published sizes, and the border that small pictures get."""

import pytest
import torch

from hard_fast.models.lenet import LENETS, lenet5


@pytest.mark.parametrize(("name", "count"), [("lenet5", 61_706), ("lenet5_half", 15_738)])
def test_parameters_are_those_of_the_published_layers(name, count):
    net = LENETS[name](10, 1, 28)
    assert sum(p.numel() for p in net.parameters()) == count
    assert net(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_a_small_picture_is_one_of_32_px_with_a_border_of_zeros():
    torch.manual_seed(0)
    small = lenet5(10, 1, 28)
    large = lenet5(10, 1, 32)
    large.load_state_dict(small.state_dict())
    image = torch.rand(2, 1, 28, 28)
    framed = torch.nn.functional.pad(image, (2, 2, 2, 2))
    assert torch.equal(small(image), large(framed))


@pytest.mark.parametrize("size", [27, 34])
def test_pictures_that_cannot_be_centred_are_refused(size):
    with pytest.raises(ValueError, match=f"image_size = {size}: LeNet-5 reads an even number"):
        lenet5(10, 1, size)

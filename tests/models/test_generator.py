"""The picture generator: its published size, what comes out, and what it refuses."""

import pytest
import torch

from hard_fast.models.generator import PictureGenerator


def test_the_defaults_are_the_published_layers_for_mnist():
    net = PictureGenerator((1, 32, 32))
    # Linear 100 -> 128*8*8, norms of 128, 128 and 64, 3x3 convolutions 128-128, 128-64 and 64-1.
    linear, norms = 101 * 8192, 2 * (128 + 128 + 64)
    convolutions = (9 * 128 + 1) * 128 + (9 * 128 + 1) * 64 + (9 * 64 + 1)
    assert sum(p.numel() for p in net.parameters()) == linear + norms + convolutions
    assert net.norm1.eps == net.norm2.eps == 0.8 and net.norm0.eps == 1e-5
    assert net.norm1.momentum == 0.1 and not list(net.standard.parameters())


def test_standard_pictures_have_the_given_mean_and_std_over_a_batch():
    torch.manual_seed(0)
    net = PictureGenerator((3, 8, 12), latent=5, width=4, mean=(0.1, 0.2, 0.3), std=(0.5,))
    image = net(torch.randn(16, 5))
    assert image.shape == (16, 3, 8, 12)
    assert image.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(image.mean((0, 2, 3)), torch.tensor([0.1, 0.2, 0.3]))
    spread = image.var((0, 2, 3), correction=0).sqrt()
    # 1e-5 beside a variance of a few thousandths.
    torch.testing.assert_close(spread, torch.full((3,), 0.5), rtol=5e-2, atol=0.0)


def test_what_is_below_zero_keeps_a_fifth_behind_both_hidden_convolutions():
    net = PictureGenerator((1, 4, 4), latent=1, width=1, output="sigmoid").eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        for norm in (net.norm1, net.norm2):
            norm.eps = 0.0
            norm.weight.fill_(1.0)
        # The middle of the kernel of each convolution passes a number on.
        net.conv1.bias.fill_(-2.0)
        net.conv2.weight[0, 0, 1, 1], net.conv3.weight[0, 0, 1, 1] = 5.0, 1.0
        # -2 becomes -0.4, times 5 is -2 again, which becomes -0.4.
        image = net(torch.zeros(1, 1))
    torch.testing.assert_close(image, torch.tensor(-0.4).sigmoid().expand(1, 1, 4, 4))


def test_sigmoid_pictures_stay_inside():
    torch.manual_seed(0)
    net = PictureGenerator((1, 4, 4), latent=2, width=2, output="sigmoid")
    torch.nn.init.normal_(net.conv3.weight, std=100.0)
    image = net(torch.randn(8, 2))
    assert 0.0 <= image.min() < 0.01 and 0.99 < image.max() <= 1.0


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ((1, 30, 28), {}, "multiples of 4 px, not 30x28"),
        ((3, 8, 8), {"mean": (0.1, 0.2)}, "give one number, or 3"),
    ],
)
def test_what_does_not_fit_is_one_line(shape, options, words):
    with pytest.raises(ValueError, match=words):
        PictureGenerator(shape, **options)

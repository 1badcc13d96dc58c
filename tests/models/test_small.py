"""The small nets: sizes, layers and values worked out by hand."""

import math

import pytest
import torch
from torch import nn

from hard_fast.models.binary import BNEXTS
from hard_fast.models.small import SMALL_NETS

SIZES = {
    "cnn": (10, 1, 28),
    "mlp": (10, 1, 28),
    "resnet18_3x3": (10, 3, 32),
    "cifar_resnet20": (10, 3, 32),
    "cifar_resnet56": (10, 3, 32),
    "vit_mnist": (10, 1, 28),
    "vit_cifar": (10, 3, 32),
    "vit_cifar_small": (10, 3, 32),
    "cosine": (1, 1, 1),
    "tiny_vae": (2, 1, 28),
    "lenet5": (10, 1, 28),
    "lenet5_half": (10, 1, 28),
    **dict.fromkeys(BNEXTS, (10, 3, 32)),
}
# Large, or with signs that another order of additions may turn.
NOT_COMPARED = {"vit_cifar", "cifar_resnet56", *BNEXTS}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("name", "count"),
    {
        "cnn": 112_650,
        "mlp": 472_032,
        "resnet18_3x3": 11_173_962,
        "cifar_resnet20": 269_722,
        "cifar_resnet56": 853_018,
        "vit_mnist": 901_770,
        "vit_cifar": 53_563_914,
        "vit_cifar_small": 9_523_722,
        "cosine": 0,
    }.items(),
)
def test_parameter_count_is_the_papers(name, count):
    # One channel for resnet18 would be 1,152 fewer; the papers' counts are for these sizes.
    with torch.device("meta"):
        net = SMALL_NETS[name](*SIZES[name])
    assert sum(p.numel() for p in net.parameters()) == count


def test_sizes_cover_every_net():
    assert SIZES.keys() == SMALL_NETS.keys()


@pytest.mark.parametrize("name", [n for n in SIZES if n not in NOT_COMPARED])
def test_output_is_the_same_in_both_memory_formats(name):
    num_classes, in_channels, size = SIZES[name]
    net = SMALL_NETS[name](num_classes, in_channels, size).eval()
    image = torch.rand(3, in_channels, size, size)
    with torch.no_grad():
        expected = net(image)
        found = net.to(memory_format=torch.channels_last)(
            image.to(memory_format=torch.channels_last)
        )
    assert expected.shape == (3, num_classes)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["cnn", "mlp", "resnet18_3x3", "vit_mnist"])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_digits_of_one_or_three_channels(name, in_channels):
    options = {"widths": (4, 8)} if name == "resnet18_3x3" else {}
    net = SMALL_NETS[name](10, in_channels, 28, **options)
    assert net(torch.rand(2, in_channels, 28, 28)).shape == (2, 10)


def test_cnn_order_of_layers():
    net = SMALL_NETS["cnn"](10, 1, 28, batch_norm=True)
    kinds = [type(m).__name__ for m in net]
    one = ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d", "Dropout"]
    assert kinds == one * 3 + ["AdaptiveAvgPool2d", "Flatten", "Linear"]
    assert [m.kernel_size for m in net if isinstance(m, nn.MaxPool2d)] == [1, 2, 3]
    assert net.pool3(torch.rand(1, 1, 10, 10)).shape[-1] == 3
    plain = SMALL_NETS["cnn"](10, 1, 28)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in plain)


def test_cnn_needs_room():
    SMALL_NETS["cnn"](10, 1, 14)(torch.rand(1, 1, 14, 14))
    with pytest.raises(ValueError, match="image_size = 13: too small for 3 convolutions"):
        SMALL_NETS["cnn"](10, 1, 13)


def test_mlp_defaults_and_the_toy():
    net = SMALL_NETS["mlp"](10, 1, 28)
    assert net.head.bias is None
    assert [type(m).__name__ for m in net[1:4]] == ["Linear", "ReLU", "Dropout"]
    assert net.dropout1.p == 0.1
    toy = SMALL_NETS["mlp"](1, 1, 1, hidden=(64, 64), dropout=0.0, head_bias=True)
    assert toy(torch.linspace(-3, 3, 5).view(5, 1, 1, 1)).shape == (5, 1)
    assert sum(p.numel() for p in toy.parameters()) == 64 * 2 + 64 * 65 + 65


def test_stages_may_have_blocks_of_their_own_number():
    """ResNet-34 for ten classes of small pictures, as the data-free methods' teacher."""
    with torch.device("meta"):
        net = SMALL_NETS["resnet18_3x3"](10, 3, 32, num_blocks=(3, 4, 6, 3))
    assert [len(net.get_submodule(f"layer{i}")) for i in range(1, 5)] == [3, 4, 6, 3]
    assert sum(p.numel() for p in net.parameters()) == 21_282_122


def test_resnet18_keeps_the_resolution_of_small_pictures():
    net = SMALL_NETS["resnet18_3x3"](10, 1, 32, widths=(2, 3, 4, 5))
    sides = {}
    for name in ("conv1", "layer1", "layer2", "layer4"):
        net.get_submodule(name).register_forward_hook(
            lambda m, args, out, name=name: sides.update({name: tuple(out.shape[1:])})
        )
    net(torch.rand(2, 1, 32, 32))
    assert sides == {
        "conv1": (2, 32, 32),
        "layer1": (2, 32, 32),
        "layer2": (3, 16, 16),
        "layer4": (5, 4, 4),
    }


def test_cifar_shortcut_takes_every_second_pixel_between_planes_of_zeros():
    net = SMALL_NETS["cifar_resnet20"](10, 3, 32)
    x = torch.rand(1, 16, 4, 4)
    shortcut = net.layer2[0].shortcut(x)
    assert shortcut.shape == (1, 32, 2, 2)
    assert torch.equal(shortcut[:, 8:24], x[:, :, ::2, ::2])
    assert shortcut[:, :8].abs().sum() == 0 and shortcut[:, 24:].abs().sum() == 0
    assert not list(net.layer2[0].shortcut.parameters())
    assert torch.equal(net.layer1[0].shortcut(x), x)


def test_residual_block_adds_its_input_before_the_last_relu():
    block = SMALL_NETS["cifar_resnet20"](10, 3, 32).layer1[0].eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 16, 4, 4)
    torch.testing.assert_close(block(x), x.relu())


def test_vit_attention_matches_the_formula():
    attention = SMALL_NETS["vit_mnist"](10, 1, 28).blocks[0].attention.eval()
    x = torch.randn(2, 5, 64)
    q, k, v = (
        part.view(2, 5, 8, 64).transpose(1, 2)
        for part in attention.to_qkv(attention.norm(x)).chunk(3, dim=-1)
    )
    weights = (q @ k.transpose(-2, -1) / math.sqrt(64)).softmax(-1)
    expected = attention.to_out((weights @ v).transpose(1, 2).reshape(2, 5, 512))
    torch.testing.assert_close(attention(x), expected)
    assert attention.to_qkv.bias is None and attention.to_out.bias is not None


def test_vit_heads_dropout_and_class_token():
    mnist = SMALL_NETS["vit_mnist"](10, 1, 28)
    assert [type(m).__name__ for m in mnist.head] == ["Linear", "GELU", "Linear"]
    image = torch.rand(2, 1, 28, 28)
    assert torch.equal(mnist(image), mnist(image))
    small = SMALL_NETS["vit_cifar_small"](10, 3, 32, dim=16, depth=1, heads=2, dim_head=4)
    assert [type(m).__name__ for m in small.head] == ["LayerNorm", "Linear"]
    image = torch.rand(2, 3, 32, 32)
    assert not torch.equal(small(image), small(image))
    small.eval()
    assert torch.equal(small(image), small(image))
    # With no layers between, the head reads the class token and no patch.
    bare = SMALL_NETS["vit_cifar_small"](10, 3, 32, dim=16, depth=1).eval()
    bare.blocks = nn.Sequential()
    expected = bare.head(bare.class_token[0, :1] + bare.positions[0, :1])
    torch.testing.assert_close(bare(image), expected.expand(2, -1))


def test_vit_needs_whole_patches():
    with pytest.raises(ValueError, match="patch = 7: must divide the picture's size, 32 px"):
        SMALL_NETS["vit_mnist"](10, 1, 32)


def test_vit_trains_under_bf16_autocast():
    net = SMALL_NETS["vit_cifar_small"](10, 3, 32, dim=16, depth=1, heads=2, dim_head=4)
    with torch.autocast("cpu", torch.bfloat16):
        loss = net(torch.rand(2, 3, 32, 32)).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_cosine_values_and_size():
    net = SMALL_NETS["cosine"](1, 1, 1)
    x = torch.tensor([0.0, math.pi, math.pi / 3]).view(3, 1, 1, 1)
    torch.testing.assert_close(net(x), torch.tensor([[1.0], [-1.0], [0.5]]))
    with pytest.raises(ValueError, match="cosine: needs one class, one channel and one pixel"):
        SMALL_NETS["cosine"](1, 1, 2)


def test_a_padded_convolution_does_not_see_where_a_digit_lies():
    torch.manual_seed(0)
    options = {"widths": (4,), "pools": (1,), "dropout": 0.0, "batch_norm": True}
    picture = torch.zeros(1, 1, 16, 16)
    # Down to one pixel from the border; beyond it lies what padding adds, more of the same black.
    picture[..., 5:11, 5:11] = torch.rand(6, 6)
    moved = picture.roll((4, 4), (2, 3))
    padded = SMALL_NETS["cnn"](10, 1, 16, padded=True, **options).eval()
    torch.testing.assert_close(padded(moved), padded(picture), atol=1e-5, rtol=0)
    plain = SMALL_NETS["cnn"](10, 1, 16, **options).eval()
    assert (plain(moved) - plain(picture)).abs().max() > 1e-3


def test_a_cnn_needs_one_pooling_per_convolution():
    with pytest.raises(ValueError, match="needs one for each of 3 widths"):
        SMALL_NETS["cnn"](10, 1, 28, pools=(2, 2))

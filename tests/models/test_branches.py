import pytest
import torch
from torch import nn

from hard_fast.models.branches import Branch, branched
from hard_fast.models.taps import Tapped
from hard_fast.models.zoo import NetworkConfig, build_network
from hard_fast.types import Outputs

SIZES = {"num_classes": 4, "in_channels": 3, "image_size": 16}


def small(**options):
    torch.manual_seed(0)
    return branched(**SIZES, options={"widths": [4, 8, 8, 12], "num_blocks": 1}, **options)


def test_published_branches_of_a_resnet18():
    net = branched(num_classes=100, in_channels=3, image_size=32)
    first, _, third = (branch.bottleneck for branch in net.branches.values())
    convs = [m for m in first if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0]) for c in convs] == [
        *((64, 128, 1, 1), (128, 128, 8, 8), (128, 512, 1, 1)),
    ]
    assert third[3].kernel_size == (2, 2) and net.branches["layer2"].bottleneck[3].stride == (4, 4)


def test_a_branch_keeps_the_last_stages_shape():
    branch = Branch(torch.Size((4, 16, 16)), torch.Size((12, 2, 2)), num_classes=5)
    assert branch.bottleneck[:-2](torch.rand(2, 4, 16, 16)).shape == (2, 12, 2, 2)
    logits, feature = branch(torch.rand(2, 4, 16, 16))
    assert logits.shape == (2, 5) and feature.shape == (2, 12)


def test_a_branchs_features_are_the_mean_of_its_map():
    branch = Branch(torch.Size((4, 16, 16)), torch.Size((12, 2, 2)), num_classes=5)
    image = torch.rand(3, 4, 16, 16)
    with torch.no_grad():
        inner = branch.eval().bottleneck[:-2](image)
        assert inner.flatten(2).std(2).max() > 0
        torch.testing.assert_close(branch(image)[1], inner.mean((2, 3)))


def test_training_shows_every_branch_and_evaluation_only_the_answer():
    net, image = small(), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        found = net.train()(image)
    assert isinstance(found, Outputs)
    numbers = (1, 2, 3)
    names = {f"exit{n}" for n in numbers} | {f"exit{n}_feature" for n in numbers} | {"feature"}
    assert found.taps.keys() == names
    torch.testing.assert_close(found.logits_BK, net.trunk.linear(found.taps["feature"]))
    ran = []
    for branch in net.branches.values():
        branch.register_forward_hook(lambda *_: ran.append(1))
    assert isinstance(net.eval()(image), torch.Tensor) and not ran


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_exit_answers_as_the_branch_and_runs_nothing_behind_it(number):
    net, image = small().eval(), torch.rand(2, 3, 16, 16)
    early = small(exit=number).eval()
    early.load_state_dict(net.state_dict())
    ran = []
    for name in ("layer1", "layer2", "layer3", "layer4"):
        stage = dict(early.trunk.named_children())[name]
        stage.register_forward_hook(lambda *_, name=name: ran.append(name))
    x = image
    for name, stage in net.trunk.named_children():
        x = stage(x)
        if name == f"layer{number}":
            break
    torch.testing.assert_close(early(image), net.branches[f"layer{number}"](x)[0])
    assert ran == [f"layer{n}" for n in range(1, number + 1)]


def test_by_name_and_frozen_with_its_statistics_folded():
    name = "python:hard_fast.models.branches:branched"
    options = {"options": {"widths": [4, 8], "num_blocks": 1}, "after": ["layer1"]}
    learning = build_network(NetworkConfig(name=name, options=options), **SIZES)
    learning.eval()
    frozen = build_network(NetworkConfig(name=name, options=options), frozen=True, **SIZES)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.net.trunk.modules())
    out = Tapped(learning)(torch.rand(2, 3, 16, 16))
    assert out.taps == {} and out.logits_BK.shape == (2, 4)


def test_what_cannot_be_is_named():
    with pytest.raises(ValueError, match="after = 'layer9': no such layer"):
        small(after=("layer9",))
    with pytest.raises(ValueError, match="exit = 4: there are 3 branches"):
        small(exit=4)
    with pytest.raises(ValueError, match="trunk = 'resnet18_3x': no small net"):
        branched(**SIZES, trunk="resnet18_3x")
    with pytest.raises(ValueError, match="trunk = 'mlp': must be a sequence"):
        branched(**SIZES, trunk="mlp")
    with pytest.raises(ValueError, match=r"options\.width: 'resnet18_3x3' has no such option"):
        branched(**SIZES, options={"width": [4]})

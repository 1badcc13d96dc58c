"""Checkpointing: less is kept, gradients are the same, and what cannot be is said."""

import pytest
import torch
from torch import Tensor, nn

from hard_fast.models.checkpointing import checkpoint_activations
from hard_fast.models.taps import Tapped
from hard_fast.models.zoo import NetworkConfig, Normalized, build_network, save_weights


def _build(name, checkpointing, frozen=True, taps=(), options=None) -> Normalized:
    torch.manual_seed(0)
    config = NetworkConfig(name=name, checkpointing=checkpointing, options=options or {})
    sizes = {"num_classes": 5, "in_channels": 3, "image_size": 32}
    return build_network(config, frozen=frozen, taps=taps, **sizes)


def _kept_and_gradient(network: nn.Module, forward: nn.Module) -> tuple[int, Tensor]:
    """Bytes kept for the backward pass, weights aside, and the image's gradient."""
    image = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    image.requires_grad_()
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    # Holding a tensor keeps its address from being given to another.
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = forward(image).logits_BK.float().square().sum()
    (gradient,) = torch.autograd.grad(loss, image)
    sizes = [t.untyped_storage().nbytes() for at, t in kept.items() if at not in weights]
    return sum(sizes), gradient


@pytest.mark.parametrize(
    ("name", "options", "most"),
    [
        ("test_vit", {"depth": 3}, 0.4),
        # A stem is not computed again, and in so small a net it is much of the whole.
        ("test_resnet", {"layers": [3, 3, 3, 3]}, 0.8),
    ],
)
def test_keeps_less_for_the_same_gradient(name, options, most):
    plain, network = (Tapped(_build(name, how, options=options)) for how in (False, True))
    num_bytes, expected = _kept_and_gradient(plain, plain)
    num_fewer, found = _kept_and_gradient(network, network)
    assert num_fewer < most * num_bytes
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    assert found.abs().max() > 0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_vit", {"depth": 1}),
        pytest.param("test_resnet", {"layers": [2, 1, 1, 1]}, marks=pytest.mark.slow),
    ],
)
def test_compiles_to_one_graph(name, options):
    torch._dynamo.reset()
    plain, network = (Tapped(_build(name, how, options=options)) for how in (False, True))
    compiled = torch.compile(network, fullgraph=True, dynamic=False, backend="aot_eager")
    num_bytes, expected = _kept_and_gradient(plain, plain)
    num_fewer, found = _kept_and_gradient(network, compiled)
    assert num_fewer < num_bytes
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max())
    with torch.compiler.set_stance("fail_on_recompile"):
        _kept_and_gradient(network, compiled)


def test_a_student_without_batchnorm_learns_the_same():
    image, gradients = torch.rand(2, 3, 32, 32), []
    for checkpointing in (False, True):
        network = _build("test_vit", checkpointing, frozen=False).train()
        network(image).square().sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


def test_weights_on_disk_do_not_tell(tmp_path):
    files = [
        save_weights(_build("test_vit", how, frozen=False), tmp_path / f"{how}.safetensors")
        for how in (False, True)
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_networks_that_cannot_are_named():
    with pytest.raises(ValueError, match="checkpointing = true: 'mlp' cannot compute its activ"):
        _build("mlp", True)
    from timm.models.vgg import VGG

    vgg = VGG((4,), num_classes=3, mlp_ratio=0.01)
    with pytest.raises(ValueError, match="checkpointing = true: 'vgg' cannot compute its activ"):
        checkpoint_activations(vgg, "vgg", is_frozen=True)


def test_batchnorm_that_learns_is_refused():
    with pytest.raises(ValueError, match="'test_resnet' learns and has BatchNorm, whose statistic"):
        _build("test_resnet", True, frozen=False)


def test_inner_outputs_are_refused():
    with pytest.raises(ValueError, match=r"inner outputs of 'test_resnet' \(layer1\.0, bn1\)"):
        _build("test_resnet", True, taps=("layer1.0", "bn1"))

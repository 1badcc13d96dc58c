"""Signs and their gradients by hand, BNext's sizes, and runs that learn, stop and go on."""

import shutil
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hard_fast.augment import build_augmentor
from hard_fast.augment.affine import AffineConfig
from hard_fast.config import RunConfig
from hard_fast.export.formats import OnnxNetwork, capture, open_pt2, write_onnx, write_pt2
from hard_fast.export.parity import FP32_TOLERANCE, NUM_IMAGES, compare_outputs
from hard_fast.models.binary import BNEXTS, BinaryConv2d, binarize, bnext, packed_bytes
from hard_fast.models.options import typed_options
from hard_fast.models.taps import Tapped
from hard_fast.models.zoo import NetworkConfig, build_network
from hard_fast.objectives import build_objective
from hard_fast.objectives.hard import HardConfig
from hard_fast.optim.build import OptimConfig, build_optimizer
from hard_fast.runtime.configfile import Source, parse
from hard_fast.runtime.dist import World
from hard_fast.step import DistillStep
from hard_fast.trainer import Trainer
from hard_fast.types import Batch, Phase

SMALL = {"widths": (8, 16), "depths": (2, 1)}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def small(binary=True, num_classes=3, channels=1, size=8, **options):
    return bnext(num_classes, channels, size, **{**SMALL, **options}, binary=binary)


def step_of(objective):
    """HARD's step on 8 px with a binary student and a teacher of real numbers."""
    teacher = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    maker = build_augmentor(AffineConfig(std=0.1), torch.Size([1, 8, 8]), is_picture=True)
    return DistillStep(maker, Tapped(small()), Tapped(teacher), build_objective(objective), 3)


def batch_and_noise(step):
    image = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    noise = step.augmentor.draw_noise(image.shape, torch.Generator().manual_seed(1))
    return Batch(image, torch.tensor([0, 1, 2, -1])), noise


@pytest.mark.parametrize(
    ("estimator", "slopes"),
    [("clip", [0, 1, 1, 1, 1, 1, 1, 0]), ("polynomial", [0, 0, 1, 2, 1.5, 0.5, 0, 0])],
)
def test_signs_and_what_passes_of_their_gradient_by_hand(estimator, slopes):
    x = torch.tensor([-2.0, -1.25, -0.5, 0.0, 0.25, 0.75, 1.25, 1.75], requires_grad=True)
    sign = binarize(x, estimator)
    assert sign.tolist() == [-1, -1, -1, 1, 1, 1, 1, 1]
    assert torch.equal(binarize(x.detach(), estimator), sign)
    (3 * sign).sum().backward()
    assert x.grad.tolist() == [3 * slope for slope in slopes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_sign_is_exact_in_every_precision(dtype):
    x = torch.randn(1000).to(dtype).requires_grad_()
    sign = binarize(x)
    assert sign.dtype == dtype and set(sign.tolist()) == {-1.0, 1.0}


def test_a_binary_convolution_and_its_gradients_by_hand():
    conv = BinaryConv2d(2, 1, 1)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([0.2, -0.4]).view(1, 2, 1, 1))
        conv.shift.copy_(torch.tensor([0.0, 0.3]))
    x = torch.tensor([0.5, -0.1, -3.0, -0.4]).view(2, 2, 1, 1).requires_grad_()
    y = conv(x)
    # Signs (1, 1) and (-1, -1) with (1, -1), times the mean of 0.2 and 0.4.
    torch.testing.assert_close(y.flatten(), torch.tensor([0.3 * (1 - 1), 0.3 * (-1 + 1)]))
    (y.flatten() * torch.tensor([1.0, 10.0])).sum().backward()
    # -3 lies where nothing passes.
    found = {"x": x.grad.flatten(), "shift": conv.shift.grad, "weight": conv.weight.grad.flatten()}
    wanted = {"x": [0.3, -0.3, 0.0, -3.0], "shift": [0.3, -3.3], "weight": [0.3 - 3.0] * 2}
    for key, values in wanted.items():
        torch.testing.assert_close(found[key], torch.tensor(values), msg=key)


def test_a_border_is_zero_and_no_sign():
    conv = BinaryConv2d(1, 1, 3)
    nn.init.constant_(conv.weight, 0.5)
    y = conv(torch.ones(1, 1, 3, 3))[0, 0]
    torch.testing.assert_close(y, 0.5 * torch.tensor([[4.0, 6, 4], [6, 9, 6], [4, 6, 4]]))


def test_an_attentive_unit_is_the_formula():
    net = small(size=16).train()
    unit = net.stage1[1].spatial
    assert unit.is_attentive and not net.stage1[0].spatial.is_attentive
    nn.init.normal_(unit.mix)
    x = torch.randn(3, 8, 6, 6)
    y = F.batch_norm(unit.conv(x), None, None, training=True)
    y = torch.where(y > 0, y, 0.25 * y)
    share = (1 / (1 + torch.exp(-unit.mix)))[:, None, None]
    mean = (share * x + (1 - share) * y).mean((2, 3), keepdim=True)
    y = y * torch.sigmoid(unit.weigh[3](unit.weigh[1](mean).relu()))
    shortcut = torch.where(x > 0, x, 0.25 * x)
    expected = F.batch_norm(y * shortcut, None, None, training=True) + shortcut
    torch.testing.assert_close(unit(x), expected)


def test_stages_of_tiny_and_every_size_builds():
    with torch.device("meta"):
        net = BNEXTS["bnext_tiny"](1000, 3, 224)
        sides = {}
        for name in ("stem", "stage1", "stage2", "stage5"):
            net.get_submodule(name).register_forward_hook(
                lambda m, args, out, name=name: sides.update({name: tuple(out.shape[1:])})
            )
        net(torch.zeros(2, 3, 224, 224))
        depths = {name: [len(s) for n, s in build(10, 3, 32).named_children() if "stage" in n]
                  for name, build in BNEXTS.items()}  # fmt: skip
    assert sides == {
        "stem": (32, 112, 112),
        "stage1": (64, 112, 112),
        "stage2": (128, 56, 56),
        "stage5": (1024, 7, 7),
    }
    assert depths["bnext_tiny"] == depths["bnext_small"] == [1, 2, 2, 6, 2]
    assert depths["bnext_middle"] == [1, 4, 4, 8, 4] and depths["bnext_large"] == [1, 4, 4, 16, 4]


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32), (3, 225)])
def test_pictures_of_every_size(channels, size):
    net = small(channels=channels, size=size)
    assert net.stem.stride == ((2, 2) if size > 64 else (1, 1))
    image = torch.rand(2, channels, size, size).to(memory_format=torch.channels_last)
    assert net.to(memory_format=torch.channels_last)(image).shape == (2, 3)
    deep = bnext(3, channels, size, widths=(4, 4, 4, 4, 4), depths=1)
    assert deep(image).isfinite().all()


def test_the_network_of_real_numbers_has_the_same_shape():
    ours, real = small(), small(binary=False)
    convs = [m for m in ours.modules() if isinstance(m, BinaryConv2d)]
    shifts = sum(conv.shift.numel() for conv in convs)
    count = sum(p.numel() for p in ours.parameters())
    assert count == sum(p.numel() for p in real.parameters()) + shifts
    # First 4 to 8 in two 1x1 units, then 8, then 8 to 16.
    assert len(convs) == 3 + 2 + 3
    assert not any(isinstance(m, BinaryConv2d) for m in real.modules())
    assert packed_bytes(real) == sum(t.nbytes for t in real.state_dict().values())
    bits = sum(31 * c.weight.numel() - 32 * len(c.weight) for c in convs)
    assert packed_bytes(ours) == sum(t.nbytes for t in ours.state_dict().values()) - bits // 8


@pytest.mark.parametrize("phase", [Phase.STUDENT, Phase.AUGMENTOR])
def test_gradients_reach_the_learner_and_every_parameter_of_it(phase):
    step = step_of(HardConfig())
    step.learn(phase)
    step(phase, *batch_and_noise(step)).loss.backward()
    for module, learns in (
        (step.student, phase is Phase.STUDENT),
        (step.augmentor, phase is Phase.AUGMENTOR),
        (step.teacher, False),
    ):
        assert all((p.grad is not None) == learns for p in module.parameters())
    if phase is Phase.STUDENT:
        latent = [m for m in step.student.modules() if isinstance(m, BinaryConv2d)]
        assert all(m.weight.grad.any() and m.shift.grad.any() for m in latent)


def test_the_augmentors_gradient_passes_the_students_signs():
    """With no weight on the teacher's change, all that differs is the student."""
    step = step_of(HardConfig(lambda_teacher=0.0))
    step.learn(Phase.AUGMENTOR)
    batch, noise = batch_and_noise(step)

    def gradient():
        step(Phase.AUGMENTOR, batch, noise).loss.backward()
        found = torch.cat([p.grad.flatten() for p in step.augmentor.parameters()])
        step.augmentor.zero_grad()
        return found

    whole = gradient()
    original = F.conv2d

    def cut(x, *args):
        # Only convolutions of signs: what they hand back is severed.
        return original(x.detach() if set(x.unique().tolist()) == {-1, 1} else x, *args)

    F.conv2d = cut
    try:
        without = gradient()
    finally:
        F.conv2d = original
    assert whole.isfinite().all() and (whole - without).norm() > 0.01 * whole.norm() > 0


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
@pytest.mark.parametrize("estimator", ["clip", "polynomial"])
def test_compiled_is_eager(estimator, amp):
    net = small(estimator=estimator)
    net.stage1[0].spatial.conv.shift.data.normal_()
    image = torch.rand(3, 1, 8, 8, requires_grad=True)
    found = []
    for function in (net, torch.compile(net, backend="aot_eager", fullgraph=True, dynamic=False)):
        with torch.autocast("cpu", amp) if amp else nullcontext():
            logits = function(image)
        loss = logits.float().square().sum()
        grads = torch.autograd.grad(loss, [image, *net.parameters()])
        found.append((logits, *grads))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert all(grad.isfinite().all() for grad in found[0])


def test_weight_decay_falls_on_what_lies_behind_the_signs_and_turns_none():
    net = small()
    config = OptimConfig(kind="adamw", lr=0.1, weight_decay=0.5)
    optimizer = build_optimizer(config, net.named_parameters())
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    conv = net.stage1[0].spatial.conv
    assert id(conv.weight) in decayed and id(conv.shift) not in decayed
    before = conv.weight.detach().clone()
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(conv.weight.detach(), 0.95 * before)
    assert torch.equal(binarize(conv.weight.detach()), binarize(before))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"depths": [1, 2]}, "depths = [1, 2]: needs one for each of 5 widths"),
        ({"widths": [7, 14], "depths": 1}, "widths = [7, 14]: the first must be even, each other"),
        ({"widths": [8, 12], "depths": 1}, "widths = [8, 12]: the first must be even, each other"),
        ({"estimator": "tanh"}, "options.estimator = 'tanh': input should be 'clip' or"),
        ({"stem_stride": 3}, "options.stem_stride = 3: input should be 1 or 2"),
        ({"width": [8]}, "options.width: 'bnext' has no such option; did you mean 'widths'"),
    ],
)
def test_a_wrong_option_ends_in_one_line(options, said):
    with pytest.raises(ValueError) as caught:
        config = NetworkConfig(name="bnext", options=options)
        build_network(config, num_classes=3, in_channels=1, image_size=8)
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)
    assert typed_options("bnext", bnext, {"depths": 2}) == {"depths": 2}


def test_a_frozen_binary_network_answers_as_it_did_and_hands_its_gradient_on():
    made = []
    for is_frozen in (False, True):
        torch.manual_seed(0)
        config = NetworkConfig(name="bnext", options={"widths": [8, 16], "depths": 1})
        sizes = {"num_classes": 3, "in_channels": 1, "image_size": 8}
        made.append(build_network(config, **sizes, frozen=is_frozen).eval())
    image = torch.rand(2, 1, 8, 8, requires_grad=True)
    logits = made[1](image)
    torch.testing.assert_close(logits, made[0](image), atol=1e-4, rtol=1e-4)
    assert not any(p.requires_grad for p in made[1].parameters())
    logits.square().sum().backward()
    assert image.grad.isfinite().all() and image.grad.any()


def test_a_hard_run_with_a_binary_student_resumes_exactly(tiny_run, tmp_path):
    tree = tiny_run | {"average": {"kind": "ema", "decay": 0.9}, "optim": {"lr": 0.02}}
    tree["student"] = {"name": "bnext", "options": {"widths": [4, 8], "depths": 1}}

    def build(name):
        changed = tree | {"run_dir": str(tmp_path / name)}
        return Trainer(parse(RunConfig, Source(changed, {})), World(0, 1, torch.device("cpu")))

    whole = build("whole")
    first = {name: p.detach().clone() for name, p in whole.net.student.named_parameters()}
    results = whole.run()
    assert results["phases"].keys() == {"student", "augmentor"}
    for name, parameter in whole.net.student.named_parameters():
        is_binary = name.endswith(("conv.weight", "conv.shift"))
        assert not (is_binary and torch.equal(first[name], parameter)), name
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for path in (tmp_path / "cut" / "checkpoints").glob("step_000000012*"):
        path.unlink()
    resumed = build("cut")
    assert resumed.step == 9 and resumed.run()["metrics"] == results["metrics"]
    for name, value in resumed.net.state_dict().items():
        assert name.startswith("drawn.") or torch.equal(value, whole.net.state_dict()[name]), name


@pytest.mark.parametrize("name", ["onnx", "pt2"])
def test_a_binary_network_ships(name, tmp_path):
    net = small().train()
    for _ in range(5):
        net(torch.rand(8, 1, 8, 8))
    net.eval().requires_grad_(False)
    path = tmp_path / f"net.{name}"
    write = write_onnx if name == "onnx" else write_pt2
    write(capture(net, (1, 8, 8)), path, "{}")
    opened = OnnxNetwork(path, 1) if name == "onnx" else open_pt2(path)
    images = torch.rand(NUM_IMAGES, 1, 8, 8)
    found = compare_outputs(opened, net, images, FP32_TOLERANCE)
    assert found["same_class"] == 1.0

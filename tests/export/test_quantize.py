import copy

import onnx
import pytest
import torch

from hard_fast.data.arrays import Arrays
from hard_fast.export.formats import Program, capture, write_onnx
from hard_fast.export.quantize import (
    Int8Config,
    Lessons,
    build_lessons,
    calibrate,
    fine_tune,
    training_images,
)
from hard_fast.models.taps import Tapped
from hard_fast.train import load_config

SHAPE = (1, 8, 8)


@pytest.fixture
def train():
    generator = torch.Generator().manual_seed(0)
    light = torch.randint(192, (96, 1, 1, 1), generator=generator)
    image = (light + torch.randint(64, (96, *SHAPE), generator=generator)).byte()
    return Arrays(image, torch.randint(3, (96,), generator=generator))


def _apart(program, net, image):
    return (Program(program.module())(image).logits_BK - net(image)).abs().max().item()


def _dtypes(program):
    """Of the weights that have more than one dimension."""
    tensors = program.module().state_dict().values()
    return {tensor.dtype for tensor in tensors if tensor.numel() > 4 and tensor.ndim > 1}


def test_calibration_gives_int8_weights_and_nearly_the_same_outputs(small_net, train, tmp_path):
    image = torch.cat(list(training_images(train, 64, seed=1)))
    made = calibrate(capture(small_net, SHAPE), train, SHAPE, Int8Config(num_images=64))
    spread = small_net(image).std().item()
    assert 0 < _apart(made, small_net, image) < 0.2 * spread
    assert _dtypes(made) == {torch.int8}
    model = onnx.load(write_onnx(made, tmp_path / "net.onnx", "{}"))
    stored = {tuple(t.dims): t.data_type for t in model.graph.initializer if len(t.dims) > 1}
    assert stored[(4, 4, 3, 3)] == stored[(3, 4)] == onnx.TensorProto.INT8


def test_fine_tuning_follows_the_teacher_and_leaves_the_student_alone(small_net, train):
    teacher = copy.deepcopy(small_net)
    with torch.no_grad():
        teacher.net.head.weight.mul_(3.0)
    before = copy.deepcopy(small_net.state_dict())
    config = Int8Config(steps=60, batch_size=16, lr=0.02, temperature=1.0)
    lessons = build_lessons(train, 3, Tapped(teacher), config, None)
    assert isinstance(lessons, Lessons) and lessons.bank is None
    made, losses = fine_tune(capture(small_net, SHAPE), lessons, SHAPE, config)
    assert len(losses) == 60 and sum(losses[-5:]) < 0.5 * sum(losses[:5])
    after = small_net.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in small_net.parameters())
    assert _dtypes(made) == {torch.int8}
    # What was written out is what was trained, not the student it began as.
    image = torch.cat(list(training_images(train, 64, seed=1)))
    learned, wanted = made.module()(image).log_softmax(1), teacher(image).log_softmax(1)
    begun = small_net(image).log_softmax(1)
    assert (learned - wanted).square().mean() < 0.5 * (begun - wanted).square().mean()


def test_the_augmentors_of_a_run_make_the_inputs(finished_run, train):
    run = load_config(str(finished_run / "config.toml"), [])
    lessons = build_lessons(train, 10, torch.nn.Identity(), Int8Config(), run)
    num = len(list((finished_run / "bank").glob("entry_*.safetensors")))
    assert type(lessons.augmentor).__name__ == "Affine" and len(lessons.bank) == num > 0
    assert type(lessons.objective).__name__ == "Hard"
    (finished_run / "bank/entry_000000.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="cannot be read"):
        build_lessons(train, 10, torch.nn.Identity(), Int8Config(), run)


def test_images_come_in_a_fixed_order_as_many_as_asked_for(train):
    once, again = (torch.cat(list(training_images(train, 70, seed=3))) for _ in range(2))
    assert once.shape == (70, *SHAPE) and torch.equal(once, again)
    assert once.min() >= 0.0 and once.max() <= 1.0
    assert sum(map(len, training_images(train, 1000, seed=3))) == 96


def test_a_network_without_layers_cannot_be_quantised(train):
    program = capture(torch.nn.Flatten().eval(), SHAPE)
    with pytest.raises(ValueError, match="int8: the network has no convolution or linear layer"):
        calibrate(program, train, SHAPE, Int8Config())

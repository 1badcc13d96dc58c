import io

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from hard_fast.optim.averaging import AverageConfig, WeightAverage, check_tail
from hard_fast.optim.build import OptimConfig, build_optimizer
from hard_fast.optim.schedule import ConstantRateConfig, SwaRateConfig, build_rate


class Net(nn.Module):
    """Weights tied under two names, BatchNorm's buffers, and one that no state dict holds."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("scratch", torch.zeros(1), persistent=False)
        self.to(memory_format=torch.channels_last)

    def forward(self, image):
        return self.second(self.first(self.norm(self.conv(image)).mean(dim=(2, 3))))


def train(net, optimizer, average, steps):
    for step in steps:
        image = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        net(image).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(step)


def make(decay=0.9, kind="sgd"):
    torch.manual_seed(0)
    net = Net()
    average = WeightAverage(net, AverageConfig(decay=decay))
    # Building lion moves the parameters, after the average was told of them.
    return net, average, build_optimizer(OptimConfig(kind=kind, lr=0.1), net.named_parameters())


def values(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_average_by_hand():
    # The decays are 1/10, 2/11, and then 0.2, which is less than 3/12 of the warm-up.
    net = nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(0.0)
    average = WeightAverage(net, AverageConfig(decay=0.2))
    expected = 0.0
    for weight, decay in ((1.0, 1 / 10), (2.0, 2 / 11), (4.0, 0.2), (8.0, 0.2)):
        net.weight.data.fill_(weight)
        average.update(0)
        expected = decay * expected + (1 - decay) * weight
        with average.applied():
            assert net.weight.item() == pytest.approx(expected, rel=1e-6)
        assert net.weight.item() == weight


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # Steps 0 to 7 have the weights 1, 2, 4 ... 128; an epoch has two.
        ({"kind": "swa"}, 255 / 8),
        ({"kind": "swa", "start": 0.25}, (4 + 8 + 16 + 32 + 64 + 128) / 6),
        ({"kind": "swa", "start": 0.5, "every_epochs": 1.0}, (32 + 128) / 2),
        # After the first weights, decays of 2/11 and 3/12.
        ({"kind": "ema", "start": 0.7}, 0.25 * (2 / 11 * 32 + 9 / 11 * 64) + 0.75 * 128),
    ],
)
def test_the_tail_of_a_run_by_hand(changes, expected):
    net = nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(-1000.0)
    length = {"num_steps": 8, "num_steps_per_epoch": 2}
    average = WeightAverage(net, AverageConfig(**changes), **length)
    for step in range(8):
        net.weight.data.fill_(2.0**step)
        average.update(step)
        if step == 0 and "start" in changes:
            # Nothing is averaged yet.
            with average.applied():
                assert net.weight.item() == 1.0
    with average.applied():
        assert net.weight.item() == pytest.approx(expected)


def test_a_decay_is_not_for_equal_weights():
    with pytest.raises(ValidationError, match="weighs all alike"):
        AverageConfig(kind="swa", decay=0.9)


def test_default_decay_is_reached_and_bounded():
    assert AverageConfig().decay == 0.9998
    for decay in (0.0, 1.0, -0.1):
        with pytest.raises(ValidationError):
            AverageConfig(decay=decay)


@pytest.mark.parametrize("kind", ["sgd", "lion"])
def test_buffers_are_averaged_and_counters_copied(kind):
    net, average, optimizer = make(kind=kind)
    start = values(net)
    train(net, optimizer, average, range(1))
    first = values(net)
    train(net, optimizer, average, range(1, 2))
    second = values(net)
    with average.applied():
        averaged = values(net)
    for name, value in averaged.items():
        if value.is_floating_point():
            once = start[name].lerp(first[name], 0.9)
            torch.testing.assert_close(value, once.lerp(second[name], 9 / 11), msg=name)
            assert not torch.equal(value, second[name]), name
    assert averaged["norm.num_batches_tracked"] == 2
    assert torch.equal(averaged["first.weight"], averaged["second.weight"])
    assert len(average.state_dict()["averages"]) == len(averaged) - 1


def test_swapping_is_exact_and_keeps_storage():
    net, average, optimizer = make()
    train(net, optimizer, average, range(3))
    tensors = [*net.parameters(), *net.buffers()]
    places = [(id(t), t.data_ptr(), t.stride()) for t in tensors]
    before, averages = (
        values(net),
        {k: v.clone() for k, v in average.state_dict()["averages"].items()},
    )
    for _ in range(2):
        with average.applied():
            held = values(net)
            assert [(id(t), t.data_ptr(), t.stride()) for t in tensors] == places
            assert torch.is_grad_enabled()
            # Whatever happens to the weights meanwhile is undone.
            nn.init.zeros_(net.conv.weight)
        assert_same(values(net), before)
        assert_same({name: held[name] for name in averages}, averages)
        assert_same(average.state_dict()["averages"], averages)


def test_weights_come_back_after_an_error():
    net, average, optimizer = make()
    train(net, optimizer, average, range(2))
    before = values(net)
    with pytest.raises(RuntimeError, match="boom"), average.applied():
        assert not torch.equal(net.conv.weight, before["conv.weight"])
        raise RuntimeError("boom")
    assert_same(values(net), before)
    average.update(0)


def test_averages_are_neither_averaged_nor_swapped_twice():
    net, average, _ = make()
    with average.applied():
        with pytest.raises(AssertionError, match="averages themselves"):
            average.update(0)
        with pytest.raises(AssertionError, match="applied already"), average.applied():
            pass


def test_resumed_average_is_bitwise_equal():
    net, average, optimizer = make()
    train(net, optimizer, average, range(3))
    file = io.BytesIO()
    parts = {"net": net, "average": average, "optimizer": optimizer}
    torch.save({name: part.state_dict() for name, part in parts.items()}, file)
    train(net, optimizer, average, range(3, 5))

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again, resumed, stepper = make()
    nn.init.ones_(again.conv.weight)
    for name, part in {"net": again, "average": resumed, "optimizer": stepper}.items():
        part.load_state_dict(saved[name])
    train(again, stepper, resumed, range(3, 5))
    with average.applied(), resumed.applied():
        assert_same(values(net), values(again))
    average.update(0)
    # What was saved is a copy, not the averages that move on.
    assert not torch.equal(
        saved["average"]["averages"]["conv.weight"],
        resumed.state_dict()["averages"]["conv.weight"],
    )


def test_averages_of_another_network_are_refused():
    average = WeightAverage(nn.Linear(2, 2), AverageConfig())
    for other in (nn.Linear(2, 3), nn.Linear(2, 2, bias=False)):
        saved = WeightAverage(other, AverageConfig()).state_dict()
        with pytest.raises(ValueError, match="another network's"):
            average.load_state_dict(saved)


@pytest.mark.gpu
def test_updating_does_not_wait_for_the_device():
    net = Net().cuda()
    average = WeightAverage(net, AverageConfig())
    average.update(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        average.update(0)
        with average.applied():
            pass
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_averages_of_given_tensors():
    net = Net()
    average = WeightAverage(net, AverageConfig())
    averages = average.state_dict()["averages"]
    found = average.of([net.norm.running_var, net.norm.running_mean])
    assert found[0] is averages["norm.running_var"] and found[1] is averages["norm.running_mean"]


def test_the_ends_of_a_rates_cycles_are_what_is_averaged():
    config = SwaRateConfig(start=0.5, high=0.5, low=0.1, cycle_epochs=1.5)
    average = AverageConfig(kind="swa", start=0.5, every_epochs=1.5)
    check_tail(average, config)
    length = {"num_steps": 14, "num_steps_per_epoch": 2}
    rate, weight = build_rate(config, **length), nn.Linear(1, 1, bias=False)
    kept = WeightAverage(weight, average, **length)
    lowest = []
    for step in range(14):
        with torch.no_grad():
            weight.weight.fill_(step)
        before = kept.state_dict()["num_updates"]
        kept.update(step)
        if kept.state_dict()["num_updates"] > before:
            lowest.append(rate.factor(step))
    assert lowest == pytest.approx([0.1, 0.1])
    with kept.applied():
        assert weight.weight.item() == (9 + 12) / 2


@pytest.mark.parametrize(
    ("average", "low", "words"),
    [
        (None, None, "average.kind = 'swa'"),
        ({"kind": "ema"}, None, "average.kind = 'swa'"),
        ({"kind": "swa", "start": 0.25}, None, "average.start = 0.5"),
        ({"kind": "swa", "start": 0.5, "every_epochs": 2}, 0.1, "cycle_epochs = 1"),
    ],
)
def test_a_rate_for_swa_without_its_average_is_one_line(average, low, words):
    given = average and AverageConfig(**average)
    with pytest.raises(ValueError, match=words):
        check_tail(given, SwaRateConfig(low=low))
    check_tail(given, ConstantRateConfig())

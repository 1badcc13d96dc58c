import io

import pytest
import torch
from bitsandbytes.optim import AdamW8bit, Lion8bit
from lion_pytorch import Lion
from torch import nn

from hard_fast.optim.eight_bit import eight_bit_rules
from hard_fast.optim.flat import FlatOptimizer, lion_rule

CPU = torch.device("cpu")
# Sizes of whole blocks, of blocks and a rest, and below 4096; a matrix with odd sides, a scalar.
SHAPES = [(32, 32, 3, 3), (64,), (67, 131), (67,), (16, 16, 1, 1), (64, 64), (), (131, 67), (7, 3)]
SETTINGS = {"lr": 0.01, "betas": (0.9, 0.98)}
KINDS = ("lion", "lion8bit", "adamw8bit")


def make_parameters(shapes=SHAPES, memory_format=torch.contiguous_format):
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=generator) for shape in shapes]
    return [
        nn.Parameter(start.contiguous(memory_format=memory_format) if start.ndim == 4 else start)
        for start in starts
    ]


def groups_of(parameters):
    """Weight decay on matrices only, the others after them, as the networks' own groups."""
    large = [p for p in parameters if p.ndim >= 2]
    rest = [p for p in parameters if p.ndim < 2]
    pairs = ((large, 0.1), (rest, 0.0))
    return [{"params": ps, "weight_decay": decay} for ps, decay in pairs if ps]


def make(kind, parameters, is_joined=None):
    rules = {
        "lion": lambda: (lion_rule(),),
        "lion8bit": lambda: eight_bit_rules("lion", CPU),
        "adamw8bit": lambda: eight_bit_rules("adam", CPU),
    }[kind]()
    return FlatOptimizer(groups_of(parameters), *rules, is_joined=is_joined, **SETTINGS, eps=1e-8)


def make_per_tensor(kind, parameters):
    build = {"lion": Lion, "lion8bit": Lion8bit, "adamw8bit": AdamW8bit}[kind]
    return build(groups_of(parameters), **SETTINGS)


def take_steps(optimizer, parameters, steps, idle=lambda step, number: False):
    for step in steps:
        generator = torch.Generator().manual_seed(100 + step)
        for number, parameter in enumerate(parameters):
            grad = torch.randn(parameter.shape, generator=generator) * 10.0 ** -(number % 4)
            parameter.grad = None if idle(step, number) else grad
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (step + 1)
        optimizer.step()


def assert_equal(first, second):
    for number, (one, other) in enumerate(zip(first, second, strict=True)):
        assert torch.equal(one, other), (number, one.shape)


# Tensors that rest at some of the steps, so that they and their neighbours count different steps.
RESTS = {
    "all learn": lambda step, number: False,
    "some rest": lambda step, number: number in (0, 3, 5) and step in (0, 2),
}


@pytest.mark.parametrize("rests", RESTS)
@pytest.mark.parametrize("is_joined", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_equal_those_per_tensor_bit_for_bit(kind, is_joined, rests):
    ours, theirs = make_parameters(), make_parameters()
    take_steps(make(kind, ours, is_joined), ours, range(4), RESTS[rests])
    take_steps(make_per_tensor(kind, theirs), theirs, range(4), RESTS[rests])
    assert_equal(ours, theirs)
    assert not torch.equal(ours[0], make_parameters()[0])


@pytest.mark.parametrize("is_joined", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_parameter_without_gradient_is_left_untouched(kind, is_joined):
    parameters = make_parameters()
    optimizer = make(kind, parameters, is_joined)
    take_steps(optimizer, parameters, range(1))
    rest, momentum = parameters[2], next(iter(optimizer.state[parameters[2]].keys() - {"step"}))
    before = rest.detach().clone(), optimizer.state[rest][momentum].clone()
    take_steps(optimizer, parameters, range(1, 3), lambda step, number: number == 2)
    assert_equal(before, (rest, optimizer.state[rest][momentum]))
    assert optimizer.state[rest]["step"] == 1 and optimizer.state[parameters[0]]["step"] == 3


@pytest.mark.parametrize("is_joined", [True, False])
def test_memory_order_changes_nothing_for_full_precision(is_joined):
    plain, last = make_parameters(), make_parameters(memory_format=torch.channels_last)
    for parameters in (plain, last):
        # Gradients are contiguous in both, so that for the second they lie otherwise.
        take_steps(make("lion", parameters, is_joined), parameters, range(3))
    assert_equal(plain, last)
    assert last[0].stride() != plain[0].stride()


@pytest.mark.parametrize("is_joined", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_storage_and_strides_stay(kind, is_joined):
    parameters = make_parameters(memory_format=torch.channels_last)
    strides = [p.stride() for p in parameters]
    optimizer = make(kind, parameters, is_joined)
    pointers = [p.data_ptr() for p in parameters]
    take_steps(optimizer, parameters, range(2))
    assert [p.stride() for p in parameters] == strides
    assert [p.data_ptr() for p in parameters] == pointers
    assert all(pointer % 16 == 0 for pointer in pointers)


def test_a_gradient_of_one_number_repeated_is_read_right():
    for is_joined in (True, False):
        parameter = nn.Parameter(torch.zeros(5))
        optimizer = make("lion8bit", [parameter], is_joined)
        parameter.grad = torch.ones(()).expand(5)
        optimizer.step()
        torch.testing.assert_close(parameter.detach(), torch.full((5,), -0.01))


@pytest.mark.parametrize("is_joined", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_state_continues_bit_for_bit(kind, is_joined):
    parameters = make_parameters(memory_format=torch.channels_last)
    optimizer = make(kind, parameters, is_joined)
    take_steps(optimizer, parameters, range(3), RESTS["some rest"])
    file = io.BytesIO()
    torch.save({"weights": parameters, "optimizer": optimizer.state_dict()}, file)
    take_steps(optimizer, parameters, range(3, 5))

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = [nn.Parameter(p.detach().clone()) for p in saved["weights"]]
    resumed = make(kind, again, is_joined)
    pointers = [p.data_ptr() for p in again]
    resumed.load_state_dict(saved["optimizer"])
    take_steps(resumed, again, range(3, 5))
    assert_equal(parameters, again)
    assert [p.data_ptr() for p in again] == pointers
    assert not torch.equal(parameters[0], saved["weights"][0])


def test_a_tensor_that_never_learned_has_no_state_to_save_or_load():
    parameters = make_parameters([(64, 64), (8,)])
    optimizer = make("lion8bit", parameters)
    take_steps(optimizer, parameters, range(1), lambda step, number: number == 1)
    saved = optimizer.state_dict()
    assert list(saved["state"]) == [0]
    resumed = make("lion8bit", parameters)
    resumed.load_state_dict(saved)
    assert list(resumed.state_dict()["state"]) == [0]


@pytest.mark.parametrize("kind", KINDS)
def test_cleared_state_starts_anew(kind):
    parameters = make_parameters()
    optimizer = make(kind, parameters)
    take_steps(optimizer, parameters, range(2))
    optimizer.state.clear()
    fresh = [nn.Parameter(p.detach().clone()) for p in parameters]
    for some, stepper in ((parameters, optimizer), (fresh, make(kind, fresh))):
        take_steps(stepper, some, range(2, 4))
    assert_equal(parameters, fresh)


@pytest.mark.parametrize("shapes", [[(64, 64)], [(64,), (3, 3)], [(64,)]])
@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_one_kind_of_tensor(kind, shapes):
    ours, theirs = make_parameters(shapes), make_parameters(shapes)
    take_steps(make(kind, ours), ours, range(2))
    take_steps(make_per_tensor(kind, theirs), theirs, range(2))
    assert_equal(ours, theirs)


def test_groups_have_their_own_rates_and_may_come_later():
    parameters = make_parameters([(2, 2), (2, 2)])
    optimizer = FlatOptimizer([{"params": parameters[:1]}], lion_rule(), **SETTINGS, weight_decay=0)
    optimizer.add_param_group({"params": parameters[1:], "lr": 0.5})
    before = [p.detach().clone() for p in parameters]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for parameter, start, lr in zip(parameters, before, (0.01, 0.5), strict=True):
        torch.testing.assert_close(start - parameter, torch.full((2, 2), lr))


def test_resnet18_keeps_little_more_than_a_byte_per_weight():
    import timm

    network = timm.create_model("resnet18").to(memory_format=torch.channels_last)
    optimizer = make("lion8bit", list(network.parameters()))
    num_weights = sum(p.numel() for p in network.parameters())
    assert 1.0 < optimizer.num_state_bytes / num_weights <= 1.1
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in network.named_parameters():
        expected = torch.uint8 if parameter.ndim >= 2 else torch.float32
        assert optimizer.state[parameter]["state1"].dtype == expected, name
    num_bytes = sum(
        value.nbytes
        for state in optimizer.state_dict()["state"].values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
    assert num_bytes / num_weights <= 1.1


def stepped(kind, shapes=((64, 64), (4, 1024, 2, 2)), memory_format=torch.contiguous_format):
    parameters = make_parameters(shapes, memory_format)
    optimizer = make(kind, parameters)
    take_steps(optimizer, parameters, range(1))
    return optimizer


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda: stepped("lion"), "another optim.kind"),
        (lambda: stepped("lion8bit", ((64, 65), (4, 1024, 2, 2))), "another network"),
        (lambda: stepped("lion8bit", memory_format=torch.channels_last), "another memory format"),
    ],
)
def test_state_that_does_not_fit_is_refused(other, said):
    with pytest.raises(ValueError, match=said):
        stepped("lion8bit").load_state_dict(other().state_dict())


def test_full_precision_state_fits_another_memory_format():
    last = stepped("lion", memory_format=torch.channels_last)
    plain = stepped("lion")
    plain.load_state_dict(last.state_dict())
    for one, other in zip(plain.state.values(), last.state.values(), strict=True):
        assert torch.equal(one["exp_avg"], other["exp_avg"])


def test_other_types_of_weights_are_refused():
    with pytest.raises(ValueError, match="float64 on cpu: this optimizer needs torch.float32"):
        make("lion", [nn.Parameter(torch.ones(2, dtype=torch.float64))])


def test_a_parameter_moved_afterwards_is_noticed():
    layer = nn.Linear(2, 2)
    optimizer = make("lion", list(layer.parameters()))
    layer.weight.data = layer.weight.data.clone()
    layer.weight.grad = torch.ones(2, 2)
    with pytest.raises(AssertionError, match="left its optimizer's buffer"):
        optimizer.step()


@pytest.mark.parametrize("is_joined", [True, False])
@pytest.mark.parametrize("num_before", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_is_skipped_leaves_weights_and_moments(kind, num_before, is_joined):
    parameters = make_parameters()
    optimizer = make(kind, parameters, is_joined)
    take_steps(optimizer, parameters, range(num_before))
    weights = [p.detach().clone() for p in parameters]
    buffers = [buffer for buffers in optimizer._buffers for buffer in buffers]
    moments = [moment.clone() for buffer in buffers for moment in buffer.moments.values()]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, torch.nan)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    after = [moment for buffer in buffers for moment in buffer.moments.values()]
    for some, others in ((weights, parameters), (moments, after)):
        assert all(torch.equal(one, other) for one, other in zip(some, others, strict=True))
    optimizer.found_inf = torch.tensor(0.0)
    take_steps(optimizer, parameters, [num_before])
    assert all(p.isfinite().all() for p in parameters)
    assert not any(torch.equal(one, p) for one, p in zip(weights, parameters, strict=True))

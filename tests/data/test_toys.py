import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from hard_fast.data import DataConfig, load_data
from hard_fast.data.toys import DigitsConfig, LineConfig, SyntheticConfig

CPU = torch.device("cpu")


def test_digits_are_a_small_mnist():
    data = load_data(DigitsConfig(), CPU)
    assert data.num_classes == 10
    assert data.val is not None
    sizes = [len(a.label) for a in (data.train, data.val, *data.test.values())]
    assert sizes == [1294, 144, 359, 359]
    image = data.test["centered"].image
    assert image.shape == (359, 1, 28, 28)
    assert image.dtype == torch.uint8
    assert image.max() == 255
    margin = image.clone()
    margin[:, :, 6:22, 6:22] = 0
    assert margin.sum() == 0
    # A shift of 3 px stays on the canvas, so it moves the ink and loses none.
    shifted = data.test["shifted"].image
    assert torch.equal(shifted.sum((1, 2, 3)), image.sum((1, 2, 3)))
    assert not (shifted == image).flatten(1).all(1).any()
    assert data.train.label.unique().tolist() == list(range(10))


def test_digits_are_enlarged_smoothly():
    row = load_data(DigitsConfig(val_share=0.0), CPU).train.image[:, 0, 6:9].float()
    # Doubling between old pixels a and b gives a, (3a + b) / 4, (a + 3b) / 4.
    step = row[:, 2] - row[:, 0]
    assert step.abs().max() > 100
    assert torch.allclose(row[:, 1] - row[:, 0], step / 3, atol=1.0)


def test_digits_keep_their_test_set_under_every_key():
    one = load_data(DigitsConfig(), CPU).test["shifted"]
    two = load_data(DigitsConfig(val_seed=1, val_share=0.5, train_limit=100), CPU).test["shifted"]
    assert torch.equal(one.image, two.image)
    assert torch.equal(one.label, two.label)


def test_some_digits_are_numbered_anew():
    whole = load_data(DigitsConfig(val_share=0.0), CPU)
    some = load_data(DigitsConfig(val_share=0.0, classes=(7, 2)), CPU)
    assert some.num_classes == 2 and some.test.keys() == whole.test.keys()
    assert torch.equal(some.test["shifted"].label, some.test["centered"].label)
    parts = ((data.train, data.test["centered"]) for data in (some, whole))
    for found, given in zip(*parts, strict=True):
        is_one = (given.label == 7) | (given.label == 2)
        assert torch.equal(found.image, given.image[is_one])
        assert torch.equal(found.label, (given.label[is_one] == 2).long())


@pytest.mark.parametrize("classes", [(1,), (1, 10), (1, 1)])
def test_classes_are_two_digits_or_more(classes):
    with pytest.raises(ValidationError, match="classes"):
        DigitsConfig(classes=classes)


def test_line_draws_unlabelled_points_in_its_intervals():
    data = load_data(LineConfig(low=-2.0, high=3.0, num_train=500, val_share=0.0), CPU)
    assert data.num_classes == 1
    x, test = data.train.image, data.test["test"].image
    assert x.shape == (500, 1, 1, 1)
    assert x.dtype == torch.float32
    assert (x.min() >= -2) and (x.max() <= 3)
    assert x.max() - x.min() > 4.9
    assert data.train.label.unique().tolist() == [-1]
    assert len(test) == 100
    assert (test.min() >= -10) and (test.max() <= 10)
    assert test.max() - test.min() > 18


def test_line_depends_on_its_seed():
    one, same, other = (load_data(LineConfig(seed=s), CPU).train.image for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    "keys", [{"low": 1.0, "high": 1.0}, {"test_high": -11.0}, {"high": float("inf")}]
)
def test_line_refuses_an_empty_interval(keys):
    with pytest.raises(ValidationError):
        LineConfig(**keys)


@pytest.mark.parametrize(("size", "channels"), [(32, 3), (5, 1), (1, 2)])
def test_synthetic_has_the_asked_size(size, channels):
    config = SyntheticConfig(size=size, channels=channels, num_train=40, num_test=7)
    data = load_data(config, CPU)
    assert data.train.image.shape == (36, channels, size, size)
    assert data.test["test"].image.shape == (7, channels, size, size)
    assert data.train.image.dtype == torch.uint8
    assert torch.equal(load_data(config, CPU).train.image, data.train.image)
    other = load_data(config.model_copy(update={"seed": 1}), CPU)
    assert not torch.equal(other.train.image, data.train.image)


def test_synthetic_classes_can_be_told_apart():
    data = load_data(SyntheticConfig(num_train=300, num_test=100), CPU)
    image, label = data.train
    means = torch.stack([image[label == k].float().mean(0) for k in range(10)])
    test = data.test["test"]
    nearest = torch.cdist(test.image.float().flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == test.label).float().mean() == 1.0
    # Noise, not copies of ten pictures.
    assert len(image.flatten(1).unique(dim=0)) == len(image)


def test_kind_selects_the_config():
    adapter = TypeAdapter(DataConfig)
    assert isinstance(adapter.validate_python({"kind": "digits"}), DigitsConfig)
    assert isinstance(adapter.validate_json('{"kind": "line", "val_share": 0}'), LineConfig)
    for tree in ({"kind": "digit"}, {}, {"kind": "digits", "root": "x"}):
        with pytest.raises(ValidationError):
            adapter.validate_python(tree)

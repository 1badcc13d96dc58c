import pytest
import torch
from torchvision.transforms import autoaugment

from hard_fast.augment.autoaugment import AutoAugment, AutoConfig
from hard_fast.augment.operations import Operation
from hard_fast.types import View

SHAPE = torch.Size([3, 32, 32])
# Of those whose pixels do not lie between others, so that the kind of interpolation is no matter.
EXACT = {"Brightness", "Color", "Contrast", "Posterize", "Solarize", "Invert"}


def theirs(policy):
    return autoaugment.AutoAugment(autoaugment.AutoAugmentPolicy(policy))


@pytest.mark.parametrize("policy", ["cifar10", "imagenet", "svhn"])
def test_levels_are_torchvisions(policy):
    augmentor, their = AutoAugment(AutoConfig(policy=policy), SHAPE), theirs(policy)
    space = their._augmentation_space(10, (32, 32))
    for number, steps in enumerate(their.policies):
        for place, (name, chance, bin_number) in enumerate(steps):
            assert augmentor.chance_PL[number, place].item() == pytest.approx(chance)
            operation = Operation(augmentor.operation_PL[number, place].item())
            level, signed = augmentor.level_PL[number, place].item(), space[name][1]
            if name == "Invert":
                assert (operation, level) == (Operation.SOLARIZE, 0.0)
                continue
            assert operation.name.replace("_", "") == name.upper()
            assert augmentor.has_sign[operation].item() == signed
            if bin_number is not None:
                unit = 255.0 if name == "Solarize" else 1.0
                want = float(space[name][0][bin_number])
                assert unit * level == pytest.approx(want, rel=1e-5)


def test_a_policy_by_hand():
    """The first of CIFAR-10's: Invert with 0.1, then Contrast with 0.2."""
    augmentor = AutoAugment(AutoConfig(), SHAPE)
    image = torch.randint(0, 256, (2, *SHAPE), dtype=torch.uint8)
    chance = torch.tensor([[0.05, 0.5], [0.5, 0.5]])
    noise = {"policy": torch.zeros(2), "chance": chance, "sign": torch.ones(2, 2)}
    made = augmentor(View(image, None), noise).image
    torch.testing.assert_close(made[0], 1.0 - image[0] / 255.0)
    torch.testing.assert_close(made[1], image[1] / 255.0)


def test_operations_are_torchvisions_in_pixels():
    augmentor, their = AutoAugment(AutoConfig(), SHAPE), theirs("cifar10")
    image = torch.randint(0, 256, (1, *SHAPE), dtype=torch.uint8)
    num_seen = 0
    for number, steps in enumerate(their.policies):
        if not {name for name, _, _ in steps} <= EXACT:
            continue
        num_seen += 1
        noise = {"policy": torch.tensor([(number + 0.5) / 25]), "sign": torch.ones(1, 2)}
        noise["chance"] = torch.zeros(1, 2)
        made = augmentor(View(image, None), noise).image * 255.0
        want = image
        space = their._augmentation_space(10, (32, 32))
        for name, chance, bin_number in steps:
            if chance == 0.0:
                continue
            level = 0.0 if bin_number is None else float(space[name][0][bin_number])
            want = autoaugment._apply_op(want, name, level, their.interpolation, None)
        # Each operation may differ by one level, which the second one at most doubles.
        assert (made - want).abs().max() <= 4.0
    assert num_seen >= 3


def test_range_layout_and_that_each_image_has_a_policy_of_its_own():
    augmentor = AutoAugment(AutoConfig(), SHAPE)
    image = torch.randint(0, 256, (1, *SHAPE), dtype=torch.uint8).expand(64, -1, -1, -1)
    noise = augmentor.draw_noise(image.shape, torch.Generator().manual_seed(0))
    view = augmentor(View(image, torch.eye(64)), noise)
    assert view.image.is_contiguous(memory_format=torch.channels_last)
    assert view.image.min() >= 0.0 and view.image.max() <= 1.0
    assert len({one.numpy().tobytes() for one in view.image}) > 20
    assert torch.equal(view.target_BK, torch.eye(64))


def test_one_graph_equals_eager():
    augmentor = AutoAugment(AutoConfig(), SHAPE)
    image = torch.randint(0, 256, (25, *SHAPE), dtype=torch.uint8)
    noise = augmentor.draw_noise(image.shape, torch.Generator().manual_seed(0))
    noise["policy"] = (torch.arange(25) + 0.5) / 25
    whole = torch.compile(augmentor, fullgraph=True, backend="aot_eager")
    got = whole(View(image, None), noise).image
    assert (got - augmentor(View(image, None), noise).image).abs().max() <= 2 / 255

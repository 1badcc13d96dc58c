import pytest
import torch
from torchvision.transforms import v2

from hard_fast.augment.affine import Affine, AffineConfig
from hard_fast.augment.base import is_learned
from hard_fast.augment.compose import Compose
from hard_fast.augment.operations import Operation, apply_each
from hard_fast.augment.randomized import (
    AUGMIX,
    RAND,
    TRIVIAL,
    Augmix,
    AugmixConfig,
    RandConfig,
    RandomOperations,
    TrivialConfig,
)
from hard_fast.types import View

SHAPE = torch.Size([3, 12, 10])
NAMES = {
    Operation.COLOR: "Color",
    Operation.AUTOCONTRAST: "AutoContrast",
    **{one: one.name.title().replace("_", "") for one in Operation if one not in (7, 12)},
}


def images(num=6):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (num, *SHAPE), dtype=torch.uint8, generator=generator)


def draw(augmentor, image, seed=0):
    return augmentor.draw_noise(image.shape, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("space", "peer", "bins"),
    [
        (TRIVIAL, v2.TrivialAugmentWide, 31),
        (RAND, v2.RandAugment, 31),
        (AUGMIX, v2.AugMix, 10),
    ],
    ids=["trivial", "rand", "augmix"],
)
def test_levels_and_signs_are_torchvisions(space, peer, bins):
    levels = space.levels(40, 64, bins)
    has_sign = RandomOperations(TrivialConfig(), SHAPE).has_sign
    for operation, name in NAMES.items():
        if name not in peer._AUGMENTATION_SPACE:
            continue
        magnitudes, is_signed = peer._AUGMENTATION_SPACE[name]
        wanted = magnitudes(bins, 40, 64)
        if wanted is not None:
            torch.testing.assert_close(levels[operation], wanted.float(), msg=name)
        assert has_sign[operation] == is_signed


def test_one_draw_is_one_operation_bin_and_sign():
    augmentor = RandomOperations(TrivialConfig(), SHAPE)
    uniform = torch.tensor([[0.999, 0.5, 0.0], [5.5 / 14, 0.999, 0.4], [5.5 / 14, 0.0, 0.6]])
    operation, level = augmentor.choose(uniform, SHAPE[2])
    assert operation.tolist() == [Operation.EQUALIZE, Operation.ROTATE, Operation.ROTATE]
    assert level.tolist() == [0.0, -135.0, 0.0]


def test_all_operations_and_levels_are_equally_likely():
    augmentor = RandomOperations(TrivialConfig(bins=5), SHAPE)
    noise = augmentor.draw_noise(torch.Size((14000, *SHAPE)), torch.Generator().manual_seed(0))
    operation, level = augmentor.choose(noise["uniform"][:, 0], SHAPE[2])
    assert operation.bincount(minlength=14).min() > 850
    turned = level[operation == Operation.ROTATE]
    assert set(turned.tolist()) == {
        0.0,
        *(s * d for s in (-1, 1) for d in (33.75, 67.5, 101.25, 135.0)),
    }
    assert abs((turned > 0).float().mean() - 0.4) < 0.06


def test_smaller_pictures_are_shifted_by_as_much_less():
    augmentor = RandomOperations(TrivialConfig(), torch.Size([3, 32, 32]))
    # The last bin of a shift, of a turn and of a colour.
    uniform = torch.tensor([[place / 14, 0.999, 0.6] for place in (3.5, 4.5, 5.5, 7.5)])
    operation, level = augmentor.choose(uniform, 32)
    assert operation[:3].tolist() == [
        *(Operation.TRANSLATE_X, Operation.TRANSLATE_Y, Operation.ROTATE)
    ]
    assert level[:3].tolist() == [32.0, 32.0, 135.0]
    _, small = augmentor.choose(uniform, 24)
    assert small.tolist() == [24.0, 24.0, *level[2:].tolist()]


def test_rand_applies_its_operations_one_after_the_other():
    augmentor, image = RandomOperations(RandConfig(num=2, magnitude=9), SHAPE), images()
    noise = draw(augmentor, image)
    made = augmentor(View(image, None), noise).image
    operation, level = augmentor.choose(noise["uniform"], SHAPE[2])
    by_hand = image
    for place in range(2):
        by_hand = apply_each(by_hand, operation[:, place], level[:, place])
    assert torch.equal(made, by_hand / 255.0)
    assert level[operation == Operation.ROTATE].abs().tolist() in ([], [9.0], [9.0, 9.0])


def test_augmix_is_the_weighted_sum_of_original_and_chains():
    augmentor, image = Augmix(AugmixConfig(width=2, max_depth=2), SHAPE), images(3)
    noise = draw(augmentor, image)
    noise["depth"] = torch.tensor([[0.0, 0.99], [0.99, 0.0], [0.0, 0.0]])
    made = augmentor(View(image, None), noise).image
    operation, level = augmentor.choose(noise["uniform"], SHAPE[2])
    wanted = noise["weight"][:, 0].view(-1, 1, 1, 1) * image
    for row in range(3):
        for chain in range(2):
            one = image[row : row + 1]
            for place in range(1 + int(noise["depth"][row, chain] > 0.5)):
                of, at = (value[row : row + 1, chain, place] for value in (operation, level))
                one = apply_each(one, of, at)
            wanted[row] += noise["weight"][row, 1 + chain] * one[0]
    torch.testing.assert_close(made, wanted / 255.0, atol=1e-5, rtol=0)


def test_augmix_leaves_out_what_imagenet_c_tests_unless_asked():
    published, whole = (
        Augmix(AugmixConfig(all_operations=every), SHAPE).operations.tolist()
        for every in (False, True)
    )
    assert len(published) == 9 and len(whole) == 13
    assert not {Operation.BRIGHTNESS, Operation.SHARPNESS, Operation.IDENTITY} & set(published)


def test_augmix_weights_follow_their_distributions():
    augmentor = Augmix(AugmixConfig(alpha=1.0), SHAPE)
    weight = augmentor.draw_noise(torch.Size((20000, *SHAPE)), torch.Generator())["weight"]
    torch.testing.assert_close(weight.sum(1), torch.ones(20000))
    torch.testing.assert_close(
        weight.mean(0), torch.tensor([1 / 2, 1 / 6, 1 / 6, 1 / 6]), atol=0.01, rtol=0
    )


CASES = [
    (RandomOperations, TrivialConfig()),
    (RandomOperations, RandConfig()),
    (Augmix, AugmixConfig()),
    (Augmix, AugmixConfig(all_operations=True, severity=10)),
]


@pytest.mark.parametrize(("maker", "config"), CASES, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_range_layout_and_one_graph(maker, config, channels):
    augmentor, image = maker(config, torch.Size([channels, *SHAPE[1:]])), images()[:, :channels]
    image = image.contiguous(memory_format=torch.channels_last)
    noise, target = draw(augmentor, image), torch.eye(6)
    view = augmentor(View(image, target), noise)
    assert view.image.dtype == torch.float32 and view.image.shape == image.shape
    assert view.image.is_contiguous(memory_format=torch.channels_last)
    assert view.image.min() >= 0.0 and view.image.max() <= 1.0
    assert torch.equal(view.target_BK, target) and not is_learned(augmentor)
    assert all(len(value) == 6 for value in noise.values())
    whole = torch.compile(augmentor, fullgraph=True, backend="eager")
    assert torch.equal(whole(View(image, target), noise).image, view.image)
    assert torch.equal(augmentor(View(image / 255.0, target), noise).image, view.image)


def test_it_cannot_follow_what_learns():
    trivial = RandomOperations(TrivialConfig(), SHAPE)
    assert Compose([trivial, Affine(AffineConfig())]).group == 1
    with pytest.raises(ValueError, match="number 1 works on bytes"):
        Compose([Affine(AffineConfig()), trivial])

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from hard_fast.augment import AugmentorConfig, build_augmentor
from hard_fast.augment.affine import Affine, AffineConfig
from hard_fast.augment.base import is_learned, take_rows
from hard_fast.augment.compose import Compose, ComposeConfig, num_merged
from hard_fast.augment.fixed import Mixup, RandomWarp
from hard_fast.augment.mix import PatchMix, PatchMixConfig
from hard_fast.augment.noise import GaussianNoise, NoiseConfig
from hard_fast.bank import AugmentorBank, BankConfig
from hard_fast.types import View

SHAPE = torch.Size([3, 8, 8])


def patch_mix(group=2):
    return PatchMix(PatchMixConfig(group=group, patch_px=4), SHAPE)


def draw(augmentor, num=8, seed=0):
    shape = torch.Size((num, *SHAPE))
    return augmentor.draw_noise(shape, torch.Generator().manual_seed(seed))


def test_the_parts_act_in_their_order():
    image = torch.randint(0, 256, (8, *SHAPE), dtype=torch.uint8)
    warp, noisy = RandomWarp(flip=True), GaussianNoise(NoiseConfig(std=0.1), 3, is_picture=True)
    for first, second in ((warp, noisy), (noisy, warp)):
        chain = Compose([first, second])
        noise = draw(chain)
        names = {part: f"{i}.{key}" for i, (part, key) in enumerate(_keys(first, second))}
        middle = first(View(image, None), {_key(first): noise[names[first]]})
        by_hand = second(middle, {_key(second): noise[names[second]]})
        assert torch.equal(chain(View(image, None), noise).image, by_hand.image)


def _key(part):
    return "uniform" if isinstance(part, RandomWarp) else "normal"


def _keys(*parts):
    return [(part, _key(part)) for part in parts]


def test_parts_after_a_group_mix_draw_for_the_images_that_are_left():
    chain = Compose([Affine(AffineConfig()), patch_mix(2), Affine(AffineConfig()), patch_mix(2)])
    noise = draw(chain)
    found = {name: len(value) for name, value in noise.items()}
    assert found == {"0.theta": 8, "1.query": 4, "2.theta": 4, "3.query": 2}
    view = chain(View(torch.rand(8, *SHAPE), torch.eye(8)), noise)
    assert view.image.shape == (2, *SHAPE) and view.target_BK.shape == (2, 8)
    torch.testing.assert_close(view.target_BK.sum(1), torch.ones(2))
    part = chain(View(torch.zeros(4, *SHAPE), torch.eye(4)), take_rows(noise, 4, 8, num_images=8))
    assert part.image.shape == (1, *SHAPE)


def test_groups_are_of_the_images_given():
    mixup = Mixup(1.0)
    assert Compose([mixup, mixup]).group == 2 and num_merged(Compose([mixup, mixup])) == 1
    assert Compose([patch_mix(2), mixup]).group == 4
    assert Compose([patch_mix(2), Compose([patch_mix(4)])]).group == 8
    assert num_merged(Compose([patch_mix(2), Compose([patch_mix(4)])])) == 8
    assert Compose([mixup, patch_mix(3)]).group == 6


def test_it_learns_if_any_part_does_and_one_bank_entry_holds_all(tmp_path):
    assert not is_learned(Compose([RandomWarp(), Mixup(1.0)]))
    chain = Compose([Affine(AffineConfig()), RandomWarp(), patch_mix()])
    assert is_learned(chain)
    before = {name: value.clone() for name, value in chain.named_parameters()}
    bank = AugmentorBank(chain, tmp_path, BankConfig(), seed=0)
    bank.save()
    with torch.no_grad():
        for parameter in chain.parameters():
            parameter.add_(1.0)
    again = AugmentorBank(chain, tmp_path, BankConfig(), seed=0)
    again.load_state_dict(bank.state_dict())
    again.draw_into(chain, step=0)
    assert len(before) == 6
    for name, value in chain.named_parameters():
        assert torch.equal(value, before[name]), name


def test_gradient_passes_through_all_parts_and_it_is_one_graph():
    torch.manual_seed(0)
    chain = Compose([patch_mix(), GaussianNoise(NoiseConfig(), 3, True), Affine(AffineConfig())])
    image = torch.randint(0, 256, (8, *SHAPE), dtype=torch.uint8)
    noise = draw(chain)
    view = chain(View(image, torch.eye(8)), noise)
    (view.image * torch.rand_like(view.image)).sum().backward()
    for name, parameter in chain.named_parameters():
        assert parameter.grad.count_nonzero() == parameter.numel(), name
    whole = torch.compile(chain, fullgraph=True, backend="eager")
    torch.testing.assert_close(whole(View(image, torch.eye(8)), noise).image, view.image)


def test_a_configuration_names_its_parts_by_kind():
    text = '{"kind": "compose", "parts": [{"kind": "noise"}, {"kind": "affine", "std": 0.1}]}'
    config = TypeAdapter(AugmentorConfig).validate_json(text)
    assert config == ComposeConfig(parts=[NoiseConfig(), AffineConfig(std=0.1)])
    built = build_augmentor(config, SHAPE, is_picture=True)
    assert [type(part) for part in built.parts] == [GaussianNoise, Affine]
    with pytest.raises(ValidationError, match="at least 1 item"):
        ComposeConfig(parts=[])


def test_bytes_within_a_nested_chain_cut_the_gradient_too():
    build = TypeAdapter(AugmentorConfig).validate_python
    inner = {"kind": "compose", "parts": [{"kind": "trivial"}, {"kind": "noise"}]}
    chain = build({"kind": "compose", "parts": [{"kind": "affine"}, inner]})
    with pytest.raises(ValueError, match="number 1 works on bytes"):
        build_augmentor(chain, SHAPE, is_picture=True)


@pytest.mark.parametrize("kind", ["trivial", "rand", "augmix", "erasing", "autoencoder"])
def test_what_is_made_for_pictures_refuses_other_numbers(kind):
    config = TypeAdapter(AugmentorConfig).validate_python({"kind": kind})
    with pytest.raises(ValueError, match=f"'{kind}': changes pictures"):
        build_augmentor(config, SHAPE, is_picture=False)


def test_channels_that_do_not_fit_are_one_line():
    build = TypeAdapter(AugmentorConfig).validate_python
    five, grey = torch.Size([5, 8, 8]), torch.Size([1, 32, 32])
    with pytest.raises(ValueError, match="needs 1 or 3 channels, not 5"):
        build_augmentor(build({"kind": "trivial"}), five, is_picture=True)
    with pytest.raises(ValueError, match="channels = 3: the pictures have 1"):
        build_augmentor(build({"kind": "autoencoder", "net": "vdvae"}), grey, is_picture=True)
    narrow = {"kind": "autoencoder", "options": {"channels": 1}}
    with pytest.raises(ValueError, match="channels = 1: the pictures have 3"):
        build_augmentor(build(narrow), SHAPE, is_picture=True)

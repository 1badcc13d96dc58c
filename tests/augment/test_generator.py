"""The generator as an augmentor: it ignores the batch, and only its own parameters learn."""

import pytest
import torch

from hard_fast.augment import build_augmentor, generates, learns
from hard_fast.augment.compose import ComposeConfig
from hard_fast.augment.fixed import ShiftsConfig
from hard_fast.augment.generator import GeneratorConfig
from hard_fast.types import View

SHAPE = torch.Size([1, 8, 8])


def make(**options):
    torch.manual_seed(0)
    return build_augmentor(GeneratorConfig(latent=3, width=2, **options), SHAPE, is_picture=True)


def noise_of(augmentor, num=6):
    return augmentor.draw_noise(torch.Size([num, *SHAPE]), torch.Generator().manual_seed(1))


def test_the_batch_counts_only_by_its_size_and_labels_are_dropped():
    augmentor = make().eval()
    noise = noise_of(augmentor)
    zeros = View(torch.zeros(6, *SHAPE, dtype=torch.uint8), torch.eye(6))
    ones = View(torch.full((6, *SHAPE), 255, dtype=torch.uint8), torch.eye(6))
    found, other = augmentor(zeros, noise), augmentor(ones, noise)
    assert torch.equal(found.image, other.image) and found.image.dtype == torch.float32
    assert found.image.std() > 0
    assert torch.equal(found.target_BK, torch.zeros(6, 6))
    assert not found.original.requires_grad and torch.equal(found.original, found.image)


def test_every_parameter_gets_a_gradient():
    augmentor = make().train()
    image = augmentor(View(torch.zeros(6, *SHAPE), None), noise_of(augmentor)).image
    (image * torch.rand_like(image)).sum().backward()
    gradients = {name: p.grad for name, p in augmentor.named_parameters()}
    assert all(g is not None and g.abs().max() > 0 for g in gradients.values())


def test_compiled_it_is_the_same():
    augmentor = make(output="sigmoid").train()
    noise, view = noise_of(augmentor), View(torch.zeros(6, *SHAPE), None)
    whole = torch.compile(augmentor, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(view, noise).image, augmentor(view, noise).image)


def test_it_learns_wherever_it_stands_in_a_chain():
    config = GeneratorConfig()
    assert learns(config) and generates(config)
    chain = ComposeConfig(parts=[config, ShiftsConfig(max_px=1)])
    assert learns(chain) and generates(chain)
    assert not generates(ShiftsConfig())


def test_what_does_not_fit_names_the_key():
    with pytest.raises(ValueError, match="output = 'sigmoid' does not use them"):
        GeneratorConfig(output="sigmoid", mean=(0.5,))
    with pytest.raises(ValueError, match="augmentor.kind = 'generator': makes pictures of mult"):
        build_augmentor(GeneratorConfig(), torch.Size([1, 9, 9]), is_picture=True)

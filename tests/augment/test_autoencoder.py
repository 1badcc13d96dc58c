import pytest
import torch

from hard_fast.augment.autoencoder import Autoencoder, AutoencoderConfig
from hard_fast.augment.base import is_learned
from hard_fast.bank import AugmentorBank, BankConfig
from hard_fast.data import load_data
from hard_fast.data.readers import Cifar10Config
from hard_fast.models.weights import save_weights
from hard_fast.types import View

SHAPE = torch.Size([3, 8, 8])
TINY = {"width": 8, "latent": 4, "num_levels": 1, "num_blocks": 1}
VDVAE = {
    "enc_blocks": "8x1,8d2,4d4,1x1",
    "dec_blocks": "1x1,4m1,8m4,8x1",
    "width": 8,
    "bottleneck": 0.5,
    "zdim": 2,
    "num_mixtures": 2,
    "train_from_block": 1,
}
RQVAE = {
    "width": 4,
    "multipliers": [1, 2],
    "num_blocks": 1,
    "latent": 4,
    "num_codes": 8,
    "depth": 2,
    "norm_groups": 2,
}
CONFIGS = [
    AutoencoderConfig(net="tiny", options=TINY),
    AutoencoderConfig(net="vdvae", options=VDVAE),
    AutoencoderConfig(net="rqvae", options=RQVAE),
    AutoencoderConfig(net="rqvae", options=RQVAE | {"noise_at": "before"}),
]


def build(config, seed=0):
    torch.manual_seed(seed)
    return Autoencoder(config, SHAPE)


def draw(augmentor, image, seed=0):
    return augmentor.draw_noise(image.shape, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.net)
def test_output_range_and_gradient(config):
    augmentor = build(config)
    image = torch.randint(0, 256, (4, *SHAPE), dtype=torch.uint8)
    noise = draw(augmentor, image)
    assert all(len(value) == 4 for value in noise.values())
    view = augmentor(View(image, torch.eye(4)), noise)
    assert view.image.shape == image.shape and view.image.dtype == torch.float32
    assert view.image.is_contiguous(memory_format=torch.channels_last)
    assert view.image.min() >= 0.0 and view.image.max() <= 1.0
    assert torch.equal(view.target_BK, torch.eye(4))
    (view.image * torch.rand_like(view.image)).sum().backward()
    for name, parameter in augmentor.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.abs().sum() > 0.0, name
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize(
    "config",
    [CONFIGS[0], *(pytest.param(config, marks=pytest.mark.slow) for config in CONFIGS[1:])],
    ids=lambda config: config.net,
)
def test_it_is_one_graph(config):
    augmentor, image = build(config), torch.randint(0, 256, (2, *SHAPE), dtype=torch.uint8)
    noise = draw(augmentor, image)
    whole = torch.compile(augmentor, fullgraph=True, backend="eager")
    made = augmentor(View(image, None), noise).image
    torch.testing.assert_close(whole(View(image, None), noise).image, made)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.net)
def test_the_bank_gives_back_what_is_learned(config, tmp_path):
    augmentor = build(config)
    learned = {n: p.clone() for n, p in augmentor.named_parameters() if p.requires_grad}
    assert 0 < len(learned) < len(list(augmentor.parameters()))
    bank = AugmentorBank(augmentor, tmp_path, BankConfig(), seed=0)
    bank.save()
    with torch.no_grad():
        for parameter in augmentor.parameters():
            parameter.add_(1.0)
    bank.draw_into(augmentor, step=0)
    now = dict(augmentor.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in learned.items())


def test_weights_come_from_a_file_or_a_pair(tmp_path):
    first, image = build(CONFIGS[0]), torch.rand(2, *SHAPE)
    noise = draw(first, image)
    whole = str(save_weights(first.net, tmp_path / "whole.safetensors"))
    pair = tuple(
        str(save_weights(part, tmp_path / f"{number}.safetensors"))
        for number, part in enumerate((first.net.encoder, first.net.decoder))
    )
    made = first(View(image, None), noise).image
    for checkpoint in (whole, pair):
        config = AutoencoderConfig(net="tiny", checkpoint=checkpoint, options=TINY)
        again = build(config, seed=1)
        torch.testing.assert_close(again(View(image, None), noise).image, made)


def test_what_cannot_be_is_refused_at_the_start():
    with pytest.raises(ValueError, match="one file of weights"):
        AutoencoderConfig(net="vdvae", checkpoint=("a", "b"))
    with pytest.raises(ValueError, match="8 px, given 16 x 16"):
        Autoencoder(AutoencoderConfig(net="vdvae", options=VDVAE), torch.Size([3, 16, 16]))
    with pytest.raises(ValueError, match=r"options.widht.*'width'"):
        build(AutoencoderConfig(net="tiny", options={"widht": 8}))
    with pytest.raises(ValueError, match="nothing of net = 'tiny' learns"):
        build(AutoencoderConfig(net="tiny", options=TINY | {"trains": []}))
    assert not is_learned(build(AutoencoderConfig(net="tiny", options=TINY, learned=False)))


def test_bf16_stays_close_and_gives_fp32():
    image = torch.rand(2, *SHAPE)
    exact, rough = (
        build(AutoencoderConfig(net="tiny", options=TINY, precision=precision))
        for precision in ("fp32", "bf16")
    )
    noise = draw(exact, image)
    found = rough(View(image, None), noise).image
    assert found.dtype == torch.float32
    wanted = exact(View(image, None), noise).image
    assert not torch.equal(found, wanted)
    torch.testing.assert_close(found, wanted, atol=0.03, rtol=0)


@pytest.mark.slow
def test_pretrained_weights_start_as_a_reconstruction_of_real_pictures(real_data):
    data = load_data(Cifar10Config(root=str(real_data), val_share=0.0), torch.device("cpu"))
    image = data.test["test"].image[:16]
    files = tuple(str(real_data / f"weights/taef2_{part}.pth") for part in ("encoder", "decoder"))
    config = AutoencoderConfig(net="tiny", checkpoint=files, options={"enlarge": 4})
    augmentor = Autoencoder(config, image.shape[1:]).requires_grad_(False)
    made = augmentor(View(image, None), draw(augmentor, image)).image
    psnr = -10.0 * (made - image / 255.0).square().mean().log10()
    assert psnr > 33.0

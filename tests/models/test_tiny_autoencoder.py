"""The tiny autoencoder: real weights on real pictures, learned noise, the bound of a VAE."""

import copy
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from hard_fast.bank import AugmentorBank, BankConfig
from hard_fast.models.tiny_autoencoder import (
    TinyAutoencoder,
    clamp_pixels,
    pad_to,
    set_channels,
)
from hard_fast.models.weights import save_weights

SMALL = {"width": 8, "latent": 4, "num_levels": 2, "num_blocks": 1}
PHOTOS = ("helicopter/image_0030.jpg", "helicopter/image_0020.jpg")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def draw(net, image):
    shapes = net.noise_shapes(len(image), *image.shape[-2:])
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def psnr_db(found, expected):
    return -10 * (found - expected).square().flatten(1).mean(1).log10()


def open_photo(path, size=224):
    """The central square of a photo, [1,3,size,size] in [0,1]."""
    photo = Image.open(path).convert("RGB")
    side = min(photo.size)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    box = (left, top, left + side, top + side)
    photo = photo.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None] / 255


def read_cifar(folder, num):
    raw = (folder / "cifar10" / "cifar-10-batches-bin" / "test_batch.bin").read_bytes()
    records = np.frombuffer(raw[: 3073 * num], np.uint8).reshape(num, 3073)
    return torch.from_numpy(records[:, 1:].reshape(num, 3, 32, 32) / np.float32(255))


def pretrained(folder, **options):
    net = TinyAutoencoder(**options)
    net.load(folder / "weights/taef2_encoder.pth", folder / "weights/taef2_decoder.pth")
    return net.to(memory_format=torch.channels_last)


def test_parameter_counts_and_layers_are_the_published_ones():
    with torch.device("meta"):
        net = TinyAutoencoder()
    counts = [sum(p.numel() for p in part.parameters()) for part in (net.encoder, net.decoder)]
    assert counts == [1_338_528, 1_338_499]
    assert (len(net.encoder), len(net.decoder)) == (15, 20)
    assert len(net.encoder.state_dict()) == len(net.decoder.state_dict()) == 79


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(16, 16), (13, 18)])
@pytest.mark.parametrize("enlarge", [1, 2])
def test_every_size_and_grey_pictures_come_back_in_bounds(channels, size, enlarge):
    net = TinyAutoencoder(**SMALL, enlarge=enlarge)
    with torch.no_grad():
        net.decoder[-1].weight *= 1000
        net.decoder[-1].bias.fill_(0.5)
    image = torch.rand(2, channels, *size).contiguous(memory_format=torch.channels_last)
    found = net(image, draw(net, image))
    assert found.shape == image.shape and found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found.min() == 0 and found.max() == 1


def test_noise_moves_each_latent_channel_by_its_own_std():
    net = TinyAutoencoder(**SMALL, trains=("noise",))
    image = torch.rand(2, 3, 8, 8)
    noise = draw(net, image)
    with torch.no_grad():
        net.noise_log_std.copy_(torch.tensor([0.5, 1.0, 2.0, 4.0]).log())
        z = net.encode(image)[0]
        for i, std in enumerate((0.5, 1.0, 2.0, 4.0)):
            z[:, i] += std * noise["latent"][:, i]
        torch.testing.assert_close(net(image, noise), clamp_pixels(net.decode(z, image.shape)))


@pytest.mark.parametrize(
    ("trains", "prefixes"),
    [
        (("noise", "decoder"), ("noise_log_std", "decoder.")),
        (("noise",), ("noise_log_std",)),
        (("noise", "encoder", "decoder"), ("noise_log_std", "encoder.", "decoder.")),
    ],
)
def test_gradient_reaches_what_trains_and_the_image_and_nothing_else(trains, prefixes):
    net = TinyAutoencoder(**SMALL, trains=trains)
    image = torch.rand(2, 3, 8, 8, requires_grad=True)
    (net(image, draw(net, image)) * torch.randn(2, 3, 8, 8)).sum().backward()
    assert image.grad.abs().min() > 0
    for name, parameter in net.named_parameters():
        has_gradient = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert has_gradient == parameter.requires_grad == name.startswith(prefixes), name


def test_an_unknown_part_is_named():
    with pytest.raises(ValueError, match=r"\['head'\]: choose from noise, encoder, decoder"):
        TinyAutoencoder(**SMALL, trains=("head",))


def test_a_bank_keeps_what_trains_and_nothing_else(tmp_path):
    net = TinyAutoencoder(**SMALL, noise_std=0.5)
    bank = AugmentorBank(net, tmp_path, BankConfig(), seed=0)
    shared = [p for p in net.parameters() if not p.requires_grad] + list(net.buffers())
    drawn = copy.deepcopy(net, {id(tensor): tensor for tensor in shared})
    image = torch.rand(2, 3, 8, 8)
    noise = draw(net, image)
    with torch.no_grad():
        expected = net(image, noise)
        bank.save()
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
        for parameter in drawn.parameters():
            if parameter.requires_grad:
                parameter.zero_()
        restored = AugmentorBank(net, tmp_path, BankConfig(), seed=0)
        restored.load_state_dict(bank.state_dict())
        restored.draw_into(drawn, step=3)
        assert torch.equal(drawn(image, noise), expected)
        assert not torch.equal(net(image, noise), expected)
    found = {name for name, p in drawn.named_parameters() if not any(p is s for s in shared)}
    assert found == {name for name, p in net.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_compiles_to_one_graph_with_the_same_result(backend):
    net = TinyAutoencoder(**{**SMALL, "num_levels": 1, "enlarge": 2, "variational": True})
    net = net.to(memory_format=torch.channels_last)
    image = torch.rand(2, 1, 7, 7)
    noise, weight = draw(net, image), torch.randn(2, 1, 7, 7)

    def run(call):
        net.zero_grad()
        found = call(image, noise)
        (found * weight).sum().backward()
        return [found.detach(), *(p.grad.clone() for p in net.parameters() if p.requires_grad)]

    compiled = torch.compile(net, backend=backend, fullgraph=True)
    for found, expected in zip(run(compiled), run(net), strict=True):
        torch.testing.assert_close(found, expected)


def test_clamp_lets_gradients_lead_back_inside_only():
    x = torch.tensor([-0.5, -0.5, 0.0, 0.5, 1.0, 1.5, 1.5], requires_grad=True)
    found = clamp_pixels(x)
    found.backward(torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 1.0, -1.0]))
    assert found.tolist() == [0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0]
    assert x.grad.tolist() == [0.0, -1.0, 1.0, 1.0, -1.0, 1.0, 0.0]


def test_a_pixel_beyond_the_bounds_returns_under_descent():
    x = torch.tensor([1.5, -0.5], requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.25)
    for _ in range(40):
        optimizer.zero_grad()
        (clamp_pixels(x) - 0.5).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(x.detach(), torch.tensor([0.5, 0.5]), atol=1e-3, rtol=0)


def test_channels_and_padding():
    grey = torch.rand(2, 1, 4, 4)
    assert set_channels(grey, 1) is grey
    torch.testing.assert_close(set_channels(set_channels(grey, 3), 1), grey)
    with pytest.raises(ValueError, match="pictures of 4 channels: .* made for 3 or 1"):
        set_channels(torch.rand(1, 4, 2, 2), 3)
    image = torch.rand(1, 3, 5, 8)
    padded = pad_to(image, 4)
    assert padded.shape == (1, 3, 8, 8)
    assert torch.equal(padded[..., :5, :], image)
    assert torch.equal(padded[..., 7, :], image[..., 4, :])
    assert pad_to(padded, 4) is padded


def test_elbo_is_the_closed_form():
    net = TinyAutoencoder(**SMALL, variational=True, trains=("encoder", "decoder"))
    image = torch.rand(3, 3, 8, 8)
    noise = draw(net, image)
    log_likelihood, kl = net.elbo(image, noise, pixel_std=0.3)
    mean, log_variance = net.encode(image)
    assert mean.shape == log_variance.shape == (3, 4, 2, 2)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    prior = torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(posterior, prior).flatten(1).sum(1)
    torch.testing.assert_close(kl, expected)
    decoded = net.decode(mean + posterior.scale * noise["latent"], image.shape)
    pixels = torch.distributions.Normal(decoded, 0.3)
    torch.testing.assert_close(log_likelihood, pixels.log_prob(image).flatten(1).sum(1))
    (kl - log_likelihood).mean().backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is not None) == (name != "noise_log_std")


def test_a_net_without_variances_has_no_elbo():
    net = TinyAutoencoder(**SMALL)
    image = torch.rand(1, 3, 8, 8)
    with pytest.raises(ValueError, match="variational = false"):
        net.elbo(image, draw(net, image))


def test_a_small_vae_learns_digits_and_is_saved_whole(tmp_path):
    from sklearn.datasets import load_digits

    image = torch.from_numpy(load_digits().images).float()[:, None] / 16
    options = {**SMALL, "channels": 1, "num_levels": 1, "wide_norm": False, "variational": True}
    net = TinyAutoencoder(**options, trains=("encoder", "decoder"))
    optimizer = torch.optim.Adam((p for p in net.parameters() if p.requires_grad), lr=6e-3)
    bounds = []
    for step in range(80):
        batch = image[torch.arange(step * 64, (step + 1) * 64) % 1600]
        log_likelihood, kl = net.elbo(batch, draw(net, batch))
        loss = (kl - log_likelihood).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bounds.append(-loss.item())
    other = TinyAutoencoder(**options)
    other.load(save_weights(net, tmp_path / "vae.safetensors"))
    held = image[1600:]
    noise = draw(net, held)
    with torch.no_grad():
        found = other(held, noise)
        torch.testing.assert_close(found, net(held, noise))
        is_better = psnr_db(found, held) > psnr_db(image[:1600].mean(0).expand_as(held), held)
    assert bounds[-1] > bounds[0] + 400
    assert is_better.float().mean() > 0.9


def test_half_a_pair_of_files_is_refused(tmp_path):
    net = TinyAutoencoder(**SMALL)
    encoder = save_weights(net.encoder, tmp_path / "encoder.safetensors")
    with pytest.raises(ValueError, match="does not fit the network"):
        net.load(encoder, encoder)
    with pytest.raises(ValueError, match="3 files: expected encoder and decoder, or one of all"):
        net.load(encoder, encoder, encoder)


def test_a_pair_of_files_leaves_the_noise_and_a_whole_one_brings_its_own(tmp_path):
    source, image = TinyAutoencoder(**SMALL, noise_std=0.1), torch.rand(2, 3, 8, 8)
    pair = [
        save_weights(part, tmp_path / f"{i}.safetensors")
        for i, part in enumerate((source.encoder, source.decoder))
    ]
    net = TinyAutoencoder(**SMALL, noise_std=0.5)
    net.load(*pair)
    torch.testing.assert_close(net.noise_log_std.exp(), torch.full((4,), 0.5))
    assert torch.equal(net.encode(image)[0], source.encode(image)[0])
    net.load(save_weights(source, tmp_path / "whole.safetensors"))
    noise = draw(net, image)
    assert torch.equal(net(image, noise), source(image, noise))


def test_real_weights_reconstruct_real_photos(real_data):
    net = pretrained(real_data)
    photos = [open_photo(real_data / "caltech25/val" / name) for name in PHOTOS]
    image = torch.cat(photos).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        found = psnr_db(net(image, draw(net, image)), image)
    assert found.min() > 23 and found.max() < 36


def test_real_weights_reconstruct_enlarged_cifar(real_data):
    image = read_cifar(real_data, 8)
    found = {}
    for enlarge in (1, 2, 4):
        net = pretrained(real_data, enlarge=enlarge)
        with torch.no_grad():
            found[enlarge] = psnr_db(net(image, draw(net, image)), image).mean()
    # Measured on 64 images: 23.8, 31.3 and 36.1 dB.
    assert found[4] > 35 > found[2] > 29 > found[1]


def test_real_grey_pictures_and_visible_noise(real_data):
    net = pretrained(real_data, enlarge=2)
    image = read_cifar(real_data, 4).mean(1, keepdim=True)
    noise = draw(net, image)
    with torch.no_grad():
        plain = net(image, noise)
        net.noise_log_std.fill_(math.log(0.8))
        noisy = net(image, noise)
    assert plain.shape == image.shape
    assert psnr_db(plain, image).min() > 25
    assert psnr_db(noisy, image).max() < 25
    # What changes is larger than a pixel: noise in the latent is no noise in the picture.
    change = noisy - plain
    assert F.avg_pool2d(change, 4).std() > 0.4 * change.std()

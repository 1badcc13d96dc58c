"""RQ-VAE: the published layout, values worked out from the names alone, straight-through codes."""

import copy

import pytest
import torch
from torch.nn import functional as F

from hard_fast.bank import AugmentorBank, BankConfig
from hard_fast.models.rqvae import Quantizer, RqVae

SMALL = {
    "width": 8,
    "multipliers": (1, 2),
    "num_blocks": 1,
    "latent": 6,
    "num_codes": 12,
    "depth": 3,
    "norm_groups": 4,
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def draw(net, image):
    shapes = net.noise_shapes(len(image), *image.shape[-2:])
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def published_keys():
    """Names and shapes in a file of in256-rqvae-8x8x4, worked out from its configuration."""
    keys = {}

    def conv(name, inner, outer, side):
        keys[f"{name}.weight"], keys[f"{name}.bias"] = (outer, inner, side, side), (outer,)

    def norm(name, width):
        keys[f"{name}.weight"] = keys[f"{name}.bias"] = (width,)

    def block(name, inner, outer):
        norm(f"{name}.norm1", inner)
        conv(f"{name}.conv1", inner, outer, 3)
        norm(f"{name}.norm2", outer)
        conv(f"{name}.conv2", outer, outer, 3)
        if inner != outer:
            conv(f"{name}.nin_shortcut", inner, outer, 1)

    def attention(name, width):
        norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", width, width, 1)

    widths = (128, 128, 256, 256, 512, 512)
    for half, levels, num_blocks in (("encoder", "down", 2), ("decoder", "up", 3)):
        is_encoder = half == "encoder"
        conv(f"{half}.conv_in", 3 if is_encoder else 256, 128 if is_encoder else 512, 3)
        inner = widths[0 if is_encoder else -1]
        for i in range(6) if is_encoder else range(5, -1, -1):
            for j in range(num_blocks):
                block(f"{half}.{levels}.{i}.block.{j}", inner, widths[i])
                inner = widths[i]
                if i == 5:
                    attention(f"{half}.{levels}.{i}.attn.{j}", widths[i])
            if is_encoder and i < 5:
                conv(f"encoder.down.{i}.downsample.conv", widths[i], widths[i], 3)
            if not is_encoder and i > 0:
                conv(f"decoder.up.{i}.upsample.conv", widths[i], widths[i], 3)
        block(f"{half}.mid.block_1", 512, 512)
        attention(f"{half}.mid.attn_1", 512)
        block(f"{half}.mid.block_2", 512, 512)
        norm(f"{half}.norm_out", 512 if is_encoder else 128)
        conv(f"{half}.conv_out", 512 if is_encoder else 128, 256 if is_encoder else 3, 3)
    for depth in range(4):
        keys[f"quantizer.codebooks.{depth}.weight"] = (16_385, 256)
        keys[f"quantizer.codebooks.{depth}.cluster_size_ema"] = (16_384,)
        keys[f"quantizer.codebooks.{depth}.embed_ema"] = (16_384, 256)
    conv("quant_conv", 256, 256, 1)
    conv("post_quant_conv", 256, 256, 1)
    return keys


def test_full_size_has_the_published_names_shapes_and_counts():
    with torch.device("meta"):
        net = RqVae()
    found = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    assert found.pop("noise.log_std") == (256,)
    assert len(found) == 398
    assert found == published_keys()
    assert sum(p.numel() for p in net.parameters()) == 104_402_051 + 256
    assert sum(p.numel() for p in net.encoder.parameters()) == 41_101_312
    assert sum(p.numel() for p in net.decoder.parameters()) == 58_974_595
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 100_207_491 + 256
    assert net.noise_shapes(2, 224, 224) == {"latent": (2, 256, 7, 7)}


def plain_reading(state, image, widths=2, num_blocks=1, groups=4):
    """The small network's reconstruction, from its tensors by name and nothing of its code."""

    def conv(x, name, **options):
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **options)

    def norm(x, name):
        parts = x.reshape(len(x), groups, -1)
        centred = parts - parts.mean(2, keepdim=True)
        parts = centred / (centred.square().mean(2, keepdim=True) + 1e-6).sqrt()
        scale, shift = (state[f"{name}.{end}"].view(1, -1, 1, 1) for end in ("weight", "bias"))
        return parts.reshape(x.shape) * scale + shift

    def swish(x):
        return x * torch.sigmoid(x)

    def block(x, name):
        y = conv(swish(norm(x, f"{name}.norm1")), f"{name}.conv1", padding=1)
        y = conv(swish(norm(y, f"{name}.norm2")), f"{name}.conv2", padding=1)
        is_wider = f"{name}.nin_shortcut.weight" in state
        return y + (conv(x, f"{name}.nin_shortcut") if is_wider else x)

    def attention(x, name):
        q, k, v = (conv(norm(x, f"{name}.norm"), f"{name}.{part}") for part in "qkv")
        weight = torch.einsum("bcij,bckl->bijkl", q, k) / x.shape[1] ** 0.5
        weight = weight.flatten(3).softmax(-1).view(weight.shape)
        return x + conv(torch.einsum("bijkl,bckl->bcij", weight, v), f"{name}.proj_out")

    def level(x, name, num, attends):
        for j in range(num):
            x = block(x, f"{name}.block.{j}")
            x = attention(x, f"{name}.attn.{j}") if attends else x
        return x

    def middle(x, name):
        x = attention(block(x, f"{name}.mid.block_1"), f"{name}.mid.attn_1")
        return block(x, f"{name}.mid.block_2")

    x = conv(image * 2 - 1, "encoder.conv_in", padding=1)
    x = level(x, "encoder.down.0", num_blocks, attends=False)
    x = conv(F.pad(x, (0, 1, 0, 1)), "encoder.down.0.downsample.conv", stride=2)
    x = middle(level(x, "encoder.down.1", num_blocks, attends=True), "encoder")
    x = conv(swish(norm(x, "encoder.norm_out")), "encoder.conv_out", padding=1)
    left = conv(x, "quant_conv").permute(0, 2, 3, 1)
    total = torch.zeros_like(left)
    for depth in range(3):
        codes = state[f"quantizer.codebooks.{depth}.weight"][:-1]
        chosen = codes[(left[..., None, :] - codes).square().sum(-1).argmin(-1)]
        left, total = left - chosen, total + chosen
    x = conv(total.permute(0, 3, 1, 2), "post_quant_conv")
    x = middle(conv(x, "decoder.conv_in", padding=1), "decoder")
    x = level(x, "decoder.up.1", num_blocks + 1, attends=True)
    x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    x = conv(x, "decoder.up.1.upsample.conv", padding=1)
    x = level(x, "decoder.up.0", num_blocks + 1, attends=False)
    x = conv(swish(norm(x, "decoder.norm_out")), "decoder.conv_out", padding=1)
    return x / 2 + 0.5


@torch.no_grad()
def stirred(net):
    """The network with no layer left at a start that hides it, and codes near its latents."""
    for name, parameter in net.named_parameters():
        if "norm" in name:
            parameter += 0.3 * torch.randn_like(parameter)
    net.quantizer.codebooks[0].weight[:-1] *= 0.5
    return net


@pytest.mark.parametrize("channels_last", [False, True])
def test_values_follow_from_the_names_alone(channels_last):
    net = stirred(RqVae(**SMALL, noise_std=1e-12))
    image = torch.rand(3, 3, 8, 12)
    with torch.no_grad():
        expected = plain_reading(net.state_dict(), image).clamp(0, 1)
        if channels_last:
            net = net.to(memory_format=torch.channels_last)
            image = image.contiguous(memory_format=torch.channels_last)
        found = net(image, draw(net, image))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found.min() >= 0 and found.max() <= 1 and found.std() > 0.05


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_every_size_and_grey_pictures_come_back_in_bounds(channels, size):
    net = RqVae(**SMALL)
    with torch.no_grad():
        net.decoder.conv_out.weight *= 100
    image = torch.rand(2, channels, *size)
    found = net(image, draw(net, image))
    assert found.shape == image.shape and found.dtype == torch.float32
    assert found.min() == 0 and found.max() == 1


@pytest.mark.parametrize("depth", [1, 4])
def test_codes_are_the_nearest_to_what_is_left(depth):
    quantizer = Quantizer(num_codes=20, latent=5, depth=depth)
    z = torch.randn(2, 5, 3, 4)
    codes = quantizer.codebooks[0].weight.detach()[:-1]
    left = z.permute(0, 2, 3, 1).reshape(-1, 5).clone()
    found = quantizer.find_codes(z)
    assert found.shape == (2, 12, depth) and found.max() < 20
    for i in range(depth):
        chosen = found[..., i].flatten()
        assert torch.equal(chosen, torch.cdist(left, codes).argmin(1))
        left = left - codes[chosen]
    expected = z - left.view(2, 3, 4, 5).permute(0, 3, 1, 2)
    torch.testing.assert_close(quantizer(z), expected)


def test_deeper_quantisation_is_closer():
    z = 0.5 * torch.randn(4, 5, 6, 6)
    quantizer = Quantizer(num_codes=200, latent=5, depth=4)
    with torch.no_grad():
        quantizer.codebooks[0].weight *= torch.linspace(0.05, 1, 201)[:, None]
        errors = []
        for depth in (1, 2, 4):
            shallow = Quantizer(num_codes=200, latent=5, depth=depth)
            shallow.codebooks[0].load_state_dict(quantizer.codebooks[0].state_dict())
            errors.append((shallow(z) - z).square().mean())
    assert errors[0] > errors[1] > errors[2]


def test_the_quantiser_passes_gradients_unchanged():
    quantizer = Quantizer(num_codes=7, latent=5, depth=2).requires_grad_(False)
    z, weight = torch.randn(2, 5, 3, 3, requires_grad=True), torch.randn(2, 5, 3, 3)
    (quantizer(z) * weight).sum().backward()
    assert torch.equal(z.grad, weight)


@pytest.mark.parametrize("noise_at", ["before", "after"])
def test_noise_goes_to_its_side_of_the_quantiser(noise_at):
    net = RqVae(**SMALL, noise_at=noise_at, noise_std=0.7)
    image = torch.rand(2, 3, 8, 8)
    noise = draw(net, image)
    with torch.no_grad():
        z = net.encode(image)
        moved = 0.7 * noise["latent"]
        z = net.quantizer(z + moved) if noise_at == "before" else net.quantizer(z) + moved
        expected = net.decode(z, image.shape).clamp(0, 1)
        torch.testing.assert_close(net(image, noise), expected)


@pytest.mark.parametrize("noise_at", ["before", "after"])
@pytest.mark.parametrize(
    ("trains", "prefixes"),
    [
        (
            ("noise", "encoder", "decoder"),
            ("noise.", "encoder.", "quant_conv.", "decoder.", "post_quant_conv."),
        ),
        (("noise",), ("noise.",)),
        (("decoder",), ("decoder.", "post_quant_conv.")),
    ],
)
def test_gradient_reaches_what_trains_and_the_image_and_nothing_else(noise_at, trains, prefixes):
    net = stirred(RqVae(**SMALL, noise_at=noise_at, noise_std=0.5, trains=trains))
    image = torch.rand(2, 3, 8, 8, requires_grad=True)
    (net(image, draw(net, image)) * torch.randn(2, 3, 8, 8)).sum().backward()
    assert image.grad.abs().sum() > 0
    for name, parameter in net.named_parameters():
        has_gradient = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert has_gradient == parameter.requires_grad == name.startswith(prefixes), name


def test_a_choice_that_is_none_is_named():
    with pytest.raises(ValueError, match=r"trains = \['quantizer'\]: choose from noise, encoder"):
        RqVae(**SMALL, trains=("quantizer",))
    with pytest.raises(ValueError, match="noise_at = 'during': choose before or after"):
        RqVae(**SMALL, noise_at="during")


def test_a_bank_keeps_what_trains_and_nothing_else(tmp_path):
    net = stirred(RqVae(**SMALL, noise_std=0.5))
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
@pytest.mark.parametrize("noise_at", ["before", "after"])
def test_compiles_to_one_graph_with_the_same_result(backend, noise_at):
    net = stirred(RqVae(**SMALL, noise_at=noise_at)).to(memory_format=torch.channels_last)
    image = torch.rand(2, 3, 7, 8).contiguous(memory_format=torch.channels_last)
    noise, weight = draw(net, image), torch.randn(2, 3, 7, 8)

    def run(call):
        net.zero_grad()
        found = call(image, noise)
        (found * weight).sum().backward()
        return [found.detach(), *(p.grad.clone() for p in net.parameters() if p.requires_grad)]

    compiled = torch.compile(net, backend=backend, fullgraph=True)
    for found, expected in zip(run(compiled), run(net), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_codes_do_not_depend_on_autocast():
    net = stirred(RqVae(**SMALL))
    z = torch.randn(2, 6, 16, 16)
    expected = net.quantizer.find_codes(z)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net.quantizer.find_codes(z), expected)
        image = torch.rand(2, 3, 8, 8)
        assert net(image, draw(net, image)).dtype == torch.float32


@pytest.mark.parametrize("entries", [("state_dict",), ("state_dict", "state_dict_ema")])
def test_a_file_in_the_published_form_is_loaded(tmp_path, entries):
    nets = {entry: stirred(RqVae(**SMALL)) for entry in entries}
    content = {"epoch": 10, "optimizer": {"state": {}, "param_groups": [{"lr": 4e-5}]}}
    for entry, source in nets.items():
        weights = source.state_dict()
        del weights["noise.log_std"]
        content[entry] = weights
    torch.save(content, tmp_path / "model.pt")
    net = RqVae(**SMALL, noise_std=0.25)
    net.load(tmp_path / "model.pt")
    torch.testing.assert_close(net.noise.log_std.exp(), torch.full((6,), 0.25))
    expected = nets[entries[-1]].state_dict()
    for name, value in net.state_dict().items():
        assert name == "noise.log_std" or torch.equal(value, expected[name]), name
    # One codebook still: what changes at one depth changes at all.
    assert len({id(book.weight) for book in net.quantizer.codebooks}) == 1


def test_a_file_of_another_size_is_refused(tmp_path):
    torch.save({"state_dict": RqVae(**SMALL).state_dict()}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="does not fit the network"):
        RqVae(**{**SMALL, "latent": 8}).load(tmp_path / "model.pt")


@pytest.mark.slow
def test_full_size_makes_224_px_pictures_with_gradients():
    net = RqVae(noise_at="before").to(memory_format=torch.channels_last)
    image = torch.rand(1, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    assert net.encode(image).shape == (1, 256, 7, 7)
    found = net(image, draw(net, image))
    assert found.shape == image.shape
    (found * torch.randn_like(found)).sum().backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)

"""The very deep variational autoencoder of CIFAR-10, whose posteriors HARD-VAE trains.

An encoder keeps its last activations at every resolution. The decoder goes from one pixel up to the
picture; each block adds a latent drawn from a posterior, read from the picture, beside its prior.
Letters: B images, C channels, H rows, W columns, R side of a feature map in pixels, D width,
Z latent channels, K components of a mixture, P parameters of a pixel's mixture.
"""

import math
import re
from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hard_fast.models.tiny_autoencoder import clamp_pixels

# Annotations of the options are what a config's values are checked against.
Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0.0)]
Sigma = Literal["exp", "elu"]

CIFAR10_ENCODER = "32x11,32d2,16x6,16d2,8x6,8d2,4x3,4d4,1x3"
CIFAR10_DECODER = "1x1,4m1,4x2,8m4,8x5,16m8,16x10,32m16,32x21"
_MIN_LOG_SCALE = -7.0  # As published, like the next, which keeps Gumbel and logistic noise finite.
_MIN_UNIFORM = 1e-5


class Elbo(NamedTuple):
    """Minus the evidence lower bound, [B] fp32 each, bits per dimension.

    rate_B:       KL(posterior || prior) of all latents, by the ones drawn.
    distortion_B: minus the log-likelihood of the 8-bit picture.
    """

    rate_B: Tensor
    distortion_B: Tensor


class Block(nn.Module):
    """Four convolutions with a GELU before each: 1x1, 3x3, 3x3, 1x1.

    Args:    side: of the feature map, px; at 1 and 2 px the inner convolutions are 1x1 too.
             is_residual: add the input.
    """

    def __init__(
        self, in_width: int, middle: int, out_width: int, side: int, is_residual: bool = False
    ) -> None:
        super().__init__()
        self.is_residual = is_residual
        inner, padding = (3, 1) if side > 2 else (1, 0)
        self.c1 = nn.Conv2d(in_width, middle, 1)
        self.c2 = nn.Conv2d(middle, middle, inner, padding=padding)
        self.c3 = nn.Conv2d(middle, middle, inner, padding=padding)
        self.c4 = nn.Conv2d(middle, out_width, 1)

    def forward(self, x_BDRR: Tensor) -> Tensor:
        """The block's output, [B,out_width,R,R]."""
        y = x_BDRR
        for conv in (self.c1, self.c2, self.c3, self.c4):
            y = conv(F.gelu(y))
        return x_BDRR + y if self.is_residual else y


class Encoder(nn.Module):
    """The picture's features at every resolution of the block string."""

    def __init__(self, blocks: str, width: int, middle: int, channels: int) -> None:
        super().__init__()
        self.in_conv = nn.Conv2d(channels, width, 3, padding=1)
        self.enc_blocks = nn.ModuleList()
        self.downs: list[int] = []
        self.image_px = here = next(_parse(blocks, "d"))[0]
        self.sides = {here}
        for side, kind, number in _parse(blocks, "d"):
            down = number if kind == "d" else 1
            if side != here or side % down:
                raise ValueError(f"enc_blocks = {blocks!r}: {side}{kind}{number} after {here} px")
            here = side // down
            self.enc_blocks.append(Block(width, middle, width, side, is_residual=True))
            self.downs.append(down)
            self.sides.add(here)
        for block in self.enc_blocks:
            _scale(block.c4, len(self.enc_blocks))

    def forward(self, x_BCHW: Tensor, checkpointing: bool) -> dict[int, Tensor]:
        """The last activations at each side, [B,D,R,R] by R."""
        x = self.in_conv(x_BCHW)
        found = {self.image_px: x}
        for block, down in zip(self.enc_blocks, self.downs, strict=True):
            x = _run(block, x, checkpointing=checkpointing)
            x = x if down == 1 else F.avg_pool2d(x, down)
            found[x.shape[-1]] = x
        return found


class DecBlock(nn.Module):
    """One latent of the decoder: its posterior `enc`, its `prior`, and what follows from it.

    Args:    below: side of the features that are enlarged and added first, px, or None.
    """

    def __init__(
        self, side: int, below: int | None, sigma: Sigma, width: int, middle: int, zdim: int
    ) -> None:
        super().__init__()
        self.zdim, self.side, self.below, self.sigma = zdim, side, below, sigma
        self.enc = Block(2 * width, middle, 2 * zdim, side)
        self.prior = Block(width, middle, 2 * zdim + width, side)
        self.z_proj = nn.Conv2d(zdim, width, 1)
        self.resnet = Block(width, middle, width, side, is_residual=True)
        nn.init.zeros_(self.prior.c4.weight)

    def forward(
        self, x_BDRR: Tensor, seen_BDRR: Tensor, normal_BZRR: Tensor, has_rate: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The features with the latent in them, and its KL in nats ([B], None if not wanted)."""
        mean, raw = self.enc(torch.cat([x_BDRR, seen_BDRR], dim=1)).float().chunk(2, dim=1)
        log_std = _log_std(raw, self.sigma)
        prior, expected = self.prior(x_BDRR).split([2 * self.zdim, x_BDRR.shape[1]], dim=1)
        z = mean + log_std.exp() * normal_BZRR
        x = self.resnet(x_BDRR + expected + self.z_proj(z))
        if not has_rate:
            return x, None
        prior_mean, raw = prior.float().chunk(2, dim=1)
        prior_log_std = _log_std(raw, self.sigma)
        squared = (2 * log_std).exp() + (mean - prior_mean).square()
        kl = prior_log_std - log_std - 0.5 + 0.5 * squared * (-2 * prior_log_std).exp()
        return x, kl.sum(dim=(1, 2, 3))


class LogisticMixture(nn.Module):
    """The last layer: for each pixel a mixture of logistics, whose colours depend on one another.

    Values lie in [-1,1]. Green's mean moves with red, blue's with red and green. With one channel
    nothing depends on anything, and those coefficients are left out.
    Source:  Salimans et al. 2017, arXiv:1701.05517, section 2.
    """

    def __init__(self, width: int, channels: int, num_mixtures: int, sigma: Sigma) -> None:
        super().__init__()
        self.channels, self.num_mixtures, self.sigma = channels, num_mixtures, sigma
        self.kinds = 3 if channels == 3 else 2
        self.out_conv = nn.Conv2d(width, num_mixtures * (1 + self.kinds * channels), 1)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """The mixtures' parameters, [B,P,H,W] fp32."""
        return self.out_conv(x_BDHW).float()

    def _split(self, params_BPHW: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Log-odds of the components [B,K,H,W]; means, log-scales and coefficients [B,C,K,H,W]."""
        k = self.num_mixtures
        parts = params_BPHW[:, k:].unflatten(1, (self.channels, self.kinds * k))
        parts = parts.split(k, dim=2)
        coeffs = parts[2].tanh() if self.channels == 3 else None
        return params_BPHW[:, :k], parts[0], parts[1], coeffs

    def mean(self, params_BPHW: Tensor) -> Tensor:
        """The expected picture, [B,C,H,W]."""
        logits, means, _, coeffs = self._split(params_BPHW)
        means = _chained(means, coeffs, None)
        return (means * logits.softmax(dim=1).unsqueeze(1)).sum(dim=2)

    def sample(self, params_BPHW: Tensor, mixture_BKHW: Tensor, pixel_BCHW: Tensor) -> Tensor:
        """A picture, [B,C,H,W], differentiable: a soft choice of components at temperature 1.

        Args:    mixture_BKHW, pixel_BCHW: standard normal.
        Source:  ArneNx/vdvae, the HARD authors' fork: no clamps between the channels.
        """
        logits, means, log_scales, coeffs = self._split(params_BPHW)
        u = _uniform(mixture_BKHW)
        chosen = (logits - (-u.log()).log()).softmax(dim=1).unsqueeze(1)
        log_scale = (log_scales * chosen).sum(dim=2).clamp(min=_MIN_LOG_SCALE)
        u = _uniform(pixel_BCHW)
        x = (means * chosen).sum(dim=2)
        x = x + _log_std(log_scale, self.sigma).exp() * (u.log() - (1 - u).log())
        coeffs = None if coeffs is None else (coeffs * chosen).sum(dim=2)
        return _chained(x, coeffs, None)

    def nll(self, params_BPHW: Tensor, x_BCHW: Tensor) -> Tensor:
        """Minus the log-likelihood of 8-bit pictures, [B] nats.

        The probability of a value is that of its bin, sigmoid(a) - sigmoid(b), and the lowest and
        the highest bin have no end. Its logarithm is
        log sigmoid(a) + log sigmoid(-b) + log(1 - exp(b - a)), which never cancels out.
        """
        logits, means, log_scales, coeffs = self._split(params_BPHW)
        x = x_BCHW.unsqueeze(2)
        means = _chained(means, coeffs, x)
        inverse = (-_log_std(log_scales.clamp(min=_MIN_LOG_SCALE), self.sigma)).exp()
        above = F.logsigmoid(inverse * (x - means + 1 / 255))
        below = F.logsigmoid(-inverse * (x - means - 1 / 255))
        inside = above + below + (-torch.expm1(inverse * (-2 / 255))).log()
        log_prob = torch.where(x > 0.999, below, torch.where(x < -0.999, above, inside))
        log_prob = log_prob.sum(dim=1) + logits.log_softmax(dim=1)
        return -log_prob.logsumexp(dim=1).sum(dim=(1, 2))


class Decoder(nn.Module):
    """From one pixel to the picture, a latent per block.

    Args:    sides: those at which there are activations of the encoder, px.
             out_net: the last layer; its `sigma` is the latents' too.
             sizes: width, middle and zdim of every block.
    """

    def __init__(
        self, blocks: str, sides: set[int], out_net: LogisticMixture, **sizes: int
    ) -> None:
        super().__init__()
        self.dec_blocks = nn.ModuleList()
        made: set[int] = set()
        for side, kind, number in _parse(blocks, "m"):
            below = number if kind == "m" else None
            if side not in sides or (below is not None and (below not in made or side % below)):
                raise ValueError(
                    f"dec_blocks = {blocks!r}: {side}{kind}{number} cannot be made; the encoder "
                    f"gives {sorted(sides)} px, the blocks before {sorted(made)} px"
                )
            block = DecBlock(side, below, out_net.sigma, **sizes)
            self.dec_blocks.append(block)
            made.add(side)
        if block.side != max(sides):
            raise ValueError(f"dec_blocks = {blocks!r}: must end at the picture's {max(sides)} px")
        for block in self.dec_blocks:
            _scale(block.z_proj, len(self.dec_blocks))
            _scale(block.resnet.c4, len(self.dec_blocks))
        width = sizes["width"]
        self.bias_xs = nn.ParameterList(torch.zeros(1, width, r, r) for r in sorted(made))
        self.gain = nn.Parameter(torch.ones(1, width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, width, 1, 1))
        self.out_net = out_net

    def forward(
        self, seen: dict[int, Tensor], noise: dict[str, Tensor], has_rate: bool, checkpointing: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """The pixels' mixtures, [B,P,H,W], and each latent's KL if wanted, [B] nats."""
        at, rates = {}, []
        for start in self.bias_xs:
            side = start.shape[-1]
            start = start.expand(len(seen[side]), -1, -1, -1)
            at[side] = start.contiguous(memory_format=torch.channels_last)
        for i, block in enumerate(self.dec_blocks):
            x, side = at[block.side], block.side
            if block.below is not None:
                x = x + F.interpolate(at[block.below], scale_factor=side // block.below)
            args = (x, seen[side], noise[f"z{i}"], has_rate)
            at[side], rate = _run(block, *args, checkpointing=checkpointing)
            rates += [] if rate is None else [rate]
        return self.out_net(at[side] * self.gain + self.bias), rates


class VDVAE(nn.Module):
    """A very deep VAE, layer for layer the published CIFAR-10 one: 39,145,700 parameters.

    Published files load as they are with `load_weights`, names and shapes being theirs. Started
    from one, it gives back the picture it is given: latents come from the posteriors, never the
    prior, and by default the output is the mean of the pixels' mixtures. A draw from them adds
    noise that HARD does not train; it was 4 dB further from the picture on digits.

    Args:    enc_blocks, dec_blocks: "32x11" is eleven blocks at 32 px, "32d2" one that halves
             them, "32m16" one that starts with what stands at 16 px.
             width: of all features. bottleneck: share of it inside a block. zdim: of a latent.
             num_mixtures: logistics of a pixel. input_mean, input_std: of its input, of 255.
             sigma: how a standard deviation comes from the network's output: "exp", as published,
             or "elu", elu + 1, the HARD authors', the same up to 1; here likelihoods follow it.
             output: "mean" of the mixtures, or "sample" from them, as HARD's authors do.
             train_from_block: the first decoder block whose posterior trains, all else being
             frozen; None trains everything.
             checkpointing: compute a block's activations again in the backward pass; of the full
             network 66 MB an image are kept then, else 492 MB (eager, fp32).
    Raises:  ValueError if block strings do not fit together or nothing would train.
    Source:  Child, arXiv:2011.10650; openai/vdvae@43312d8. What trains is HARD's for CIFAR-10, its
             "layer 10" counted from 0: the first block at 16 px.
    """

    def __init__(
        self,
        enc_blocks: str = CIFAR10_ENCODER,
        dec_blocks: str = CIFAR10_DECODER,
        width: Count = 384,
        zdim: Count = 16,
        bottleneck: Positive = 0.25,
        num_mixtures: Count = 10,
        channels: Literal[1, 3] = 3,
        input_mean: float = 120.63838,
        input_std: Positive = 64.16736,
        sigma: Sigma = "exp",
        output: Literal["mean", "sample"] = "mean",
        train_from_block: Index | None = 10,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        middle = max(1, int(width * bottleneck))
        self.input_mean, self.input_std = input_mean, input_std
        self.output, self.checkpointing = output, checkpointing
        self.encoder = Encoder(enc_blocks, width, middle, channels)
        self.image_px = self.encoder.image_px
        out_net = LogisticMixture(width, channels, num_mixtures, sigma)
        sizes = {"width": width, "middle": middle, "zdim": zdim}
        self.decoder = Decoder(dec_blocks, self.encoder.sides, out_net, **sizes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.zeros_(module.bias)
        if train_from_block is not None:
            last = len(self.decoder.dec_blocks) - 1
            if train_from_block > last:
                raise ValueError(f"train_from_block = {train_from_block}: the last block is {last}")
            self.requires_grad_(False)
            for block in self.decoder.dec_blocks[train_from_block:]:
                block.enc.requires_grad_(True)

    def noise_shapes(self, num: int, height: int, width: int) -> dict[str, torch.Size]:
        """What `forward` and `elbo` read, standard normal: each block's latent, the output's.

        Raises:  ValueError if the network is not for pictures of this size.
        """
        if (height, width) != (self.image_px, self.image_px):
            raise ValueError(f"enc_blocks: for {self.image_px} px, given {height} x {width}")
        shapes = {
            f"z{i}": torch.Size((num, block.zdim, block.side, block.side))
            for i, block in enumerate(self.decoder.dec_blocks)
        }
        if self.output == "sample":
            net = self.decoder.out_net
            shapes["mixture"] = torch.Size((num, net.num_mixtures, height, width))
            shapes["pixel"] = torch.Size((num, net.channels, height, width))
        return shapes

    def forward(self, image_BCHW: Tensor, noise: dict[str, Tensor]) -> Tensor:
        """Pictures made anew from those given, both float in [0,1]; channels_last."""
        net, (params, _) = self.decoder.out_net, self._decode(image_BCHW, noise, has_rate=False)
        if self.output == "mean":
            x = net.mean(params)
        else:
            x = net.sample(params, noise["mixture"], noise["pixel"])
        return clamp_pixels((x + 1) / 2).contiguous(memory_format=torch.channels_last)

    def elbo(self, image_BCHW: Tensor, noise: dict[str, Tensor]) -> Elbo:
        """What it costs to transmit the pictures; the sum of both parts is a VAE's loss."""
        params, rates = self._decode(image_BCHW, noise, has_rate=True)
        per_dim = 1 / (math.log(2) * image_BCHW[0].numel())
        distortion_B = self.decoder.out_net.nll(params, image_BCHW.float() * 2 - 1)
        return Elbo(torch.stack(rates).sum(dim=0) * per_dim, distortion_B * per_dim)

    def _decode(
        self, image_BCHW: Tensor, noise: dict[str, Tensor], has_rate: bool
    ) -> tuple[Tensor, list[Tensor]]:
        x = (image_BCHW * 255 - self.input_mean) / self.input_std
        seen = self.encoder(x.contiguous(memory_format=torch.channels_last), self.checkpointing)
        return self.decoder(seen, noise, has_rate, self.checkpointing)


def _parse(blocks: str, mark: str) -> Iterator[tuple[int, str, int]]:
    """Side, kind ("x" or the mark) and number of each block; one with "x" as often as it says."""
    for part in blocks.split(","):
        if (found := re.fullmatch(rf"([1-9]\d*)([x{mark}])([1-9]\d*)", part)) is None:
            raise ValueError(f"{part!r} in {blocks!r}: expected like 32x11 or 32{mark}2")
        side, kind, number = int(found[1]), found[2], int(found[3])
        for _ in range(number if kind == "x" else 1):
            yield side, kind, number


def _scale(conv: nn.Conv2d, num_blocks: int) -> None:
    """Shrink what one of many blocks adds, so that their sum starts at the same size."""
    with torch.no_grad():
        conv.weight.mul_(num_blocks**-0.5)


def _run(block: nn.Module, *args, checkpointing: bool):
    if checkpointing:
        return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False)
    return block(*args)


def _log_std(raw: Tensor, sigma: Sigma) -> Tensor:
    """log(exp(raw)) or log(elu(raw) + 1); the latter has a gradient at 0, where training starts."""
    return raw if sigma == "exp" else torch.where(raw > 0, raw.clamp(min=0).log1p(), raw)


def _uniform(normal: Tensor) -> Tensor:
    return torch.special.ndtr(normal.float()).clamp(_MIN_UNIFORM, 1 - _MIN_UNIFORM)


def _chained(x: Tensor, coeffs: Tensor | None, given: Tensor | None) -> Tensor:
    """x [B,C,...] with green moved by red, and blue by both: by those given, else by its own."""
    if coeffs is None:
        return x
    red, green, blue = x.unbind(1)
    by_red, blue_by_red, blue_by_green = coeffs.unbind(1)
    r = red if given is None else given[:, 0]
    green = green + by_red * r
    g = green if given is None else given[:, 1]
    return torch.stack([red, green, blue + blue_by_red * r + blue_by_green * g], dim=1)

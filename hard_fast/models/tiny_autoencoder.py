"""A small convolutional autoencoder: the fast generator of HARD-VAE, and a VAE to train oneself.

Letters: B images, C channels, H rows, W columns, D channels of the latent, h, w its rows, columns.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from hard_fast.models.weights import load_weights

# Annotations of the constructors' options are what a config's values are checked against.
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0.0)]
Part = Literal["noise", "encoder", "decoder"]
_LATENT_MAX = 3.0
_NORM_GROUPS = 4


class TinyAutoencoder(nn.Module):
    """Encoder, learned Gaussian noise on the latent, decoder: images in [0,1] to such images.

    The noise's standard deviation is one number per latent channel, learned as its logarithm. It
    starts at `noise_std`, too small to be seen, so an untouched network only reconstructs. Sizes
    are free: a picture is padded at its right and bottom to whole latent pixels, and cut again.

    Args:    channels: of the pictures it was trained on; grey ones are repeated to them, and the
             result averaged back. width: of every inner layer. latent: D. num_levels: times the
             picture is halved. num_blocks: blocks at each size. wide_norm: at the latent's size,
             blocks that also see means over the picture. variational: the encoder gives mean and
             log-variance, as `elbo` wants; images are made from the mean.
             enlarge: work on the picture enlarged so many times: a net for photos is at a loss
             with 32 px. noise_std: at the start; pretrained latents have a std of about 0.8.
             trains: parts whose parameters require gradients; by default not the encoder.
    Raises:  ValueError for an unknown part.
    Source:  defaults are the network of madebyollin/taesd for the latents of FLUX.2 (MIT): layers
             are numbered as in its files. Noise, padding and what `variational` adds are ours.
    """

    def __init__(
        self,
        channels: Count = 3,
        width: Count = 64,
        latent: Count = 32,
        num_levels: Count = 3,
        num_blocks: Count = 3,
        wide_norm: bool = True,
        variational: bool = False,
        enlarge: Count = 1,
        noise_std: Positive = 0.02,
        trains: tuple[Part, ...] = ("noise", "decoder"),
    ) -> None:
        super().__init__()
        self.channels, self.latent, self.enlarge = channels, latent, enlarge
        self.variational, self.stride = variational, 2**num_levels
        sizes = (width, num_levels, num_blocks, wide_norm)
        self.encoder = _encoder(channels, latent * (2 if variational else 1), *sizes)
        self.decoder = _decoder(channels, latent, *sizes)
        self.noise_log_std = nn.Parameter(torch.full((latent,), math.log(noise_std)))
        self.train_only(trains)

    def train_only(self, parts: Sequence[Part]) -> None:
        """Let the parameters of these parts require gradients, and no other.

        Raises:  ValueError for an unknown part.
        """
        require_gradients(
            self,
            parts,
            {
                "noise": (self.noise_log_std,),
                "encoder": self.encoder.parameters(),
                "decoder": self.decoder.parameters(),
            },
        )

    def load(self, *paths: str | Path) -> None:
        """Load the published pair of files, encoder and decoder, or one file of a whole network.

        The pair leaves the noise as it is; a whole network brings its own.

        Raises:  ValueError if a file is missing or does not fit, or for more than two.
        """
        match paths:
            case (whole,):
                load_weights(self, whole)
            case (encoder, decoder):
                load_weights(self.encoder, encoder)
                load_weights(self.decoder, decoder)
            case _:
                raise ValueError(f"{len(paths)} files: expected encoder and decoder, or one of all")

    def noise_shapes(self, num: int, height: int, width: int) -> dict[str, torch.Size]:
        """Shapes of the standard-normal tensors that `num` pictures of this size need."""
        rows, columns = (-(-size * self.enlarge // self.stride) for size in (height, width))
        return {"latent": torch.Size((num, self.latent, rows, columns))}

    def forward(self, image_BCHW: Tensor, noise: dict[str, Tensor]) -> Tensor:
        """The images decoded from noisy latents: [B,C,H,W] fp32 in [0,1], channels_last."""
        z_BDhw = self.encode(image_BCHW)[0]
        z_BDhw = z_BDhw + self.noise_log_std.exp().view(-1, 1, 1) * noise["latent"]
        return clamp_pixels(self.decode(z_BDhw, image_BCHW.shape))

    def encode(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """The latent [B,D,h,w], and its log-variance where the network is variational."""
        x_BCHW = set_channels(image_BCHW, self.channels)
        if self.enlarge > 1:
            x_BCHW = F.interpolate(x_BCHW, scale_factor=self.enlarge, mode="bicubic")
        found = self.encoder(pad_to(x_BCHW, self.stride))
        if not self.variational:
            return found, None
        mean_BDhw, log_variance_BDhw = found.chunk(2, dim=1)
        return mean_BDhw, log_variance_BDhw

    def decode(self, z_BDhw: Tensor, shape: torch.Size) -> Tensor:
        """Pictures of shape [B,C,H,W], fp32; untrained or noisy ones may leave [0,1]."""
        height, width = (size * self.enlarge for size in shape[-2:])
        x_BCHW = self.decoder(z_BDhw)[..., :height, :width].float()
        if self.enlarge > 1:
            x_BCHW = F.avg_pool2d(x_BCHW, self.enlarge)
        return set_channels(x_BCHW, shape[1]).contiguous(memory_format=torch.channels_last)

    def elbo(
        self, image_BCHW: Tensor, noise: dict[str, Tensor], pixel_std: float = 0.1
    ) -> tuple[Tensor, Tensor]:
        """Log-likelihood and KL divergence of each image, [B] each, fp32, nats.

        Their difference is the bound on log p(image) that a VAE climbs, with a normal prior of
        the latent, and pixels that are normal around the decoder's with `pixel_std`.

        Raises:  ValueError if the network is not variational.
        Source:  Kingma and Welling, arXiv:1312.6114, equation 10.
        """
        mean_BDhw, log_variance_BDhw = self.encode(image_BCHW)
        if log_variance_BDhw is None:
            raise ValueError("variational = false: a network without variances has no ELBO")
        mean_BDhw, log_variance_BDhw = mean_BDhw.float(), log_variance_BDhw.float()
        z_BDhw = mean_BDhw + (0.5 * log_variance_BDhw).exp() * noise["latent"]
        error_BCHW = (self.decode(z_BDhw, image_BCHW.shape) - image_BCHW) / pixel_std
        constant = math.log(2 * math.pi * pixel_std**2)
        log_likelihood_B = -0.5 * (error_BCHW.square() + constant).flatten(1).sum(1)
        excess_BDhw = mean_BDhw.square() + log_variance_BDhw.exp() - 1 - log_variance_BDhw
        return log_likelihood_B, 0.5 * excess_BDhw.flatten(1).sum(1)


class Block(nn.Module):
    """Three 3x3 convolutions around a shortcut, with a wide normalised branch in front if asked."""

    def __init__(self, width: int, wide_norm: bool) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width)
        )
        self.pool: nn.Module | None = None
        if wide_norm:
            self.pool = nn.Sequential(
                nn.Conv2d(width, 4 * width, 1, bias=False),
                nn.GroupNorm(_NORM_GROUPS, 4 * width),
                nn.ReLU(),
                nn.Conv2d(4 * width, width, 1, bias=False),
            )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The block's output, of its input's shape."""
        if self.pool is not None:
            x_BCHW = x_BCHW + self.pool(x_BCHW)
        return F.relu(self.conv(x_BCHW) + x_BCHW)


class _SoftClamp(nn.Module):
    """Keeps latents within +-3, smoothly."""

    def forward(self, z_BDhw: Tensor) -> Tensor:
        return torch.tanh(z_BDhw / _LATENT_MAX) * _LATENT_MAX


def _conv(in_width: int, width: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(in_width, width, 3, stride, padding=1, bias=bias)


def _encoder(
    channels: int, latent: int, width: int, num_levels: int, num_blocks: int, wide_norm: bool
) -> nn.Sequential:
    layers: list[nn.Module] = [_conv(channels, width), Block(width, wide_norm=False)]
    for level in range(num_levels):
        is_last = level == num_levels - 1
        layers.append(_conv(width, width, stride=2, bias=False))
        layers += [Block(width, wide_norm and is_last) for _ in range(num_blocks)]
    return nn.Sequential(*layers, _conv(width, latent))


def _decoder(
    channels: int, latent: int, width: int, num_levels: int, num_blocks: int, wide_norm: bool
) -> nn.Sequential:
    layers: list[nn.Module] = [_SoftClamp(), _conv(latent, width), nn.ReLU()]
    for level in range(num_levels):
        layers += [Block(width, wide_norm and level == 0) for _ in range(num_blocks)]
        layers += [nn.Upsample(scale_factor=2), _conv(width, width, bias=False)]
    return nn.Sequential(*layers, Block(width, wide_norm=False), _conv(width, channels))


def require_gradients(
    net: nn.Module, parts: Sequence[str], choices: Mapping[str, Iterable[nn.Parameter]]
) -> None:
    """Let the parameters of the chosen parts of a network require gradients, and no other.

    Raises:  ValueError for a part that is not among the choices.
    """
    if unknown := set(parts) - choices.keys():
        raise ValueError(f"trains = {sorted(unknown)}: choose from {', '.join(choices)}")
    net.requires_grad_(False)
    for part in parts:
        for parameter in choices[part]:
            parameter.requires_grad_(True)


def set_channels(image_BCHW: Tensor, channels: int) -> Tensor:
    """The image with so many channels: a grey one repeated, or the mean where one is wanted.

    Raises:  ValueError for any other change.
    """
    found = image_BCHW.shape[1]
    if found == channels:
        return image_BCHW
    if found == 1:
        return torch.cat([image_BCHW] * channels, dim=1)
    if channels == 1:
        return image_BCHW.mean(dim=1, keepdim=True)
    raise ValueError(f"pictures of {found} channels: this autoencoder is made for {channels} or 1")


def pad_to(image_BCHW: Tensor, stride: int) -> Tensor:
    """The image with its right and bottom edges repeated until its sides are multiples."""
    height, width = image_BCHW.shape[-2:]
    bottom, right = -height % stride, -width % stride
    if not bottom and not right:
        return image_BCHW
    return F.pad(image_BCHW, (0, right, 0, bottom), mode="replicate")


class _ClampPixels(torch.autograd.Function):
    """See clamp_pixels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(0.0, 1.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """The gradient, but for what a step along it would take further out."""
        (x,) = ctx.saved_tensors
        leads_out = ((x < 0) & (gradient > 0)) | ((x > 1) & (gradient < 0))
        return gradient.masked_fill(leads_out, 0.0)


def clamp_pixels(x: Tensor) -> Tensor:
    """x clamped to [0,1], whose gradient beyond a bound survives where it leads back inside.

    clamp's own gradient is zero there, so a pixel once outside would never return; a gradient that
    always passes lets pixels run away without anyone seeing. What reaches x is always the gradient
    that an optimiser descends, in a joint phase too, where it is reversed before it comes here.
    """
    return _ClampPixels.apply(x)

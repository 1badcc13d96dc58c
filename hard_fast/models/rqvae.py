"""RQ-VAE, the generator of HARD-VAE on ImageNet: an autoencoder with residual quantisation.

Letters: B images, C channels, H rows, W columns, D channels of the latent, h, w its rows, columns,
N positions, K codes.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hard_fast.models.tiny_autoencoder import (
    Count,
    Positive,
    clamp_pixels,
    pad_to,
    require_gradients,
    set_channels,
)
from hard_fast.models.weights import load_weights

Part = Literal["noise", "encoder", "decoder"]
_NORM_EPS = 1e-6


class RqVae(nn.Module):
    """Encoder, residual quantiser, decoder, and learned Gaussian noise on the latent.

    The noise's standard deviation is one number per latent channel, learned as its logarithm and
    `noise_std` at the start. Added before the quantiser it moves a latent to other codes, and
    its gradients pass the quantiser as if that were not there, as the encoder's do
    (straight-through); added after, they are exact. Sides that are no multiple of the stride (32
    by default) are padded, then cut.

    Args:    channels: of the pictures it was trained on; grey ones are repeated to them, and the
             result averaged back. width: of the first layer. multipliers: of the width, one for
             each size; every size but the last is halved. num_blocks: residual blocks at each
             size, one more in the decoder. latent: D. num_codes: K. depth: times that what is
             left of a latent is quantised, with the same codes. norm_groups: of every GroupNorm.
             noise_at: where the noise is added, before or after the quantiser. noise_std: of the
             noise at the start; how far the published latents spread is not known here.
             trains: parts whose parameters require gradients; the codes never do.
    Raises:  ValueError for an unknown part or place of the noise.
    Source:  Lee et al., arXiv:2203.01941; names and layout as in kakaobrain/rq-vae-transformer,
             in256-rqvae-8x8x4, which are the defaults: 104,402,051 parameters beside the noise.
             HARD fine-tunes all of it and adds noise "on the latent state"; it does not say on
             which side of the quantiser. That the codes stay, as they learn by averages of what
             is assigned to them and not by gradients, is our reading.
    """

    def __init__(
        self,
        channels: Count = 3,
        width: Count = 128,
        multipliers: tuple[Count, ...] = (1, 1, 2, 2, 4, 4),
        num_blocks: Count = 2,
        latent: Count = 256,
        num_codes: Count = 16_384,
        depth: Count = 4,
        norm_groups: Count = 32,
        noise_at: Literal["before", "after"] = "after",
        noise_std: Positive = 0.02,
        trains: tuple[Part, ...] = ("noise", "encoder", "decoder"),
    ) -> None:
        super().__init__()
        if noise_at not in ("before", "after"):
            raise ValueError(f"noise_at = {noise_at!r}: choose before or after")
        self.channels, self.latent, self.noise_at = channels, latent, noise_at
        self.stride = 2 ** (len(multipliers) - 1)
        widths = [width * multiplier for multiplier in multipliers]
        self.encoder = _Encoder(channels, latent, widths, num_blocks, norm_groups)
        self.decoder = _Decoder(channels, latent, widths, num_blocks + 1, norm_groups)
        self.quantizer = Quantizer(num_codes, latent, depth)
        self.quant_conv = nn.Conv2d(latent, latent, 1)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)
        self.noise = _Noise(latent, noise_std)
        self.train_only(trains)

    def train_only(self, parts: Sequence[Part]) -> None:
        """Let the parameters of these parts require gradients, and no other.

        Raises:  ValueError for an unknown part.
        """
        require_gradients(
            self,
            parts,
            {
                "noise": self.noise.parameters(),
                "encoder": (*self.encoder.parameters(), *self.quant_conv.parameters()),
                "decoder": (*self.post_quant_conv.parameters(), *self.decoder.parameters()),
            },
        )

    def load(self, path: str | Path) -> None:
        """Load the published `stage1/model.pt`, which knows no noise; the noise stays as it is.

        Averaged weights are taken where the file has them.

        Raises:  ValueError if there is no such file or it does not fit.
        """
        load_weights(self, path, head="noise")

    def noise_shapes(self, num: int, height: int, width: int) -> dict[str, torch.Size]:
        """Shapes of the standard-normal tensors that `num` pictures of this size need."""
        rows, columns = (-(-size // self.stride) for size in (height, width))
        return {"latent": torch.Size((num, self.latent, rows, columns))}

    def forward(self, image_BCHW: Tensor, noise: dict[str, Tensor]) -> Tensor:
        """The images decoded from noisy latents: [B,C,H,W] fp32 in [0,1], channels_last."""
        z_BDhw = self.encode(image_BCHW)
        if self.noise_at == "before":
            z_BDhw = self.quantizer(self.noise(z_BDhw, noise["latent"]))
        else:
            z_BDhw = self.noise(self.quantizer(z_BDhw), noise["latent"])
        return clamp_pixels(self.decode(z_BDhw, image_BCHW.shape))

    def encode(self, image_BCHW: Tensor) -> Tensor:
        """The latent [B,D,h,w] of images in [0,1], not yet quantised."""
        x_BCHW = pad_to(set_channels(image_BCHW, self.channels), self.stride)
        return self.quant_conv(self.encoder(2.0 * x_BCHW - 1.0))

    def decode(self, z_BDhw: Tensor, shape: torch.Size) -> Tensor:
        """Pictures of shape [B,C,H,W], fp32, which may leave [0,1]."""
        x_BCHW = self.decoder(self.post_quant_conv(z_BDhw))
        x_BCHW = 0.5 * x_BCHW[..., : shape[-2], : shape[-1]].float() + 0.5
        return set_channels(x_BCHW, shape[1]).contiguous(memory_format=torch.channels_last)


class Quantizer(nn.Module):
    """A latent as the sum of `depth` codes, each the nearest to what the ones before it left."""

    def __init__(self, num_codes: int, latent: int, depth: int) -> None:
        super().__init__()
        # One codebook, listed once for each depth: the published files repeat its keys.
        self.codebooks = nn.ModuleList([_Codebook(num_codes, latent)] * depth)

    def forward(self, z_BDhw: Tensor) -> Tensor:
        """The quantised latent, [B,D,h,w] fp32; its gradient goes to the latent unchanged."""
        codes_BNd = self.find_codes(z_BDhw)
        quantised_BND = self.codebooks[0].weight[codes_BNd].sum(dim=-2)
        quantised_BDhw = quantised_BND.mT.unflatten(2, z_BDhw.shape[2:])
        z_BDhw = z_BDhw.float()
        # What is added is zero, so that the sum of codes stays exact.
        return quantised_BDhw + (z_BDhw - z_BDhw.detach())

    @torch.no_grad()
    def find_codes(self, z_BDhw: Tensor) -> Tensor:
        """The number of each position's code at each depth, [B,N,depth] int64."""
        codes_KD = self.codebooks[0].weight[:-1]
        # Distances between near codes drown in bf16.
        with torch.autocast(z_BDhw.device.type, enabled=False):
            left_BND = z_BDhw.float().flatten(2).mT
            lengths_K = codes_KD.square().sum(1)
            found = []
            for _ in self.codebooks:
                # |left - code|^2 without |left|^2, which is the same for all codes.
                left_RD = left_BND.flatten(0, 1)
                distances_RK = torch.addmm(lengths_K, left_RD, codes_KD.T, alpha=-2.0)
                found.append(distances_RK.argmin(dim=-1).view(left_BND.shape[:2]))
                left_BND = left_BND - codes_KD[found[-1]]
        return torch.stack(found, dim=-1)


class _Codebook(nn.Embedding):
    """The codes and, as the published files hold them, the averages they were learned by.

    The last row is a padding code of zeros that is never chosen.
    """

    def __init__(self, num_codes: int, latent: int) -> None:
        super().__init__(num_codes + 1, latent, padding_idx=num_codes)
        self.register_buffer("cluster_size_ema", torch.zeros(num_codes))
        self.register_buffer("embed_ema", self.weight[:-1].detach().clone())


class _Noise(nn.Module):
    """Adds noise with a learned standard deviation per channel."""

    def __init__(self, latent: int, std: float) -> None:
        super().__init__()
        self.log_std = nn.Parameter(torch.full((latent,), math.log(std)))

    def forward(self, z_BDhw: Tensor, draw_BDhw: Tensor) -> Tensor:
        return z_BDhw + self.log_std.exp().view(-1, 1, 1) * draw_BDhw


class _Encoder(nn.Module):
    def __init__(
        self, channels: int, latent: int, widths: Sequence[int], num_blocks: int, groups: int
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            is_last = i == len(widths) - 1
            level = _Level(widths[max(i - 1, 0)], width, num_blocks, groups, attends=is_last)
            if not is_last:
                level.downsample = _Downsample(width)
            self.down.append(level)
        self.mid = _Middle(widths[-1], groups)
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=_NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], latent, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.conv_in(x_BCHW)
        for level in self.down:
            x_BCHW = level(x_BCHW)
        return self.conv_out(F.silu(self.norm_out(self.mid(x_BCHW))))


class _Decoder(nn.Module):
    def __init__(
        self, channels: int, latent: int, widths: Sequence[int], num_blocks: int, groups: int
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(latent, widths[-1], 3, padding=1)
        self.mid = _Middle(widths[-1], groups)
        # Listed from the largest size, as in the encoder, though it begins with the smallest.
        self.up = nn.ModuleList()
        for i, width in enumerate(widths):
            is_last = i == len(widths) - 1
            in_width = width if is_last else widths[i + 1]
            level = _Level(in_width, width, num_blocks, groups, attends=is_last)
            if i > 0:
                level.upsample = _Upsample(width)
            self.up.append(level)
        self.norm_out = nn.GroupNorm(groups, widths[0], eps=_NORM_EPS)
        self.conv_out = nn.Conv2d(widths[0], channels, 3, padding=1)

    def forward(self, z_BDhw: Tensor) -> Tensor:
        x_BCHW = self.mid(self.conv_in(z_BDhw))
        for i in reversed(range(len(self.up))):
            x_BCHW = self.up[i](x_BCHW)
        return self.conv_out(F.silu(self.norm_out(x_BCHW)))


class _Level(nn.Module):
    """The blocks of one size, with attention after each if asked, then the change of size."""

    def __init__(
        self, in_width: int, width: int, num_blocks: int, groups: int, attends: bool
    ) -> None:
        super().__init__()
        widths = [in_width] + [width] * num_blocks
        self.block = nn.ModuleList(
            _Block(a, b, groups) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.attn = nn.ModuleList(_Attention(width, groups) for _ in range(num_blocks * attends))
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x_BCHW = block(x_BCHW)
            if len(self.attn):
                x_BCHW = self.attn[i](x_BCHW)
        for resize in (self.downsample, self.upsample):
            if resize is not None:
                x_BCHW = resize(x_BCHW)
        return x_BCHW


class _Middle(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.block_1 = _Block(width, width, groups)
        self.attn_1 = _Attention(width, groups)
        self.block_2 = _Block(width, width, groups)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x_BCHW)))


class _Block(nn.Module):
    """Two normalised 3x3 convolutions around a shortcut."""

    def __init__(self, in_width: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_width, eps=_NORM_EPS)
        self.conv1 = nn.Conv2d(in_width, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, width, eps=_NORM_EPS)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.nin_shortcut: nn.Module | None = None
        if in_width != width:
            self.nin_shortcut = nn.Conv2d(in_width, width, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x_BCHW)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (x_BCHW if self.nin_shortcut is None else self.nin_shortcut(x_BCHW))


class _Attention(nn.Module):
    """Self-attention over positions with one head as wide as the layer."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=_NORM_EPS)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y = self.norm(x_BCHW)
        query, key, value = (layer(y).flatten(2).mT[:, None] for layer in (self.q, self.k, self.v))
        y_BNC = F.scaled_dot_product_attention(query, key, value)[:, 0]
        return x_BCHW + self.proj_out(y_BNC.mT.unflatten(2, x_BCHW.shape[2:]))


class _Downsample(nn.Module):
    """A convolution of stride 2, padded at the right and bottom only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))


class _Upsample(nn.Module):
    """Every pixel four times, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))

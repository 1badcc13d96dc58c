"""Pictures out of noise alone: the generator of the data-free methods.

Letters: B images, C channels, H rows, W columns, Z latent numbers, D channels inside.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PictureGenerator(nn.Module):
    """A linear layer to a quarter of the picture's side, then twice: double it, convolve.

    Args:    channels, height, width_px: of the pictures; both sides multiples of 4.
             latent: Z. width: D of the last hidden layer; the ones before have twice as many.
             norm_eps: added to the variance by the BatchNorm layers behind convolutions. DAFL's
                 code says `BatchNorm2d(channels, 0.8)`, which sets this and not the momentum.
             output: `standard` is a tanh whose every channel is brought to the given mean and std
                 over the batch, as DAFL has it, so that single pixels may leave [0,1]; `sigmoid`
                 stays inside.
             mean, std: per channel of the pictures in [0,1], of `standard` only; one number serves
                 all channels.
    Raises:  ValueError for a size or statistics that do not fit.
    Source:  arXiv:1904.01186 and huawei-noah/Data-Efficient-Model-Compression, DAFL/DAFL-train.py
             (width 64, latent 100 or 1000). CuDFKD's own (arXiv:2208.13648) differs in norm_eps
             and output.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        latent: int = 100,
        width: int = 64,
        norm_eps: float = 0.8,
        output: Literal["standard", "sigmoid"] = "standard",
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.25,),
    ) -> None:
        super().__init__()
        channels, height, width_px = shape
        if height % 4 or width_px % 4:
            raise ValueError(f"makes pictures of multiples of 4 px, not {height}x{width_px}")
        self.start = (2 * width, height // 4, width_px // 4)
        self.linear = nn.Linear(latent, 2 * width * (height // 4) * (width_px // 4))
        self.norm0 = nn.BatchNorm2d(2 * width)
        self.conv1 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(2 * width, norm_eps)
        self.conv2 = nn.Conv2d(2 * width, width, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(width, norm_eps)
        self.conv3 = nn.Conv2d(width, channels, 3, padding=1)
        self.standard = nn.BatchNorm2d(channels, affine=False) if output == "standard" else None
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, channels):
                raise ValueError(f"{name} = {list(values)}: give one number, or {channels}")
            column = torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(name, column, persistent=False)
        self.to(memory_format=torch.channels_last)

    def forward(self, latent_BZ: Tensor) -> Tensor:
        """Pictures [B,C,H,W], channels_last, differentiable in what is trained."""
        x = self.linear(latent_BZ).view(-1, *self.start)
        x = self.norm0(x.contiguous(memory_format=torch.channels_last))
        x = F.leaky_relu(self.norm1(self.conv1(F.interpolate(x, scale_factor=2.0))), 0.2)
        x = F.leaky_relu(self.norm2(self.conv2(F.interpolate(x, scale_factor=2.0))), 0.2)
        x = self.conv3(x)
        if self.standard is None:
            return torch.sigmoid(x)
        return self.standard(torch.tanh(x)) * self.std + self.mean

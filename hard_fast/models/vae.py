"""An autoencoder as a student: it learns its own data, to become an augmentor later.

Letters: B images, C channels, H rows, W columns.
"""

import torch
from torch import Tensor

from hard_fast.models.tiny_autoencoder import TinyAutoencoder


class TinyVae(TinyAutoencoder):
    """The tiny autoencoder, trained by `objective.kind = "vae"`; its file is a TinyAutoencoder's.

    Args:    width to pixel_std: as there; the defaults suit pictures of about 30 px.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        image_size: int,
        width: int = 32,
        latent: int = 8,
        num_levels: int = 2,
        num_blocks: int = 1,
        wide_norm: bool = False,
        pixel_std: float = 0.1,
    ) -> None:
        super().__init__(
            channels=in_channels,
            width=width,
            latent=latent,
            num_levels=num_levels,
            num_blocks=num_blocks,
            wide_norm=wide_norm,
            variational=True,
            trains=("encoder", "decoder"),
        )
        self.pixel_std = pixel_std

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """[B,2] distortion and rate in nats per value; in training each call has its own noise."""
        shape = self.noise_shapes(len(image_BCHW), *image_BCHW.shape[2:])["latent"]
        # Like dropout's masks out of the device's generator, which each step seeds; in evaluation
        # the same noise at each call, since a bound needs a draw and scores should not vary.
        generator = None
        if not self.training:
            generator = torch.Generator(image_BCHW.device).manual_seed(0)
        noise = {"latent": torch.randn(shape, device=image_BCHW.device, generator=generator)}
        log_likelihood_B, rate_B = self.elbo(image_BCHW, noise, self.pixel_std)
        return torch.stack([-log_likelihood_B, rate_B], 1) / image_BCHW[0].numel()

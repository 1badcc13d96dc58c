"""HARD-VAE: images made anew by a generative network, of which a part learns."""

from typing import Any, Literal, Protocol, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from hard_fast.augment.base import Augmentor, is_learned, to_float
from hard_fast.models.options import typed_options
from hard_fast.models.rqvae import RqVae
from hard_fast.models.tiny_autoencoder import TinyAutoencoder
from hard_fast.models.vdvae import VDVAE
from hard_fast.models.weights import load_weights
from hard_fast.runtime.configfile import Config
from hard_fast.types import Noise, View

_NETS: dict[str, type[nn.Module]] = {"tiny": TinyAutoencoder, "vdvae": VDVAE, "rqvae": RqVae}


class AutoencoderConfig(Config):
    """HARD-VAE. Untouched and with pretrained weights it reconstructs its input."""

    kind: Literal["autoencoder"] = "autoencoder"
    net: Literal["tiny", "vdvae", "rqvae"] = "tiny"
    checkpoint: str | tuple[str, str] | None = None
    """File of weights; for tiny also a pair, encoder and decoder. None: untrained, for tests."""
    learned: bool = True
    """false: nothing of it learns, and it is a fixed augmentation by the network's own noise."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of its convolutions; auto: bf16 on a GPU that has it. Images come out in fp32."""
    options: dict[str, Any] = Field(default={})
    """Keyword arguments of the network's constructor, what is trained among them."""

    @model_validator(mode="after")
    def _pairs_are_for_tiny(self) -> Self:
        if isinstance(self.checkpoint, tuple) and self.net != "tiny":
            raise ValueError(
                f"checkpoint = {list(self.checkpoint)}: net = {self.net!r} has one file of weights"
            )
        return self


class Generator(Protocol):
    """What a network must offer to be an augmentor: images in [0,1] in and out."""

    def noise_shapes(self, num: int, height: int, width: int) -> dict[str, torch.Size]:
        """The standard normal tensors that `num` images of this size need."""

    def __call__(self, image_BCHW: Tensor, noise: Noise) -> Tensor:
        """The images made anew, differentiable in the image and in what is trained."""


class Autoencoder(Augmentor):
    """An image, coded with noise and decoded. The network knows which of its parts learn.

    Source:  HARD section 3; the networks' own files say what they train and where noise enters.
    """

    def __init__(self, config: AutoencoderConfig, shape: torch.Size) -> None:
        super().__init__()
        channels = config.options["channels"] if "channels" in config.options else 3
        takes_grey = shape[0] == 1 and config.net != "vdvae"
        if shape[0] != channels and not takes_grey:
            raise ValueError(
                f"augmentor.options.channels = {channels}: the pictures have {shape[0]}"
            )
        self.net: Generator = build_generator(config)
        self.precision = config.precision
        if not config.learned:
            self.net.requires_grad_(False)
        elif not is_learned(self.net):
            raise ValueError(
                f"augmentor.options: nothing of net = {config.net!r} learns by them, but "
                "augmentor.learned = true"
            )
        # A network for pictures of another size says so here, not in the first step.
        self.net.noise_shapes(1, *shape[1:])

    def draw_noise(self, shape: torch.Size, generator: torch.Generator) -> Noise:
        """What the network asks for, [B,...] standard normal each."""
        shapes = self.net.noise_shapes(shape[0], shape[2], shape[3])
        return {
            name: torch.randn(wanted, generator=generator, device=generator.device)
            for name, wanted in shapes.items()
        }

    def forward(self, view: View, noise: Noise) -> View:
        """The images made anew, fp32; labels stay."""
        device = view.image.device.type
        is_auto = self.precision == "auto" and device == "cuda"
        is_bf16 = self.precision == "bf16" or (is_auto and torch.cuda.is_bf16_supported())
        with torch.autocast(device, torch.bfloat16, enabled=is_bf16):
            image = self.net(to_float(view.image), noise)
        return View(image.float(), view.target_BK)


def build_generator(config: AutoencoderConfig) -> nn.Module:
    """The network that a configuration names, with its weights.

    Raises:  ValueError for an option or a file that does not fit.
    """
    network = _NETS[config.net]
    net = network(**typed_options(config.net, network, config.options))
    if isinstance(config.checkpoint, tuple):
        net.load(*config.checkpoint)
    elif config.checkpoint is not None and isinstance(net, RqVae):
        # Published files know no noise.
        net.load(config.checkpoint)
    elif config.checkpoint is not None:
        load_weights(net, config.checkpoint)
    return net

"""The 15 + 4 corruptions of ImageNet-C and CIFAR-10-C, made on the device, a batch at a time.

Letters: B images, C channels, H rows, W columns.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hard_fast.evals.corruptions import blurs, digital, noise, spatter, weather
from hard_fast.evals.corruptions.draws import draws_for
from hard_fast.evals.corruptions.strengths import strength

CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
EXTRA_CORRUPTIONS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")

_OF_VALUES: dict[str, Callable[..., Tensor]] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "speckle_noise": noise.speckle_noise,
}
_OF_PLANES: dict[str, Callable[..., Tensor]] = {
    "defocus_blur": blurs.defocus_blur,
    "glass_blur": blurs.glass_blur,
    "motion_blur": blurs.motion_blur,
    "zoom_blur": blurs.zoom_blur,
    "gaussian_blur": blurs.blur,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "spatter": spatter.spatter,
    "brightness": digital.brightness,
    "contrast": digital.contrast,
    "saturate": digital.saturate,
    "elastic_transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
}

_CHUNK_VALUES = {"cpu": 2**19, "cuda": 2**27}
# These share work between images of one angle, so the more at once the better.
_GROUPED = ("motion_blur", "snow")
_CHUNK_VALUES_GROUPED = {"cpu": 2**22, "cuda": 2**27}


@torch.no_grad()
def corrupt(image: Tensor, name: str, severity: int, index_B: Tensor, *, seed: int = 0) -> Tensor:
    """The images corrupted, uint8, on the same device and in the same memory format.

    Images whose shorter side is below 64 px get the strengths of CIFAR-10-C (make_cifar_c.py),
    others those of ImageNet-C (make_imagenet_c.py); lengths in pixels are not scaled. What is
    random in image i is a function of (seed, name, severity, index_B[i]) and of its size alone.
    The files of ImageNet-C went through a JPEG of quality 85 in the end; these images do not.

    Args:    image: [B,C,H,W] uint8, 1 or 3 channels.
             severity: 1 to 5.
             index_B: [B] int64, each image's own number, such as its place in the data set.

    Raises:  ValueError for another name, severity, type or number of channels.
    """
    function = _checked(image, name, severity, index_B)
    kind = _CHUNK_VALUES_GROUPED if name in _GROUPED else _CHUNK_VALUES
    # As much at once as stays in a CPU's caches, or in a GPU's memory.
    chunk = max(1, kind["cpu" if image.device.type == "cpu" else "cuda"] // image[0].numel())
    shape = strength(name, severity, *image.shape[2:])
    found = torch.empty_like(image)
    index_B = index_B.to(image.device)
    for part, index, out in zip(
        image.split(chunk), index_B.split(chunk), found.split(chunk), strict=True
    ):
        draws = draws_for(seed, name, severity, index)
        if name in _OF_VALUES:
            # Copied first if the channels are not the fastest, so that noise is the same in any
            # memory format.
            out.copy_(function(part.permute(0, 2, 3, 1), shape, draws).permute(0, 3, 1, 2))
        else:
            made = function(part, shape, draws).permute(0, 2, 3, 1)
            # Moving and then rounding takes half as long as both at once.
            out.permute(0, 2, 3, 1).copy_(made.contiguous())
    return found


def _checked(image: Tensor, name: str, severity: int, index_B: Tensor) -> Callable[..., Tensor]:
    table = _OF_VALUES | _OF_PLANES
    if name not in table:
        raise ValueError(f"corruption {name!r}: choices: {', '.join(table)}")
    if severity not in range(1, 6):
        raise ValueError(f"severity {severity}: choices: 1, 2, 3, 4, 5")
    if image.dtype != torch.uint8 or image.ndim != 4 or image.shape[1] not in (1, 3):
        raise ValueError(
            f"corruptions need [B,1 or 3,H,W] uint8, not {list(image.shape)} {image.dtype}"
        )
    if index_B.shape != image.shape[:1]:
        raise ValueError(f"{len(image)} images need as many indices, not {list(index_B.shape)}")
    return table[name]

"""How strong each corruption is at its severities, 1 to 5, in both published tables.

Source:  hendrycks/robustness@e0377d4 ImageNet-C/create_c/make_imagenet_c.py and
         hendrycks/robustness@ca36008 ImageNet-C/create_c/make_cifar_c.py (Hendrycks and
         Dietterich 2019, arXiv:1903.12261). Lengths are in pixels of 224 px and of 32 px images.
"""

from typing import Any

CIFAR_BELOW_PX = 64
"""Images whose shorter side is below this are corrupted as CIFAR-10-C, others as ImageNet-C."""

IMAGENET: dict[str, list[Any]] = {
    # Standard deviation.
    "gaussian_noise": [0.08, 0.12, 0.18, 0.26, 0.38],
    # Photons of a white pixel.
    "shot_noise": [60, 25, 12, 5, 3],
    # Share of the values that become black or white.
    "impulse_noise": [0.03, 0.06, 0.09, 0.17, 0.27],
    # Radius, sigma of the disk's own blur.
    "defocus_blur": [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
    # Sigma, reach, rounds.
    "glass_blur": [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
    # Radius, sigma.
    "motion_blur": [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
    # Number of zooms from 1 on, step between them.
    "zoom_blur": [(12, 0.01), (16, 0.01), (11, 0.02), (13, 0.02), (11, 0.03)],
    # Flakes' mean and std, zoom, threshold, radius and sigma of their motion, share of the image.
    "snow": [
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ],
    # Share of the image, share of the texture.
    "frost": [(1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)],
    # Share of the fog, its decay from one scale to the next.
    "fog": [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
    # Added to the value of HSV.
    "brightness": [0.1, 0.2, 0.3, 0.4, 0.5],
    # Kept of the distance to the mean.
    "contrast": [0.4, 0.3, 0.2, 0.1, 0.05],
    # Shift's amplitude and sigma, shift of the corners.
    "elastic_transform": [
        (488, 170.8, 24.4),
        (488, 19.52, 48.8),
        (12.2, 2.44, 4.88),
        (17.08, 2.44, 4.88),
        (29.28, 2.44, 4.88),
    ],
    # Share of the pixels per side.
    "pixelate": [0.6, 0.5, 0.4, 0.3, 0.25],
    # Quality.
    "jpeg_compression": [25, 18, 15, 10, 7],
    # Standard deviation as a share of the value.
    "speckle_noise": [0.15, 0.2, 0.35, 0.45, 0.6],
    # Sigma.
    "gaussian_blur": [1, 2, 3, 4, 6],
    # Liquid's mean and std, its sigma, threshold, strength (of mud: sigma of its mask), is it mud.
    "spatter": [
        (0.65, 0.3, 4, 0.69, 0.6, False),
        (0.65, 0.3, 3, 0.68, 0.6, False),
        (0.65, 0.3, 2, 0.68, 0.5, False),
        (0.65, 0.3, 1, 0.65, 1.5, True),
        (0.67, 0.4, 1, 0.65, 1.5, True),
    ],
    # Saturation's factor, added to it.
    "saturate": [(0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)],
}

CIFAR: dict[str, list[Any]] = {
    "gaussian_noise": [0.04, 0.06, 0.08, 0.09, 0.10],
    "shot_noise": [500, 250, 100, 75, 50],
    "impulse_noise": [0.01, 0.02, 0.03, 0.05, 0.07],
    "defocus_blur": [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
    "glass_blur": [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
    "motion_blur": [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
    "zoom_blur": [(7, 0.01), (12, 0.01), (16, 0.01), (21, 0.01), (26, 0.01)],
    "snow": [
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ],
    "frost": [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
    "fog": [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
    "brightness": [0.05, 0.1, 0.15, 0.2, 0.3],
    "contrast": [0.75, 0.5, 0.4, 0.3, 0.15],
    "elastic_transform": [
        (0, 0, 2.56),
        (1.6, 6.4, 2.24),
        (2.56, 1.92, 1.92),
        (3.2, 1.28, 1.6),
        (3.2, 0.96, 0.96),
    ],
    "pixelate": [0.95, 0.9, 0.85, 0.75, 0.65],
    "jpeg_compression": [80, 65, 58, 50, 40],
    "speckle_noise": [0.06, 0.1, 0.12, 0.16, 0.2],
    "gaussian_blur": [0.4, 0.6, 0.7, 0.8, 1],
    "spatter": [
        (0.62, 0.1, 0.7, 0.7, 0.5, False),
        (0.65, 0.1, 0.8, 0.7, 0.5, False),
        (0.65, 0.3, 1, 0.69, 0.5, False),
        (0.65, 0.1, 0.7, 0.69, 0.6, True),
        (0.65, 0.1, 0.5, 0.68, 0.6, True),
    ],
    "saturate": [(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)],
}


def is_small(height: int, width: int) -> bool:
    """Whether an image of this size gets the strengths of CIFAR-10-C."""
    return min(height, width) < CIFAR_BELOW_PX


def strength(name: str, severity: int, height: int, width: int) -> Any:
    """The parameters of a corruption for images of this size."""
    table = CIFAR if is_small(height, width) else IMAGENET
    return table[name][severity - 1]

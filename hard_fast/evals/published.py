"""Numbers that others published, to stand beside ours: AlexNet's errors and the rows of HARD."""

import difflib

ALEXNET_ERRORS: dict[str, tuple[float, ...]] = {
    "gaussian_noise": (69.528, 82.542, 93.554, 98.138, 99.452),
    "shot_noise": (71.224, 85.108, 93.574, 98.182, 99.146),
    "impulse_noise": (78.374, 89.808, 94.870, 98.720, 99.548),
    "defocus_blur": (65.624, 73.202, 85.036, 91.364, 94.714),
    "glass_blur": (64.308, 75.054, 88.806, 91.622, 93.344),
    "motion_blur": (58.430, 70.048, 82.108, 89.750, 92.638),
    "zoom_blur": (70.008, 76.992, 80.784, 84.198, 87.198),
    "snow": (71.726, 88.392, 86.468, 91.870, 94.952),
    "frost": (61.390, 79.734, 88.790, 89.942, 93.430),
    "fog": (67.474, 76.050, 84.378, 87.260, 94.500),
    "brightness": (45.140, 48.502, 54.048, 62.166, 72.440),
    "contrast": (64.548, 76.150, 88.874, 97.760, 99.270),
    "elastic_transform": (52.596, 70.116, 55.686, 64.076, 80.554),
    "pixelate": (52.218, 54.620, 73.728, 87.092, 91.262),
    "jpeg_compression": (51.002, 54.718, 57.294, 65.458, 74.778),
}
"""Top-1 error of AlexNet on ImageNet-C at severities 1 to 5, percent.

Source: the network of Hendrycks and Dietterich 2019, arXiv:1903.12261; its errors by severity as
        code that computes mCE carries them. Their means are those of bethgelab/game-of-noise.
"""

SEVERITIES = (1, 2, 3, 4, 5)

# Of each student in turn: ImageNet val, ReaL, V2, A, R, C, Sketch and Stylized.
_IMAGENET = (
    ("imagenet", "top1"),
    ("imagenet_real", "real"),
    ("imagenet_v2", "top1"),
    ("imagenet_a", "top1"),
    ("imagenet_r", "top1"),
    ("imagenet_c", "mce"),
    ("imagenet_sketch", "top1"),
    ("imagenet_stylized", "top1"),
)
_MNIST = (("mnist", "top1"), ("mnist_shifted", "top1"))
_CIFAR = (("cifar10", "top1"),)

# HARD, arXiv:2305.14890v2, tables 3 and 4, then table 5.
_IMAGENET_ROWS = {
    "Teacher R50": (75.8, 83.1, 63.7, 3.8, 46.8, 53.0, 32.6, 21.2),
    "R18": (70.7, 78.1, 57.4, 1.6, 30.0, 88.1, 18.4, 4.4),
    "R18 KD": (70.7, 78.7, 58.1, 1.6, 40.2, 69.2, 26.0, 13.4),
    "R18 HARD-Affine": (71.6, 79.5, 58.6, 1.5, 38.2, 73.1, 24.9, 10.4),
    "R18 HARD-Mix": (71.4, 79.4, 58.6, 1.8, 39.9, 68.8, 26.1, 13.7),
    "R18 HARD-VAE": (71.0, 78.9, 58.7, 1.7, 39.5, 72.5, 25.8, 12.1),
    "ViT-S": (73.2, 79.4, 60.3, 8.0, 26.3, 78.1, 13.8, 6.6),
    "ViT-S KD": (75.3, 82.8, 62.9, 3.3, 45.0, 56.8, 29.6, 18.7),
    "ViT-S HARD-Affine": (74.9, 82.3, 62.4, 3.4, 40.8, 62.2, 26.2, 14.5),
    "ViT-S HARD-Mix": (75.7, 83.0, 63.3, 3.5, 45.4, 56.2, 29.9, 19.2),
    "ViT-S HARD-VAE": (75.8, 83.1, 63.5, 3.4, 45.4, 57.4, 30.7, 18.1),
    "Teacher BiT R152": (82.9, 87.8, 72.0, 31.9, 49.2, 51.0, 37.4, 16.9),
    "FunMatch R50": (82.8, 87.5, 72.5, 25.1, 45.3, 51.8, 31.6, 15.1),
    "Teacher DINOv2": (86.5, 89.7, 78.4, 76.1, 79.3, 27.3, 62.8, 34.6),
    "DINOv2 ViT-S/14": (81.2, 86.7, 71.2, 34.4, 55.1, 53.4, 42.2, 13.5),
}
# Table 1: the test set of MNIST as it is, and shifted as by MNIST-C.
_MNIST_ROWS = {
    "MNIST CNN->MLP Teacher": (99.0, 91.3),
    "MNIST CNN->MLP Student": (98.4, 35.2),
    "MNIST CNN->MLP Random Affine": (92.1, 81.0),
    "MNIST CNN->MLP MNIST-C Shifts": (98.1, 86.5),
    "MNIST CNN->MLP Orbit": (98.8, 95.2),
    "MNIST CNN->MLP KD": (98.6, 40.3),
    "MNIST CNN->MLP HARD-Affine": (98.6, 68.9),
    "MNIST R18->ViT Teacher": (99.5, 92.8),
    "MNIST R18->ViT Student": (98.3, 40.4),
    "MNIST R18->ViT Random Affine": (95.4, 90.4),
    "MNIST R18->ViT MNIST-C Shifts": (98.5, 93.7),
    "MNIST R18->ViT Orbit": (98.4, 84.0),
    "MNIST R18->ViT KD": (98.6, 44.7),
    "MNIST R18->ViT HARD-Affine": (99.2, 84.1),
}
# Table 2, whose rows are methods and whose columns are pairs of networks.
_CIFAR_PAIRS = ("R18->ViT", "R101->ViT", "R101->R18")
_CIFAR_METHODS = {
    "Teacher": (92.5, 95.5, 95.5),
    "Student": (68.5, 68.5, 78.5),
    "Student Standard": (78.3, 78.3, 92.6),
    "Student Random Affine": (58.9, 58.9, 79.3),
    "KD": (67.9, 68.5, 84.4),
    "KD Standard": (80.9, 79.3, 93.3),
    "HARD-Affine": (87.8, 84.4, 93.5),
    "HARD-VAE": (81.9, 81.2, 91.0),
    "HARD-VAE-Affine": (87.6, 87.1, 94.0),
}


def _rows() -> dict[str, dict[str, dict[str, float]]]:
    cifar = {
        f"CIFAR {pair} {method}": (values[i],)
        for i, pair in enumerate(_CIFAR_PAIRS)
        for method, values in _CIFAR_METHODS.items()
    }
    tables = ((_IMAGENET, _IMAGENET_ROWS), (_MNIST, _MNIST_ROWS), (_CIFAR, cifar))
    return {
        row: {suite: {score: v} for (suite, score), v in zip(columns, values, strict=True)}
        for columns, rows in tables
        for row, values in rows.items()
    }


PAPER_ROWS: dict[str, dict[str, dict[str, float]]] = _rows()
"""By row, suite and score, percent: what HARD (arXiv:2305.14890v2) reports in its tables 1 to 5."""


def paper_row(name: str) -> dict[str, dict[str, float]]:
    """The scores by suite of one row of the paper, percent.

    Raises:  ValueError with the nearest names if there is no such row.
    """
    by_name = {row.lower(): row for row in PAPER_ROWS}
    if name.lower() in by_name:
        return PAPER_ROWS[by_name[name.lower()]]
    near = difflib.get_close_matches(name.lower(), by_name, 3) or list(by_name)
    rows = ", ".join(repr(by_name[key]) for key in near)
    raise ValueError(f"--paper {name!r}: no such row of the paper; choose from {rows}")

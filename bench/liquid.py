"""Drops of water on one image in NumPy and SciPy, as make_imagenet_c.py lights them with OpenCV."""

import numpy as np
from scipy import ndimage

_TAN_22_DEG = np.tan(np.deg2rad(22.5))
_RELIEF = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])


def water(levels: np.ndarray) -> np.ndarray:
    """[H,W] fp64: how bright the drops of a liquid are, 1 at most.

    Args:    levels: [H,W] uint8, the liquid's height; 0 where there is none.
    """
    edge = canny(levels)
    distance = np.full(levels.shape, 20.0)
    if edge.any():
        distance = np.minimum(ndimage.distance_transform_edt(~edge), 20)
    smooth = ndimage.uniform_filter(distance, 3, mode="mirror")
    relief = equalized(np.floor(smooth + 0.01).astype(np.int64))
    lit = np.clip(ndimage.correlate(relief, _RELIEF, mode="mirror"), 0, 255)
    depth = levels * ndimage.uniform_filter(lit, 3, mode="mirror")
    return depth / max(depth.max(), 1e-9)


def canny(levels: np.ndarray, weak: float = 50, strong: float = 150) -> np.ndarray:
    """[H,W] bool: Canny's edges of a uint8 image."""
    image = levels.astype(np.int64)
    right = ndimage.sobel(image, 1, mode="nearest")
    down = ndimage.sobel(image, 0, mode="nearest")
    size = np.abs(right) + np.abs(down)
    wide = np.pad(size, 1)
    height, width = size.shape

    def near(y: int, x: int) -> np.ndarray:
        return wide[1 + y : 1 + y + height, 1 + x : 1 + x + width]

    flat = np.abs(down) < np.abs(right) * _TAN_22_DEG
    steep = np.abs(right) < np.abs(down) * _TAN_22_DEG
    rising = right * down < 0
    peak = np.select(
        [flat, steep, rising],
        [
            (size > near(0, -1)) & (size >= near(0, 1)),
            (size > near(-1, 0)) & (size >= near(1, 0)),
            (size > near(-1, 1)) & (size > near(1, -1)),
        ],
        (size > near(-1, -1)) & (size > near(1, 1)),
    )
    group, _ = ndimage.label(peak & (size > weak), np.ones((3, 3)))
    kept = np.unique(group[peak & (size > strong)])
    return (group > 0) & np.isin(group, kept)


def equalized(levels: np.ndarray) -> np.ndarray:
    """[H,W] fp64: the levels spread so that each is as frequent as any; one level alone stays."""
    count = np.bincount(levels.ravel(), minlength=256)
    lowest = count[levels.min()]
    if lowest == levels.size:
        return levels.astype(float)
    table = np.rint((count.cumsum() - lowest) * (255 / (levels.size - lowest)))
    return table[levels]

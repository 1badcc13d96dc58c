"""The corruptions image by image in NumPy, SciPy and Pillow: what hard_fast's are measured against.

Written after the descriptions in make_imagenet_c.py and make_cifar_c.py of hendrycks/robustness,
without OpenCV, scikit-image and ImageMagick, which those need. Strengths and frost's textures are
hard_fast's own. Every function takes an [H,W,3] uint8 image, its strength and a source of
randomness, and returns fp64 in [0,255], which `corrupt` cuts to uint8 as the scripts do.
"""

import io

import numpy as np
import torch
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy import ndimage

from bench.liquid import water
from hard_fast.evals.corruptions.strengths import strength
from hard_fast.evals.corruptions.textures import frost_textures

_LUMA = np.array([0.299, 0.587, 0.114])


class NumpySource:
    """NumPy's own generator, which is faster than the one that the published scripts use."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def normal(self, *shape: int) -> np.ndarray:
        """Standard normal numbers."""
        return self._generator.standard_normal(shape)

    def uniform(self, *shape: int) -> np.ndarray:
        """A field of numbers in [0,1)."""
        return self._generator.random(shape)

    def few(self, num: int) -> np.ndarray:
        """A few numbers in [0,1)."""
        return self._generator.random(num)

    def whole(self, below: int) -> int:
        """A whole number in [0,below)."""
        return int(self._generator.integers(below))

    def poisson(self, mean: np.ndarray) -> np.ndarray:
        """Poisson counts of these means."""
        return self._generator.poisson(mean)


def corrupt(image: np.ndarray, name: str, severity: int, source: NumpySource) -> np.ndarray:
    """[H,W,3] uint8: the image corrupted."""
    found = globals()[name](image, strength(name, severity, *image.shape[:2]), source)
    return np.clip(found, 0, 255).astype(np.uint8)


def gaussian_noise(image, std, source):
    """Normal noise added."""
    return image + 255 * std * source.normal(*image.shape)


def shot_noise(image, photons, source):
    """Poisson counts."""
    return source.poisson(image / 255.0 * photons) / photons * 255


def impulse_noise(image, share, source):
    """Values made black or white."""
    place = source.uniform(*image.shape)
    return np.where(place < share, np.where(place < share / 2, 255, 0), image)


def speckle_noise(image, std, source):
    """Normal noise times the value added."""
    return image * (1 + std * source.normal(*image.shape))


def gaussian_blur(image, sigma, source):
    """A Gaussian blur."""
    return ndimage.gaussian_filter(image.astype(float), (sigma, sigma, 0), mode="nearest")


def defocus_blur(image, shape, source):
    """A disk."""
    radius, alias = shape
    reach = max(8, int(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (x**2 + y**2 <= radius**2).astype(float)
    disk /= disk.sum()
    step = np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
    taps = np.exp(-(step**2) / (2 * alias**2))
    taps /= taps.sum()
    for axis in (0, 1):
        disk = ndimage.correlate1d(disk, taps, axis, mode="mirror")
    # Most of a small disk's taps are 0.
    used = np.flatnonzero(disk.sum(0) > 1e-12)
    disk = disk[used[0] : used[-1] + 1, used[0] : used[-1] + 1]
    return ndimage.correlate(image.astype(float), disk[..., None], mode="mirror")


def glass_blur(image, shape, source):
    """Pixels replaced one by one, from the last to the first."""
    sigma, reach, num_rounds = shape
    found = gaussian_blur(image, sigma, source).astype(np.uint8)
    height, width = found.shape[:2]
    for _ in range(num_rounds):
        choice = (source.uniform(height, width) * (2 * reach) ** 2).astype(int)
        down, right = np.divmod(choice, 2 * reach)
        down, right = (down - reach).tolist(), (right - reach).tolist()
        for y in range(height - reach, reach, -1):
            for x in range(width - reach, reach, -1):
                found[y, x] = found[y + down[y][x], x + right[y][x]]
    return gaussian_blur(found, sigma, source)


def motion_blur(image, shape, source):
    """A streak."""
    angle_deg = source.whole(91) - 45
    return np.rint(_streaked(image.astype(float), *shape, angle_deg))


def _streaked(image, radius, sigma, angle_deg):
    taps = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    taps /= taps.sum()
    angle = np.deg2rad(angle_deg)
    height, width = image.shape[:2]
    wide = np.pad(image, ((2 * radius + 1,) * 2, (2 * radius + 1,) * 2, (0, 0)), mode="edge")
    total = np.zeros_like(image)
    for i, tap in enumerate(taps):
        top = int(np.ceil(i * np.sin(angle) - 0.5)) + 2 * radius + 1
        left = int(np.ceil(i * np.cos(angle) - 0.5)) + 2 * radius + 1
        total += tap * wide[top : top + height, left : left + width]
    return total


def zoom_blur(image, shape, source):
    """Zooms averaged."""
    num, step = shape
    image = image.astype(np.float32)
    total = image.copy()
    for factor in np.arange(1, 1 + (num - 0.5) * step, step):
        total += _zoomed(image, factor)
    return total / (num + 1)


def _zoomed(image, factor):
    size = image.shape[0]
    crop = int(np.ceil(size / factor))
    top = (size - crop) // 2
    part = image[top : top + crop, top : top + crop]
    part = ndimage.zoom(part, (factor, factor, 1), order=1)
    top = (part.shape[0] - size) // 2
    return part[top : top + size, top : top + size]


def snow(image, shape, source):
    """Flakes."""
    mean, std, zoom, least, radius, sigma, kept = shape
    field = mean + std * source.normal(*image.shape[:2])
    field = _zoomed(field[..., None], zoom)
    field[field < least] = 0
    angle_deg = source.whole(91) - 135
    flakes = np.floor(np.clip(field, 0, 1) * 255)
    flakes = np.rint(_streaked(flakes, radius, sigma, angle_deg))
    white = np.maximum(image, (image @ _LUMA)[..., None] * 1.5 + 127.5)
    return kept * image + (1 - kept) * white + flakes + np.rot90(flakes, 2)


def fog(image, shape, source):
    """A cloud."""
    share, decay = shape
    height, width = image.shape[:2]
    cloud = _plasma(1 << max(5, (max(height, width) - 1).bit_length()), decay, source)
    brightest = image.max() / 255
    found = image + 255 * share * cloud[:height, :width, None]
    return found * (brightest / (brightest + share))


def _plasma(size, decay, source):
    field = source.uniform(size * size) * 2 - 1
    heights = np.zeros((size, size))
    step, scale, used = size, 1.0, 0
    while step >= 2:
        half, side = step // 2, size // step
        noise = field[used : used + 3 * side**2].reshape(3, side, side) * scale
        used += 3 * side**2
        corner = heights[::step, ::step]
        right = corner + np.roll(corner, -1, 1)
        middle = (right + np.roll(right, -1, 0)) / 4 + noise[0]
        heights[half::step, half::step] = middle
        heights[::step, half::step] = (right + middle + np.roll(middle, 1, 0)) / 4 + noise[1]
        below = corner + np.roll(corner, -1, 0) + middle + np.roll(middle, 1, 1)
        heights[half::step, ::step] = below / 4 + noise[2]
        step, scale = half, scale / decay**2
    heights -= heights.min()
    return heights / heights.max()


def frost(image, shape, source):
    """A frozen window."""
    kept, share = shape
    height, width = image.shape[:2]
    textures = _textures(height, width)
    which = source.whole(len(textures))
    top = source.whole(textures.shape[1] - height + 1)
    left = source.whole(textures.shape[2] - width + 1)
    ice = textures[which, top : top + height, left : left + width]
    return kept * image + share * ice


def _textures(height, width):
    return frost_textures(height, width, torch.device("cpu")).numpy()


def spatter(image, shape, source):
    """Drops."""
    mean, std, sigma, least, amount, is_mud = shape
    field = mean + std * source.normal(*image.shape[:2])
    liquid = ndimage.gaussian_filter(field, sigma, mode="nearest")
    if is_mud:
        mask = ndimage.gaussian_filter((liquid > least).astype(float), amount, mode="nearest")
        mask[mask < 0.8] = 0
        return image * (1 - mask[..., None]) + mask[..., None] * np.array([63, 42, 20])
    depth = water(np.where(liquid < least, 0, liquid * 255).astype(np.uint8))
    return image + amount * depth[..., None] * np.array([175, 238, 238])


def brightness(image, added, source):
    """HSV's value raised."""
    hsv = rgb_to_hsv(image / 255.0)
    hsv[..., 2] = np.clip(hsv[..., 2] + added, 0, 1)
    return hsv_to_rgb(hsv) * 255


def saturate(image, shape, source):
    """HSV's saturation multiplied and raised."""
    hsv = rgb_to_hsv(image / 255.0)
    hsv[..., 1] = np.clip(hsv[..., 1] * shape[0] + shape[1], 0, 1)
    return hsv_to_rgb(hsv) * 255


def contrast(image, kept, source):
    """Distances to the mean reduced."""
    mean = image.mean((0, 1))
    return (image - mean) * kept + mean


def pixelate(image, share, source):
    """Fewer pixels."""
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize((int(width * share), int(height * share)), Image.BOX)
    return np.asarray(small.resize((width, height), Image.BOX))


def jpeg_compression(image, quality, source):
    """Through a JPEG."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def elastic_transform(image, shape, source):
    """An affine map, then a smooth field of shifts."""
    amplitude, sigma, corner = shape
    height, width = image.shape[:2]
    half = min(height, width) // 3
    middle = np.array([height // 2, width // 2])
    old = middle + half * np.array([[1, 1], [1, -1], [-1, -1]])
    new = old + (source.few(6).reshape(3, 2) * 2 - 1) * corner
    # A new place (x, y) comes from matrix @ (x, y) + offset; arrays are indexed by (y, x).
    matrix, offset = _affine(new, old)
    channels = [
        ndimage.affine_transform(plane, matrix[::-1, ::-1], offset[::-1], order=1, mode="mirror")
        for plane in image.transpose(2, 0, 1).astype(float)
    ]
    if amplitude == 0:
        return np.stack(channels, -1)
    field = source.uniform(2, height, width) * 2 - 1
    right, down = (
        amplitude * ndimage.gaussian_filter(part, sigma, mode="reflect", truncate=3)
        for part in field
    )
    y, x = np.mgrid[:height, :width]
    places = (y + down, x + right)
    found = [ndimage.map_coordinates(p, places, order=1, mode="reflect") for p in channels]
    return np.stack(found, -1)


def _affine(old, new):
    """The matrix and offset that map three points to three others."""
    solved = np.linalg.solve(np.hstack([old, np.ones((3, 1))]), new)
    return solved[:2].T, solved[2]

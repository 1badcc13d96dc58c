"""Small images in arrays, which stay in their file until a batch is asked for.

A mistake in a file is one ValueError line: which file, what is wrong with it, what to do.

Letters: N images of a set, B images of a batch, C channels, H rows, W columns.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hard_fast.data.arrays import Arrays
from hard_fast.data.readers import checked
from hard_fast.runtime.messages import printable
from hard_fast.types import Batch

_AGAIN = "fetch it again"


@dataclass(frozen=True, eq=False)
class Stored:
    """Images in an array, which may be a file; batches go to the device as they are asked for.

    image_NHWC: uint8.
    label:      [N] int64, on the CPU.
    """

    image_NHWC: np.ndarray
    label: Tensor
    device: torch.device

    @property
    def num(self) -> int:
        """How many samples there are."""
        return len(self.label)

    @property
    def image_shape(self) -> torch.Size:
        """C, H, W of every image."""
        height, width, channels = self.image_NHWC.shape[1:]
        return torch.Size((channels, height, width))

    @property
    def is_picture(self) -> bool:
        """They always are."""
        return True

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Every sample exactly once over all processes, in order and without padding."""
        assert batch_size >= 1
        first, end = self.num * rank // world_size, self.num * (rank + 1) // world_size
        for start in range(first, end, batch_size):
            part = slice(start, min(start + batch_size, end))
            # A copy, for torch wants memory that may be written to.
            image_BHWC = torch.from_numpy(np.array(self.image_NHWC[part])).to(self.device)
            yield Batch(image_BHWC.permute(0, 3, 1, 2), self.label[part].to(self.device))


def store(arrays: Arrays, device: torch.device) -> Stored:
    """A set of [N,C,H,W] uint8 images on the CPU as a part."""
    image_NHWC = arrays.image.permute(0, 2, 3, 1).contiguous().numpy()
    return Stored(image_NHWC, arrays.label, device)


def open_images(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """[N,H,W,C] uint8 of a .npy, read as it is used.

    Args:    shape: H, W, C of every image; one channel may be left out of the file.
    Raises:  ValueError if the file is damaged or holds something else.
    """
    image = _open_npy(path)
    if shape[2] == 1 and image.ndim == 3:
        image = image[..., None]
    if image.dtype != np.uint8 or image.shape[1:] != shape or not len(image):
        raise ValueError(
            f"{path}: holds {image.dtype} of shape {image.shape}, expected uint8 of shape "
            f"(N, {', '.join(map(str, shape))}); {_AGAIN}"
        )
    return image


def open_labels(path: Path, num: int, num_classes: int, image_path: Path) -> Tensor:
    """[N] int64 on the CPU from a .npy, one per image of `image_path`.

    Raises:  ValueError if the file is damaged, or its labels do not fit the images.
    """
    # Only the number of images matters here, and they may be too large to be read for it.
    image = np.broadcast_to(np.uint8(0), (num, 1, 1, 1))
    return checked(image, np.array(_open_npy(path)), image_path, path, num_classes).label


def _open_npy(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; {_AGAIN}") from None
    except Exception as error:
        # Damaged headers make numpy raise almost anything.
        reason = printable(str(error)) or type(error).__name__
        raise ValueError(f"{path}: truncated, or no .npy file ({reason}); {_AGAIN}") from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: a .npz, expected a .npy file; {_AGAIN}")
    return array

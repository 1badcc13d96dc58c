"""The last step without a GPU, from decoded pictures to a batch: PyTorch's resize of bytes.

It is PIL's in integer arithmetic (on photos 0.004 of 255 levels from it on average), and costs a
CPU a quarter of what DALI's own resize does.

Letters: B pictures of a batch, H rows, W columns.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hard_fast.data.sources import PicturesConfig

_NUM_CHUNKS = 4


class Resizing(NamedTuple):
    """A batch that threads are still writing.

    image: [B,H,W,3] uint8.
    """

    image: np.ndarray
    parts: list[Future[None]]

    def result(self) -> Tensor:
        """[B,3,H,W] uint8, channels_last memory, as soon as it is complete."""
        for part in self.parts:
            part.result()
        return torch.from_numpy(self.image).permute(0, 3, 1, 2)


class Resizer:
    """Makes batches of decoded pictures in threads of its own.

    Pictures come as DALI's list of [H,W,3] uint8; their memory is shared, not copied.

    Args:    num_threads: that decode at the same time; a third as many resize.
    """

    def __init__(self, config: PicturesConfig, num_threads: int) -> None:
        self._size, self._mode = config.size, config.interpolation
        self._shorter = shorter_side(config)
        self._num_threads = (num_threads + 2) // 3
        self._pool = ThreadPoolExecutor(self._num_threads, "resize")

    def stretched(self, pictures: Any, is_flipped: np.ndarray, size_px: int) -> Resizing:
        """For training: each picture stretched to a square, some of them mirrored.

        Args:    is_flipped: [B] bool. size_px: of its sides.
        """

        def finish(i: int, picture_HW3: Tensor, out: np.ndarray) -> None:
            image = self._resized(picture_HW3, size_px, size_px)
            if is_flipped[i]:
                # Whole pixels are twice as fast to mirror as single bytes. (torch.flip is faster,
                # but opens OpenMP threads below each of ours.)
                out, image = out.view("V3"), image.view("V3")[:, ::-1]
            np.copyto(out, image)

        return self._start(pictures, size_px, finish)

    def centred(self, pictures: Any) -> Resizing:
        """For evaluation: the shorter side resized and the centre cut out.

        Sizes and corners are those of torchvision's Resize and CenterCrop, which timm uses.
        """

        def finish(i: int, picture_HW3: Tensor, out: np.ndarray) -> None:
            old = picture_HW3.shape[:2]
            new = [side * self._shorter // min(old) for side in old]
            image = self._resized(picture_HW3, *new)
            # round() takes the even one of two neighbours, as CenterCrop does.
            top, left = (round((side - self._size) / 2) for side in new)
            np.copyto(out, image[top : top + self._size, left : left + self._size])

        return self._start(pictures, self._size, finish)

    def close(self) -> None:
        """Let go of the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _start(
        self, pictures: Any, size_px: int, finish: Callable[[int, Tensor, np.ndarray], None]
    ) -> Resizing:
        num = len(pictures)
        image = np.empty((num, size_px, size_px, 3), np.uint8)

        def run(chunk: np.ndarray) -> None:
            for i in chunk.tolist():
                finish(i, torch.from_dlpack(pictures[i]), image[i])

        # Several parts for each thread, so that large pictures in one do not hold up the batch.
        chunks = np.array_split(np.arange(num), min(num, _NUM_CHUNKS * self._num_threads))
        return Resizing(image, [self._pool.submit(run, chunk) for chunk in chunks])

    def _resized(self, picture_HW3: Tensor, height: int, width: int) -> np.ndarray:
        image = picture_HW3[None].permute(0, 3, 1, 2)
        image = F.interpolate(image, (height, width), mode=self._mode, antialias=True)
        return np.ascontiguousarray(image[0].permute(1, 2, 0).numpy())


def shorter_side(config: PicturesConfig) -> int:
    """The shorter side of an evaluation picture before its centre is cut out, px."""
    return int(config.size / config.eval_crop)
